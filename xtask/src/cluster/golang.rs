//! Go, which builds the components: the machine's where it is new enough, else the toolchain that any older Go downloads
//! as a module, from the module proxy and checked against the checksum database, into a cache of our own.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::components::cache;
use crate::{
    preflight, setup,
    ui::{path, run_step},
};

/// The toolchain that is downloaded where the machine has no Go that is new enough.
const PINNED: &str = "1.26.8";

/// Debian's package of an older Go: all that it is needed for is the download.
const PACKAGE: &str = "golang-go";

/// A Go that can build the components.
#[derive(Debug)]
pub(super) struct Go {
    pub(super) program: PathBuf,
    /// `go1.26.8`
    pub(super) version: String,
}

impl Go {
    /// A Go not older than `floor`.
    ///
    /// # Errors
    /// [`preflight::Missing`] where there is none and none can be had.
    pub(super) fn ensure(floor: &str) -> Result<Self> {
        let own = toolchain_dir().join("bin/go");
        let installed = installed();
        let known = installed.iter().chain([&own]);
        if let Some(go) = known.filter_map(|path| Self::at(path)).find(|go| go.suits(floor)) {
            return Ok(go);
        }
        let older = match installed.into_iter().next() {
            Some(older) => older,
            None => {
                setup::packages(&[PACKAGE])?;
                PathBuf::from("/usr/bin/go")
            }
        };
        if let Err(error) = download(&older) {
            let missing = format!(
                "no Go {floor} or newer, and Go {PINNED} can't be downloaded from the module proxy: connect this machine, name a proxy \
                 (https_proxy, GOPROXY), or install Go from https://go.dev/dl into /usr/local/go. {error:#}"
            );
            return Err(preflight::Missing(vec![missing]).into());
        }
        Self::at(&own).with_context(|| format!("{} does not start", own.display()))
    }

    fn at(program: &Path) -> Option<Self> {
        let mut go = Command::new(program);
        go.args(["env", "GOVERSION"])
            .env("GOTOOLCHAIN", "local")
            .current_dir("/");
        let done = go.output().ok().filter(|done| done.status.success())?;
        Some(Self {
            program: program.to_owned(),
            version: String::from_utf8(done.stdout).ok()?.trim().to_owned(),
        })
    }

    fn suits(&self, floor: &str) -> bool {
        number(&self.version) >= number(floor)
    }
}

/// `go1.26.8`, `1.26.0` → [1, 26, 8]; a release candidate is the release before it.
pub(super) fn number(version: &str) -> Vec<u32> {
    let version = version.trim_start_matches("go");
    let version = version
        .split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .next()
        .unwrap_or_default();
    version.split('.').map_while(|part| part.parse().ok()).collect()
}

/// Those of the machine, by where they are looked for.
fn installed() -> Vec<PathBuf> {
    let paths = path();
    let mut all: Vec<_> = std::env::split_paths(&paths).map(|dir| dir.join("go")).collect();
    all.push("/usr/local/go/bin/go".into());
    all.retain(|program| program.is_file());
    all
}

fn module() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("golang.org/toolchain@v0.0.1-go{PINNED}.linux-{architecture}")
}

fn modules() -> PathBuf {
    cache().join("go-modules")
}

fn toolchain_dir() -> PathBuf {
    modules().join(module())
}

fn download(older: &Path) -> Result<()> {
    let mut go = Command::new(older);
    go.args(["mod", "download", &module()])
        .env("GOMODCACHE", modules())
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "-modcacherw")
        .current_dir("/");
    run_step(&format!("download of Go {PINNED}"), &mut go)?;
    // Files of modules are not executable.
    let dir = toolchain_dir();
    for part in ["bin", "pkg/tool"] {
        executable(&dir.join(part))?;
    }
    Ok(())
}

fn executable(path: &Path) -> Result<()> {
    if !path.is_dir() {
        return fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {} executable", path.display()));
    }
    let entries = fs::read_dir(path).with_context(|| format!("reading {}", path.display()))?;
    for entry in entries {
        executable(&entry?.path())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        let newer = |one: &str, other: &str| number(one) >= number(other);
        assert!(newer("go1.26.8", "1.26.6"));
        assert!(newer("go1.26.10", "1.26.9"));
        assert!(newer("go1.27.0", "1.26.9"));
        assert!(
            !newer("go1.26", "1.26.0"),
            "`go1.26` is a language, the release is go1.26.0"
        );
        assert!(!newer("go1.19.8", "1.26.0"));
        assert!(newer("go1.26.8 X:nodwarf5", "1.26.8"));
        assert!(!newer("", "1.26.0"));
    }
}
