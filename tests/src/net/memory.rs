//! A limit of memory for a process, as a container has one.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{Owner, wait_until};

/// Where cgroups of the memory controller are: version 1, version 2.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"];

/// A cgroup that limits memory; dropping it removes it, once its processes have ended.
#[derive(Debug)]
pub struct MemoryGroup {
    directory: PathBuf,
    /// Its files: limit, usage, how often somebody was killed.
    files: [&'static str; 3],
}

/// Where this machine lets us make one; and its files.
fn root() -> Option<(&'static str, [&'static str; 3])> {
    if Path::new(ROOTS[0]).join("memory.limit_in_bytes").exists() {
        let files = [
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "memory.oom_control",
        ];
        return Some((ROOTS[0], files));
    }
    let enabled = fs::read_to_string(Path::new(ROOTS[1]).join("cgroup.subtree_control")).ok()?;
    let files = ["memory.max", "memory.current", "memory.events"];
    enabled
        .split_whitespace()
        .any(|controller| controller == "memory")
        .then_some((ROOTS[1], files))
}

impl MemoryGroup {
    /// Why there can be none here.
    #[must_use]
    pub fn lacks() -> Option<&'static str> {
        root().is_none().then_some("no cgroups here that limit memory")
    }

    /// A group without limit, and removes those of dead owners.
    ///
    /// # Errors
    /// Where there are none, or this process may not make them.
    pub fn new() -> Result<Self> {
        const KIND: &str = "nptest";
        let (root, files) = root().context("no cgroups that limit memory")?;
        for entry in fs::read_dir(root)
            .context("read the cgroups")?
            .filter_map(Result::ok)
        {
            if Owner::is_dead(KIND, &entry.file_name().to_string_lossy()) {
                let _busy = fs::remove_dir(entry.path());
            }
        }
        let directory = Path::new(root).join(format!("{}-memory", Owner::this_process()?.prefix(KIND)));
        fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        Ok(Self { directory, files })
    }

    fn file(&self, file: usize) -> PathBuf {
        self.directory.join(self.files[file])
    }

    /// From now on it may have so many bytes; the kernel reclaims what it can.
    ///
    /// # Errors
    /// Where the group has more that can't be reclaimed, or the kernel refuses.
    pub fn limit(&self, bytes: u64) -> Result<()> {
        let file = self.file(0);
        fs::write(&file, bytes.to_string()).with_context(|| format!("write {bytes} to {}", file.display()))
    }

    /// How many bytes it has.
    ///
    /// # Errors
    /// Where the kernel's file can't be read.
    pub fn usage(&self) -> Result<u64> {
        let file = self.file(1);
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        Ok(text.trim().parse()?)
    }

    /// How many of its processes the kernel has killed.
    ///
    /// # Errors
    /// Where the kernel's file can't be read.
    pub fn kills(&self) -> Result<u64> {
        let file = self.file(2);
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(count.context("the kernel does not count kills")?.trim().parse()?)
    }

    /// A script below `directory` that starts `binary` in the group.
    ///
    /// # Errors
    /// Where it can't be written.
    pub fn starter(&self, directory: &Path, binary: &Path) -> Result<PathBuf> {
        let path = directory.join("in-group");
        let script = format!(
            "#!/bin/sh\necho $$ > {}/cgroup.procs && exec {} \"$@\"\n",
            self.directory.display(),
            fs::canonicalize(binary)?.display()
        );
        fs::write(&path, script).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _given_up = wait_until(Duration::from_secs(2), || {
            Ok(fs::remove_dir(&self.directory).is_ok())
        });
    }
}
