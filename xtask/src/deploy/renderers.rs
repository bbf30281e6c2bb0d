//! Helm and kustomize, built from the Go modules that `tests/e2e/components/helm` pins, and kept outside of the checkout.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use super::yaml;
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

const CHART: &str = "deploy/helm/netpol";

/// What is installed under which name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Release<'a> {
    pub(super) name: &'a str,
    pub(super) namespace: &'a str,
    pub(super) values: &'a [&'a str],
}

const RELEASE: Release<'_> = Release {
    name: "netpol",
    namespace: "netpol-system",
    values: &[],
};

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
        self.helm_as(Release { values, ..RELEASE })
    }

    /// The same of a release by any name.
    pub(super) fn helm_as(&self, release: Release<'_>) -> Result<String> {
        output(&mut self.template(&root().join(CHART), release))
    }

    /// The same with a file of values, which the others outrank.
    pub(super) fn helm_with(&self, file: &Path, values: &[&str]) -> Result<String> {
        let release = Release { values, ..RELEASE };
        let mut helm = self.template(&root().join(CHART), release);
        output(helm.arg("--values").arg(file))
    }

    /// The chart's NOTES.txt for a release. `helm template` leaves it out and `helm install` asks a cluster, even if it is only to show what it
    /// would do: so here it is a template as the others are.
    pub(super) fn notes(&self, release: Release<'_>) -> Result<String> {
        const NOTES: &str = "templates/NOTES.txt";
        let copy = root().join("target/deploy-check/notes");
        if copy.exists() {
            fs::remove_dir_all(&copy).with_context(|| format!("removing {}", copy.display()))?;
        }
        copy_dir(&root().join(CHART), &copy)?;
        let text = fs::read_to_string(copy.join(NOTES)).context("reading NOTES.txt")?;
        fs::remove_file(copy.join(NOTES)).context("leaving out NOTES.txt")?;
        let template = format!(
            "{{{{ define \"notes\" }}}}{text}{{{{ end }}}}\nnotes: {{{{ include \"notes\" . | toJson }}}}\n"
        );
        fs::write(copy.join("templates/notes.yaml"), template).context("writing a template of NOTES.txt")?;
        let mut helm = self.template(&copy, release);
        let rendered = output(helm.args(["--show-only", "templates/notes.yaml"]))?;
        let documents = yaml::documents(&rendered)?;
        let notes = documents.first().and_then(|document| document["notes"].as_str());
        notes.map(str::to_owned).context("the chart has no notes")
    }

    fn template(&self, chart: &Path, release: Release<'_>) -> Command {
        let Release {
            name,
            namespace,
            values,
        } = release;
        let mut helm = Command::new(self.0.join("helm"));
        helm.args(["template", name]).arg(chart).args([
            "--namespace",
            namespace,
            "--kube-version",
            KUBERNETES,
        ]);
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
        output(helm.arg(root().join(CHART))).map(drop)
    }
}

fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    let copying = || format!("copying {} to {}", from.display(), to.display());
    fs::create_dir_all(to).with_context(copying)?;
    for entry in fs::read_dir(from).with_context(copying)? {
        let entry = entry.with_context(copying)?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        match path.is_dir() {
            true => copy_dir(&path, &copy)?,
            false => drop(fs::copy(&path, &copy).with_context(copying)?),
        }
    }
    Ok(())
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
