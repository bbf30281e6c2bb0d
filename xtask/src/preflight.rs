//! What a verb needs of the machine and can't install: said in full before anything is changed.

use std::{env, fmt, fs, path::Path};

use anyhow::Result;

/// The oldest kernel on which the programs load.
const KERNEL_FLOOR: (u32, u32) = (5, 10);

/// What namespaces, mounts and programs take, by number in linux/capability.h.
const CAPABILITIES: &[(u32, &str)] = &[(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

/// Requirements that are not met; the verb ends with exit code 2.
#[derive(Debug)]
pub(crate) struct Missing(pub(crate) Vec<String>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "can't start, and nothing was changed:")?;
        for what in &self.0 {
            write!(f, "\n  - {what}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Missing {}

/// Fails with [`Missing`] unless the list is empty.
///
/// # Errors
/// Something is missing.
pub(crate) fn require(missing: Vec<String>) -> Result<()> {
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Missing(missing).into())
    }
}

/// What requirements are held against.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// The effective user is root.
    root: bool,
    /// `/proc/self/status`, for the effective capabilities.
    status: String,
    /// `/proc/self/uid_map`
    uid_map: String,
    /// `uname -r`
    release: String,
    /// The kernel describes its own types.
    btf: bool,
    /// `/proc/filesystems`
    filesystems: String,
    /// `/etc/os-release`
    os_release: String,
}

impl Machine {
    /// This one.
    pub(crate) fn this() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            root: nix::unistd::Uid::effective().is_root(),
            status: text("/proc/self/status"),
            uid_map: text("/proc/self/uid_map"),
            release: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            filesystems: text("/proc/filesystems"),
            os_release: text("/etc/os-release"),
        }
    }

    /// What is missing to load programs and make network namespaces: rights, kernel, BTF, bpffs.
    pub(crate) fn lacks_to_run(&self) -> Vec<String> {
        let mut missing = Vec::new();
        missing.extend(self.lacks_rights());
        if kernel_version(&self.release).is_none_or(|version| version < KERNEL_FLOOR) {
            missing.push(format!(
                "kernel {} is older than {}.{}: boot a newer one (Debian: apt-get install linux-image-amd64, then reboot)",
                self.release, KERNEL_FLOOR.0, KERNEL_FLOOR.1
            ));
        }
        if !self.btf {
            missing.push(
                "no BTF (/sys/kernel/btf/vmlinux): boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (those of Debian, Ubuntu and Fedora are, \
                 since 2021), and have sysfs mounted at /sys"
                    .into(),
            );
        }
        if !supports_bpffs(&self.filesystems) {
            missing.push(
                "no bpffs: boot a kernel built with CONFIG_BPF_SYSCALL=y (\"bpf\" must be in /proc/filesystems)".into(),
            );
        }
        missing
    }

    fn lacks_rights(&self) -> Option<String> {
        let what = "loading eBPF programs and making network namespaces";
        if !self.root {
            return Some(format!("not root: {what} need it; {}", as_root()));
        }
        // Root of a user namespace has all capabilities, but none that counts for eBPF.
        let whole = ["0", "0", "4294967295"];
        if !self.uid_map.is_empty() && !self.uid_map.split_whitespace().eq(whole) {
            return Some(format!(
                "root of a user namespace only: {what} need the machine's own root; leave the rootless container or `unshare`"
            ));
        }
        let absent = absent_capabilities(&self.status);
        (!absent.is_empty()).then(|| {
            format!(
                "root without {}: {what} need it; start the container with --privileged",
                absent.join(" and ")
            )
        })
    }

    /// What keeps `setup` from installing the Debian packages that are `absent`: another distribution, or no right to.
    pub(crate) fn lacks_to_install(&self, absent: &[String]) -> Option<String> {
        if absent.is_empty() {
            return None;
        }
        let list = absent.join(" ");
        let (id, version) = (
            os_release(&self.os_release, "ID"),
            os_release(&self.os_release, "VERSION_ID"),
        );
        if (&*id, &*version) != ("debian", "12") {
            let name = if id.is_empty() {
                "an unknown distribution".to_owned()
            } else {
                format!("{id} {version}")
            };
            return Some(format!(
                "this is {}; setup installs packages on Debian 12 only. Here, provide: a rustup nightly with the core source \
                 (rustup toolchain install nightly --component rust-src), a bpf-linker in PATH whose LLVM is not older than that \
                 nightly's (cargo install bpf-linker; it must link libLLVM dynamically, so that its version can be seen), and, for the tests, \
                 ip, nft, iptables, conntrack and tcpdump. Debian's names of what is not here: {list}",
                name.trim_end()
            ));
        }
        (!self.root).then(|| {
            format!(
                "packages are missing and only root can install them: sudo apt-get install {list}; or {}",
                as_root()
            )
        })
    }
}

/// How to start the same verb as root: sudo's own PATH knows no rustup.
fn as_root() -> String {
    let arguments: Vec<String> = env::args().skip(1).collect();
    format!(
        "run `sudo env \"PATH=$PATH\" cargo xtask {}`",
        arguments.join(" ")
    )
}

/// Those of [`CAPABILITIES`] that are not effective; none where the kernel does not say.
fn absent_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(u64::MAX);
    CAPABILITIES
        .iter()
        .filter(|(number, _)| effective & (1 << number) == 0)
        .map(|(_, name)| *name)
        .collect()
}

/// `6.1.0-18-amd64` → (6, 1)
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn supports_bpffs(filesystems: &str) -> bool {
    filesystems
        .lines()
        .any(|line| line.split_whitespace().last() == Some("bpf"))
}

fn os_release(text: &str, key: &str) -> String {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian() -> Machine {
        Machine {
            root: true,
            status: "Name:\txtask\nCapEff:\t000001ffffffffff\n".into(),
            uid_map: "         0          0 4294967295\n".into(),
            release: "6.1.0-18-amd64".into(),
            btf: true,
            filesystems: "nodev\tsysfs\nnodev\tbpf\n\text4\n".into(),
            os_release: "PRETTY_NAME=\"Debian\"\nVERSION_ID=\"12\"\nID=debian\n".into(),
        }
    }

    /// Exactly one thing is missing, and the line about it says all of `words`.
    fn one(missing: &[String], words: &[&str]) {
        assert_eq!(missing.len(), 1, "{missing:?}");
        for word in words {
            assert!(missing[0].contains(word), "{word} is not in: {}", missing[0]);
        }
    }

    #[test]
    fn a_debian_with_root_lacks_nothing() {
        assert_eq!(debian().lacks_to_run(), Vec::<String>::new());
        assert_eq!(debian().lacks_to_install(&["tcpdump".into()]), None);
    }

    #[test]
    fn each_thing_that_is_missing_is_named_with_its_remedy() {
        let machine = |change: &dyn Fn(&mut Machine)| {
            let mut machine = debian();
            change(&mut machine);
            machine.lacks_to_run()
        };
        one(&machine(&|m| m.root = false), &["not root", "sudo env"]);
        one(
            &machine(&|m| m.uid_map = "0 1000 1".into()),
            &["user namespace", "leave"],
        );
        one(
            &machine(&|m| m.status = "CapEff:\t00000000a80425fb\n".into()),
            &["CAP_NET_ADMIN and CAP_SYS_ADMIN", "--privileged"],
        );
        one(
            &machine(&|m| m.release = "5.4.0-150".into()),
            &["5.4.0-150", "5.10", "linux-image"],
        );
        one(&machine(&|m| m.btf = false), &["CONFIG_DEBUG_INFO_BTF=y"]);
        one(&machine(&|m| m.filesystems.clear()), &["CONFIG_BPF_SYSCALL=y"]);
        let everything = machine(&|m| {
            (m.root, m.btf) = (false, false);
            m.release.clear();
            m.filesystems.clear();
        });
        assert_eq!(everything.len(), 4, "all at once, not one a run: {everything:?}");
    }

    #[test]
    fn packages_are_installed_on_debian_12_by_root() {
        let absent = ["llvm-22-dev".to_owned(), "tcpdump".to_owned()];
        let mut machine = debian();
        machine.root = false;
        let said = Vec::from_iter(machine.lacks_to_install(&absent));
        one(&said, &["apt-get install llvm-22-dev tcpdump", "sudo"]);
        assert_eq!(
            machine.lacks_to_install(&[]),
            None,
            "nothing to install needs no right"
        );
        for (text, name) in [
            ("ID=fedora\nVERSION_ID=42\n", "this is fedora 42;"),
            ("ID=debian\nVERSION_ID=\"13\"\n", "this is debian 13;"),
            ("ID=arch\n", "this is arch;"),
            ("", "this is an unknown distribution;"),
        ] {
            machine.os_release = text.into();
            let said = Vec::from_iter(machine.lacks_to_install(&absent));
            one(
                &said,
                &[
                    name,
                    "rustup toolchain install nightly",
                    "cargo install bpf-linker",
                    "llvm-22-dev tcpdump",
                ],
            );
        }
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(kernel_version("5.10.0-30-cloud-amd64\n"), Some((5, 10)));
        assert_eq!(kernel_version("6.18.44-fc-v657"), Some((6, 18)));
        assert!(kernel_version("5.9.1").is_some_and(|v| v < KERNEL_FLOOR));
        assert_eq!(kernel_version("Darwin"), None);
    }

    #[test]
    fn os_release_keys_are_whole() {
        let text = "PRETTY_NAME=\"Debian\"\nVERSION_ID=\"12\"\nID=debian\n";
        assert_eq!(
            (os_release(text, "ID"), os_release(text, "VERSION_ID")),
            ("debian".into(), "12".into())
        );
    }

    #[test]
    fn bpffs_is_a_word() {
        assert!(supports_bpffs("nodev\tsysfs\nnodev\tbpf\n"));
        assert!(!supports_bpffs("nodev\tbpfx\n"));
    }
}
