//! Helm and kustomize, built from the Go modules that `tests/e2e/components/helm` pins, and kept outside of the checkout.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{
    preflight,
    ui::{root, run_step},
};

const MODULE: &str = "tests/e2e/components/helm";
const PACKAGES: &[&str] = &["helm.sh/helm/v3/cmd/helm", "sigs.k8s.io/kustomize/kustomize/v5"];
/// The oldest release that the chart allows.
const KUBERNETES: &str = "1.30.0";
const FLAGS: &[&str] = &["-buildvcs=false", "-trimpath", "-ldflags=-s -w"];

/// Before a value that is a text, whatever it looks like.
const TEXT: &str = "text:";

/// Where the programs are.
#[derive(Debug)]
pub(super) struct Renderers(PathBuf);

impl Renderers {
    /// Builds what is not there yet.
    ///
    /// # Errors
    /// [`preflight::Missing`] without Go; go's own.
    pub(super) fn ensure() -> Result<Self> {
        let dir = cache()?.join(format!("helm-{}", key()?));
        if !dir.is_dir() {
            build(&dir)?;
        }
        Ok(Self(dir))
    }

    /// Helm, where it has been built.
    ///
    /// # Errors
    /// The manifest of its modules can't be read.
    pub(super) fn built_helm() -> Result<Option<PathBuf>> {
        let program = cache()?.join(format!("helm-{}", key()?)).join("helm");
        Ok(program.is_file().then_some(program))
    }

    /// `kustomize build DIR`
    pub(super) fn kustomize(&self, dir: &Path) -> Result<String> {
        output(Command::new(self.0.join("kustomize")).arg("build").arg(dir))
    }

    /// `helm template` of the chart with values as for `--set`, or after [`TEXT`] as for `--set-string`.
    pub(super) fn helm(&self, values: &[&str]) -> Result<String> {
        output(&mut self.template(values))
    }

    /// The same with a file of values, which the others outrank.
    pub(super) fn helm_with(&self, file: &Path, values: &[&str]) -> Result<String> {
        output(self.template(values).arg("--values").arg(file))
    }

    fn template(&self, values: &[&str]) -> Command {
        let mut helm = Command::new(self.0.join("helm"));
        helm.args(["template", "netpol"])
            .arg(root().join("deploy/helm/netpol"))
            .args(["--namespace", "netpol-system", "--kube-version", KUBERNETES]);
        for value in values {
            match value.strip_prefix(TEXT) {
                Some(value) => helm.args(["--set-string", value]),
                None => helm.args(["--set", value]),
            };
        }
        helm
    }

    /// `helm lint --strict`
    pub(super) fn lint(&self) -> Result<()> {
        let mut helm = Command::new(self.0.join("helm"));
        helm.args(["lint", "--strict", "--quiet", "--kube-version", KUBERNETES]);
        output(helm.arg(root().join("deploy/helm/netpol"))).map(drop)
    }
}

/// What the programs depend on, as one number.
fn key() -> Result<String> {
    let mut hash = Sha256::new();
    for file in ["go.mod", "go.sum"] {
        let path = root().join(MODULE).join(file);
        hash.update(fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
    }
    hash.update(FLAGS.join(" "));
    let digest = hash.finalize();
    Ok(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

fn cache() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.filter(|path| path.is_absolute());
    let base = base.or_else(|| Some(env::home_dir()?.join(".cache")));
    Ok(base
        .context("neither XDG_CACHE_HOME nor a home directory")?
        .join("netpol/components"))
}

fn build(dir: &Path) -> Result<()> {
    let mut go = Command::new("go");
    if go.arg("version").output().is_err() {
        let missing =
            "no Go, with which helm and kustomize are built: install Go 1.26 or newer, and put it in PATH";
        return preflight::require(vec![missing.into()]);
    }
    // Whoever builds the same at the same time has a directory of its own.
    let part = dir.with_extension(format!("part-{}", std::process::id()));
    fs::create_dir_all(&part).with_context(|| format!("creating {}", part.display()))?;
    let mut go = Command::new("go");
    go.arg("build")
        .args(FLAGS)
        .arg("-o")
        .arg(&part)
        .args(PACKAGES)
        .current_dir(root().join(MODULE))
        .env("CGO_ENABLED", "0");
    let built = run_step("helm and kustomize", &mut go).and_then(|()| {
        match fs::rename(&part, dir) {
            // Somebody else was first.
            Err(_) if dir.is_dir() => Ok(()),
            other => other.with_context(|| format!("moving {} into place", part.display())),
        }
    });
    if part.exists() {
        fs::remove_dir_all(&part).with_context(|| format!("removing {}", part.display()))?;
    }
    built
}

fn output(command: &mut Command) -> Result<String> {
    // What a user has told Helm must not decide here.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HELM_")) {
        command.env_remove(name);
    }
    let done = command
        .output()
        .with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
    if !done.status.success() {
        bail!(
            "{command:?} failed ({}):\n{}{}",
            done.status,
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
    }
    String::from_utf8(done.stdout).context("a renderer wrote something that is not UTF-8")
}
