//! The components: what `tests/e2e/components` pins is built with Go, the rest are Debian's packages, unpacked beside. They
//! are kept outside of the checkout, so that several checkouts share them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    debian,
    golang::{Go, number},
    image::{self, hex},
    record::Lock,
};
use crate::ui::{root, run_step, say};

/// One Go module that pins components.
#[derive(Debug)]
struct Module {
    /// Below `tests/e2e/components`.
    dir: &'static str,
    packages: &'static [&'static str],
    /// What the one package's program is called, where Go would name it by its path.
    program: Option<&'static str>,
    ldflags: &'static str,
    cgo: &'static str,
}

/// The flags are the same for all of Kubernetes, or its libraries would be compiled more than once.
const MODULES: &[Module] = &[
    Module {
        dir: "kubernetes",
        packages: &[
            "k8s.io/kubernetes/cmd/kube-apiserver",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
            "k8s.io/kubernetes/cmd/kube-scheduler",
            "k8s.io/kubernetes/cmd/kubelet",
            "k8s.io/kubernetes/cmd/kube-proxy",
            "k8s.io/kubernetes/cmd/kubectl",
            "k8s.io/kubernetes/test/images/agnhost",
        ],
        program: None,
        // What is not built by Kubernetes' own scripts calls itself v0.0.0-master, which clients refuse.
        ldflags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2 -X k8s.io/component-base/version.gitMajor=1 \
                  -X k8s.io/component-base/version.gitMinor=37",
        cgo: "0",
    },
    Module {
        dir: "containerd",
        packages: &[
            "github.com/containerd/containerd/v2/cmd/containerd",
            "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            "github.com/containerd/containerd/v2/cmd/ctr",
        ],
        program: None,
        ldflags: "-s -w",
        cgo: "0",
    },
    Module {
        dir: "etcd",
        packages: &["go.etcd.io/etcd/server/v3"],
        program: Some("etcd"),
        ldflags: "-s -w",
        cgo: "0",
    },
    Module {
        dir: "flannel",
        packages: &["github.com/flannel-io/flannel"],
        program: None,
        ldflags: "-s -w",
        cgo: "1",
    },
];

impl Module {
    /// What its programs depend on, as one number.
    fn key(&self, go: &Go) -> Result<String> {
        let mut text = format!("{}\n{GOFLAGS}\n{self:?}\n", go.version);
        for file in ["go.mod", "go.sum"] {
            text += &read(&manifests().join(self.dir).join(file))?;
        }
        Ok(hex(text.as_bytes()))
    }

    fn programs(&self) -> Vec<&'static str> {
        let last = |package: &&'static str| package.rsplit('/').next();
        match self.program {
            Some(program) => vec![program],
            None => self.packages.iter().filter_map(last).collect(),
        }
    }

    /// Puts its programs into `part`: those of another build that had the same key, or new ones.
    fn provide(&self, go: &Go, all: &Path, part: &Path) -> Result<()> {
        let (bin, key) = (part.join("bin"), self.key(go)?);
        make(&bin)?;
        match self.built(all, &key)? {
            Some(other) => {
                for program in self.programs() {
                    let (from, to) = (other.join("bin").join(program), bin.join(program));
                    fs::hard_link(&from, &to).with_context(|| format!("linking {}", from.display()))?;
                }
                say(self.dir, &format!("as in {}", other.display()));
            }
            None => self.build(go, &bin)?,
        }
        make(&part.join(KEYS))?;
        let stamp = part.join(KEYS).join(self.dir);
        fs::write(&stamp, key).with_context(|| format!("writing {}", stamp.display()))
    }

    /// A directory of components that has the programs of this key.
    fn built(&self, all: &Path, key: &str) -> Result<Option<PathBuf>> {
        for entry in fs::read_dir(all).with_context(|| format!("reading {}", all.display()))? {
            let dir = entry?.path();
            let has = |program: &&str| dir.join("bin").join(program).is_file();
            // A directory from before there were keys has none.
            let known = fs::read_to_string(dir.join(KEYS).join(self.dir));
            if known.is_ok_and(|known| known == key) && self.programs().iter().all(has) {
                return Ok(Some(dir));
            }
        }
        Ok(None)
    }

    fn build(&self, go: &Go, bin: &Path) -> Result<()> {
        let to = match self.program {
            Some(program) => bin.join(program),
            None => bin.to_owned(),
        };
        let mut command = go_command(go, self.cgo);
        command
            .current_dir(manifests().join(self.dir))
            .args(["build", "-ldflags", self.ldflags, "-o"])
            .arg(to)
            .args(self.packages);
        run_step(&format!("build of {}", self.dir), &mut command)
    }
}

/// The keys of the modules, in a directory of components: another one need not build again what is the same.
const KEYS: &str = "keys";

/// Flannel's CNI plugin: the last release of it that is a Go module which can be installed as it is.
const CNI_FLANNEL: &str = "github.com/containernetworking/plugins/plugins/meta/flannel@v0.9.1";

/// What is the same in every build.
const GOFLAGS: &str = "-buildvcs=false -trimpath";

/// Where everything that can be made again is kept.
pub(super) fn cache() -> PathBuf {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let home = || env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    base.unwrap_or_else(|| home().join(".cache")).join("netpol")
}

/// The archive of images in a directory of components.
pub(super) fn images(components: &Path) -> PathBuf {
    components.join("images.tar")
}

fn manifests() -> PathBuf {
    root().join("tests/e2e/components")
}

/// The directory of the components, built if it is not there.
///
/// # Errors
/// [`preflight::Missing`] where what builds them can't be had; or a build fails.
pub(super) fn ensure() -> Result<PathBuf> {
    let go = Go::ensure(&floor()?)?;
    let all = cache().join("components");
    let dir = all.join(&key(&go)?[..16]);
    if dir.is_dir() {
        return Ok(dir);
    }
    let _lock = Lock::wait_on(&all)?;
    if dir.is_dir() {
        return Ok(dir);
    }
    let part = all.join("part");
    if part.exists() {
        fs::remove_dir_all(&part).with_context(|| format!("removing {}", part.display()))?;
    }
    debian::unpack(&manifests().join("debian.txt"), &part.join("debian"))?;
    for module in MODULES {
        module.provide(&go, &all, &part)?;
    }
    cni_flannel(&go, &part.join("bin/cni"))?;
    image::write(&part.join("bin/agnhost"), &images(&part))?;
    fs::rename(&part, &dir).with_context(|| format!("moving {} into place", part.display()))?;
    say("components", &format!("built in {}", dir.display()));
    Ok(dir)
}

/// What the components depend on, as one number.
fn key(go: &Go) -> Result<String> {
    let mut text = format!("{}\n{GOFLAGS}\n{CNI_FLANNEL}\n", go.version);
    text += &read(&manifests().join("debian.txt"))?;
    for module in MODULES {
        text += &module.key(go)?;
    }
    Ok(hex(text.as_bytes()))
}

pub(super) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// The oldest Go that builds all modules.
fn floor() -> Result<String> {
    let mut floors = Vec::new();
    for module in MODULES {
        let path = manifests().join(module.dir).join("go.mod");
        let text = read(&path)?;
        let line = text.lines().find_map(|line| line.strip_prefix("go "));
        floors.push(
            line.with_context(|| format!("{} has no line `go VERSION`", path.display()))?
                .trim()
                .to_owned(),
        );
    }
    floors.sort_by_key(|version| number(version));
    floors.pop().context("no component is built")
}

pub(super) fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))
}

fn cni_flannel(go: &Go, bin: &Path) -> Result<()> {
    let mut command = go_command(go, "0");
    command
        .args(["install", CNI_FLANNEL])
        .env("GOBIN", bin)
        .current_dir("/");
    run_step("build of Flannel's CNI plugin", &mut command)
}

fn go_command(go: &Go, cgo: &str) -> Command {
    let mut command = Command::new(&go.program);
    command
        .env("CGO_ENABLED", cgo)
        .env("GOFLAGS", GOFLAGS)
        // The compiler's garbage is rarely worth collecting: 15 % less processor time, for at most so much memory a package.
        .env("GOGC", "600")
        .env("GOMEMLIMIT", "2GiB")
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        .env_remove("GOROOT");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_newest_that_a_module_asks_for() {
        let floor = floor().expect("the manifests are there");
        for module in MODULES {
            let text = read(&manifests().join(module.dir).join("go.mod")).expect("there");
            assert!(
                text.lines()
                    .filter_map(|line| line.strip_prefix("go "))
                    .all(|own| number(own) <= number(&floor))
            );
        }
    }

    #[test]
    fn the_version_that_is_stamped_is_the_one_that_is_pinned() {
        let text = read(&manifests().join("kubernetes/go.mod")).expect("there");
        let pinned = text
            .lines()
            .find_map(|line| line.strip_prefix("require k8s.io/kubernetes v"));
        let pinned = pinned.and_then(|rest| rest.split(' ').next()).expect("a version");
        assert!(
            MODULES[0].ldflags.contains(&format!("gitVersion=v{pinned} ")),
            "{pinned}"
        );
        assert!(
            MODULES[0]
                .ldflags
                .ends_with(&format!("gitMinor={}", number(pinned)[1]))
        );
    }

    #[test]
    fn what_another_build_has_is_not_built_again() {
        let all = std::env::temp_dir().join(format!("netpol-components-{}", std::process::id()));
        let (module, old, part) = (&MODULES[1], all.join("old"), all.join("part"));
        let go = Go {
            // Nothing can be built with it.
            program: "/nowhere/go".into(),
            version: "go1.26.8".into(),
        };
        for dir in ["bin", KEYS] {
            make(&old.join(dir)).expect("made");
        }
        for program in module.programs() {
            fs::write(old.join("bin").join(program), program).expect("written");
        }
        let stamp = old.join(KEYS).join(module.dir);
        fs::write(&stamp, "another").expect("written");
        assert!(module.provide(&go, &all, &part).is_err(), "another key");
        fs::write(&stamp, module.key(&go).expect("a key")).expect("written");
        module.provide(&go, &all, &part).expect("nothing is built");
        for program in module.programs() {
            assert_eq!(read(&part.join("bin").join(program)).expect("linked"), program);
        }
        fs::remove_file(old.join("bin/ctr")).expect("removed");
        fs::remove_dir_all(&part).expect("removed");
        assert!(
            module.provide(&go, &all, &part).is_err(),
            "a program is not there"
        );
        fs::remove_dir_all(&all).expect("removed");
    }

    #[test]
    fn etcd_is_the_one_that_kubernetes_is_built_with() {
        let version = |dir: &str, module: &str| {
            let text = read(&manifests().join(dir).join("go.mod")).expect("there");
            let found = text
                .lines()
                .find_map(|line| Some(line.trim().strip_prefix(module)?.to_owned()));
            found.expect("a version")
        };
        assert_eq!(
            version("etcd", "go.etcd.io/etcd/server/v3 v"),
            version("kubernetes", "go.etcd.io/etcd/client/v3 v")
        );
    }

    #[test]
    fn another_go_is_another_build() {
        let go = |version: &str| Go {
            program: "go".into(),
            version: version.into(),
        };
        let key = |version: &str| key(&go(version)).expect("the manifests are there");
        assert_eq!(key("go1.26.8"), key("go1.26.8"));
        assert_ne!(key("go1.26.8"), key("go1.26.9"));
    }
}
