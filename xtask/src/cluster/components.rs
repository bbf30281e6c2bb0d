//! The components: what `tests/e2e/components` pins is built with Go, the rest are Debian's packages, unpacked beside. They
//! are kept outside of the checkout, so that several checkouts share them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    daemon::call,
    golang::{Go, number},
    image::{self, hex},
    record::Lock,
};
use crate::{
    preflight,
    ui::{root, run_step, say},
};

/// One Go module that pins components.
#[derive(Debug)]
struct Module {
    /// Below `tests/e2e/components`.
    dir: &'static str,
    packages: &'static [&'static str],
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
        ldflags: "-s -w",
        cgo: "0",
    },
    Module {
        dir: "flannel",
        packages: &["github.com/flannel-io/flannel"],
        ldflags: "-s -w",
        cgo: "1",
    },
];

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
    debian(&part.join("debian"))?;
    build(&go, &part.join("bin"))?;
    image::write(&part.join("bin/agnhost"), &images(&part))?;
    fs::rename(&part, &dir).with_context(|| format!("moving {} into place", part.display()))?;
    say("components", &format!("built in {}", dir.display()));
    Ok(dir)
}

/// What the components depend on, as one number.
fn key(go: &Go) -> Result<String> {
    let mut text = format!("{}\n{GOFLAGS}\n{CNI_FLANNEL}\n{MODULES:?}\n", go.version);
    text += &read(&manifests().join("debian.txt"))?;
    for module in MODULES {
        for file in ["go.mod", "go.sum"] {
            text += &read(&manifests().join(module.dir).join(file))?;
        }
    }
    Ok(hex(text.as_bytes()))
}

fn read(path: &Path) -> Result<String> {
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

fn build(go: &Go, bin: &Path) -> Result<()> {
    for module in MODULES {
        fs::create_dir_all(bin).with_context(|| format!("creating {}", bin.display()))?;
        let mut command = go_command(go, module.cgo);
        command
            .current_dir(manifests().join(module.dir))
            .args(["build", "-ldflags", module.ldflags, "-o"])
            .arg(bin)
            .args(module.packages);
        run_step(&format!("build of {}", module.dir), &mut command)?;
    }
    let mut command = go_command(go, "0");
    command
        .args(["install", CNI_FLANNEL])
        .env("GOBIN", bin.join("cni"))
        .current_dir("/");
    run_step("build of Flannel's CNI plugin", &mut command)
}

fn go_command(go: &Go, cgo: &str) -> Command {
    let mut command = Command::new(&go.program);
    command
        .env("CGO_ENABLED", cgo)
        .env("GOFLAGS", GOFLAGS)
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        .env_remove("GOROOT");
    command
}

/// Debian's packages of `debian.txt`, unpacked and not installed: etcd's package would start a server.
fn debian(to: &Path) -> Result<()> {
    let text = read(&manifests().join("debian.txt"))?;
    let packages: Vec<&str> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    let download = || {
        let mut apt = Command::new("apt-get");
        // The cache need not be readable for apt's own user.
        apt.args(["-q", "-o", "APT::Sandbox::User=root", "download"])
            .args(&packages)
            .current_dir(to);
        call(&mut apt)
    };
    let downloaded = download().or_else(|_| {
        call(Command::new("apt-get").args(["-q", "update"]))?;
        download()
    });
    if let Err(error) = downloaded {
        let missing = format!(
            "Debian packages can't be downloaded ({}): connect this machine, or give /etc/apt/sources.list.d a mirror of Debian 12 that can be \
             reached. {error:#}",
            packages.join(" ")
        );
        return Err(preflight::Missing(vec![missing]).into());
    }
    let mut versions = Vec::new();
    for entry in fs::read_dir(to).with_context(|| format!("reading {}", to.display()))? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            call(Command::new("dpkg").arg("-x").args([&file, to]))?;
            fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
            versions.extend(file.file_stem().and_then(|stem| version(stem.to_str()?)));
        }
    }
    versions.sort();
    let versions = versions.join(", ");
    let stamp = to.join(VERSIONS);
    fs::write(&stamp, &versions).with_context(|| format!("writing {}", stamp.display()))?;
    say("Debian packages", &format!("unpacked {versions}"));
    Ok(())
}

/// Which versions apt delivered: `debian.txt` names none.
const VERSIONS: &str = "versions";

/// `runc 1.1.5+ds1-1` of `runc_1.1.5%2bds1-1_amd64`
fn version(stem: &str) -> Option<String> {
    let mut parts = stem.split('_');
    let (name, version) = (parts.next()?, parts.next()?);
    Some(format!(
        "{name} {}",
        version.replace("%3a", ":").replace("%2b", "+")
    ))
}

/// The versions of Debian's packages in a directory of components.
pub(super) fn debian_versions(components: &Path) -> String {
    // Not there where the components were built before versions were written down.
    let known = fs::read_to_string(components.join("debian").join(VERSIONS));
    known.unwrap_or_else(|_| "not written down when they were unpacked".to_owned())
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
    fn a_package_has_the_version_of_its_file() {
        let read = |stem| version(stem).expect("a version");
        assert_eq!(read("runc_1.1.5+ds1-1+deb12u1_amd64"), "runc 1.1.5+ds1-1+deb12u1");
        assert_eq!(read("ipset_1%3a7.17-1_arm64"), "ipset 1:7.17-1");
        assert_eq!(version("runc"), None);
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
