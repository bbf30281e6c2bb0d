//! What a verb needs of the machine and can't install: said in full before anything is changed.

use std::{fmt, fs, path::Path};

use anyhow::Result;

/// The oldest kernel on which the programs load.
const KERNEL_FLOOR: (u32, u32) = (5, 10);

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

/// What loading programs and making network namespaces needs: root, kernel, BTF, bpffs.
pub(crate) fn kernel() -> Vec<String> {
    let mut missing = Vec::new();
    if !is_root() {
        missing.push("not root: loading eBPF programs and making network namespaces need it; run the same command with sudo".into());
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if kernel_version(&release).is_none_or(|version| version < KERNEL_FLOOR) {
        missing.push(format!(
            "kernel {} is older than {}.{}: boot a newer one (Debian: apt-get install linux-image-amd64)",
            release.trim(),
            KERNEL_FLOOR.0,
            KERNEL_FLOOR.1
        ));
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        missing.push(
            "no BTF (/sys/kernel/btf/vmlinux): boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (every Debian, Ubuntu and Fedora kernel since 2021 is), and mount /sys".into(),
        );
    }
    if !supports_bpffs(&fs::read_to_string("/proc/filesystems").unwrap_or_default()) {
        missing.push(
            "no bpffs: the kernel needs CONFIG_BPF_SYSCALL=y (\"bpf\" must be in /proc/filesystems)".into(),
        );
    }
    missing
}

/// Whether this process may install packages.
pub(crate) fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
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

/// The distribution, from `/etc/os-release`: (`ID`, `VERSION_ID`).
pub(crate) fn distribution() -> (String, String) {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    (os_release(&text, "ID"), os_release(&text, "VERSION_ID"))
}

fn os_release(text: &str, key: &str) -> String {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_default().trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

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
