//! The cgroups of a cluster: one at the root of every hierarchy, below it one a node, and below that what kubelet and runc make.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::residue::LIMIT;

/// Where cgroups are mounted.
const TOP: &str = "/sys/fs/cgroup";

/// What a cpuset of version 1 needs before a process can be in it.
const CPUSET: &[&str] = &["cpuset.cpus", "cpuset.mems"];

/// The name of a cluster's cgroup.
fn cluster(name: &str) -> String {
    format!("netpol-cluster-{name}")
}

/// A node's cgroup, as kubelet is told it.
pub(super) fn of_node(name: &str, node: &str) -> String {
    format!("/{}/{node}", cluster(name))
}

/// Makes a node's cgroup in every hierarchy, as kubelet insists on finding it there.
///
/// # Errors
/// One can't be made.
pub(super) fn create(name: &str, node: &str) -> Result<()> {
    for top in hierarchies(Path::new(TOP))? {
        let mut path = top.clone();
        for part in [&cluster(name), node] {
            share_controllers(&path);
            let parent = path.clone();
            path.push(part);
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("creating the cgroup {}", path.display()));
                }
                _ => {}
            }
            copy_cpuset(&parent, &path)?;
        }
        share_controllers(&path);
    }
    Ok(())
}

/// The root of every hierarchy: one of version 2, or several of version 1 (and names that are links to others).
fn hierarchies(top: &Path) -> Result<Vec<PathBuf>> {
    if top.join("cgroup.controllers").exists() {
        return Ok(vec![top.to_owned()]);
    }
    let entries = fs::read_dir(top).with_context(|| format!("reading {}", top.display()))?;
    let mut found: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    Ok(found)
}

/// Version 2: those below may use every controller that this one may. None of these cgroups has a process of its own, which
/// would forbid it.
fn share_controllers(path: &Path) {
    let Ok(controllers) = fs::read_to_string(path.join("cgroup.controllers")) else {
        return;
    };
    let shared = path.join("cgroup.subtree_control");
    for controller in controllers.split_whitespace() {
        // Some can't be had (cpu beside real-time processes); kubelet names those that it misses.
        let _ = fs::write(&shared, format!("+{controller}"));
    }
}

/// Version 1: a new cpuset has no processors and no memory.
fn copy_cpuset(parent: &Path, path: &Path) -> Result<()> {
    for file in CPUSET {
        let (from, to) = (parent.join(file), path.join(file));
        // Version 2 has files of these names too, where empty means all.
        if from.exists() && to.exists() && !path.join("cgroup.controllers").exists() {
            let value = fs::read_to_string(&from).with_context(|| format!("reading {}", from.display()))?;
            fs::write(&to, value.trim()).with_context(|| format!("writing {}", to.display()))?;
        }
    }
    Ok(())
}

/// Removes the cluster's cgroup from every hierarchy, with all below it.
///
/// # Errors
/// One can't be removed: a process is in it.
pub(super) fn remove(name: &str) -> Result<()> {
    for top in hierarchies(Path::new(TOP))? {
        remove_tree(&top.join(cluster(name)))?;
    }
    Ok(())
}

/// The last processes may still be ending.
fn remove_tree(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    let start = Instant::now();
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if start.elapsed() > LIMIT => {
                return Err(error).with_context(|| format!("removing the cgroup {}", path.display()));
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_is_one_hierarchy_and_version_1_several() {
        let top = std::env::temp_dir().join(format!("netpol-cgroups-{}", std::process::id()));
        fs::create_dir_all(top.join("cpu")).expect("made");
        fs::create_dir_all(top.join("memory")).expect("made");
        let names = || hierarchies(&top).expect("read");
        assert_eq!(names(), [top.join("cpu"), top.join("memory")]);
        fs::write(top.join("cgroup.controllers"), "cpu memory").expect("written");
        assert_eq!(names(), std::slice::from_ref(&top));
        fs::remove_dir_all(&top).expect("removed");
    }

    #[test]
    fn every_controller_is_shared() {
        let path = std::env::temp_dir().join(format!("netpol-controllers-{}", std::process::id()));
        fs::create_dir_all(&path).expect("made");
        share_controllers(&path);
        assert!(!path.join("cgroup.subtree_control").exists());
        fs::write(path.join("cgroup.controllers"), "memory\n").expect("written");
        share_controllers(&path);
        let shared = fs::read_to_string(path.join("cgroup.subtree_control")).expect("read");
        assert_eq!(shared, "+memory");
        fs::remove_dir_all(&path).expect("removed");
    }
}
