//! Components that are Debian's packages: unpacked beside those that are built, and not installed.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{
    components::{make, read},
    daemon::call,
};
use crate::{preflight, ui::say};

/// Downloads the packages of a list and unpacks them.
///
/// # Errors
/// [`preflight::Missing`] where they can't be had.
pub(super) fn unpack(list: &Path, to: &Path) -> Result<()> {
    let text = read(list)?;
    let packages: Vec<&str> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    make(to)?;
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
pub(super) fn versions(components: &Path) -> String {
    // Not there where the components were built before versions were written down.
    let known = fs::read_to_string(components.join("debian").join(VERSIONS));
    known.unwrap_or_else(|_| "not written down when they were unpacked".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_has_the_version_of_its_file() {
        let read = |stem| version(stem).expect("a version");
        assert_eq!(read("runc_1.1.5+ds1-1+deb12u1_amd64"), "runc 1.1.5+ds1-1+deb12u1");
        assert_eq!(read("ipset_1%3a7.17-1_arm64"), "ipset 1:7.17-1");
        assert_eq!(version("runc"), None);
    }
}
