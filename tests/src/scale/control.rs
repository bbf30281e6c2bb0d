//! The control plane: `cargo xtask cluster up --nodes 0 --hold`, which ends with whoever holds its standard input.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::Ipv4Addr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// Which control plane.
#[derive(Clone, Debug)]
pub enum Plane {
    /// One of this name, that ends with who started it.
    New(String),
    /// The one of this directory, which stays.
    There(PathBuf),
}

/// etcd and an API server; dropping it removes them, if it has started them.
#[derive(Debug)]
pub(super) struct ControlPlane {
    child: Option<Child>,
    /// For `system:masters`.
    pub(super) kubeconfig: PathBuf,
    /// The process whose network namespace has the bridge `br0`, which carries nodes.
    pub(super) init: i32,
    base: Ipv4Addr,
    pub(super) logs: PathBuf,
}

/// What is used of `cluster.json`.
#[derive(Deserialize)]
struct Record {
    kubeconfig: PathBuf,
    network: Network,
    init: Process,
}

#[derive(Deserialize)]
struct Network {
    base: Ipv4Addr,
}

#[derive(Deserialize)]
struct Process {
    pid: i32,
}

impl ControlPlane {
    /// Waits until the API server is ready.
    ///
    /// # Errors
    /// It does not come up: what it says is on standard error.
    pub(super) fn start(xtask: &Path, plane: &Plane) -> Result<Self> {
        let (child, directory) = match plane {
            Plane::New(name) => {
                let (child, directory) = raise(xtask, name)?;
                (Some(child), directory)
            }
            Plane::There(directory) => (None, directory.clone()),
        };
        let file = directory.join("cluster.json");
        let text = fs::read(&file).with_context(|| {
            let name = directory.file_name().unwrap_or_default().display();
            format!(
                "reading {}: no such control plane; start it with `cargo xtask cluster up --nodes 0 --name {name}`",
                file.display()
            )
        })?;
        let record: Record = serde_json::from_slice(&text).context("reading cluster.json")?;
        Ok(Self {
            child,
            kubeconfig: record.kubeconfig,
            init: record.init.pid,
            base: record.network.base,
            logs: directory.join("logs"),
        })
    }

    /// The address of a machine beside the API server, which is 2.
    pub(super) fn address(&self, machine: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.base.octets();
        Ipv4Addr::new(a, b, c, machine)
    }
}

fn raise(xtask: &Path, name: &str) -> Result<(Child, PathBuf)> {
    let mut child = Command::new(xtask)
        .args(["cluster", "up", "--nodes", "0", "--hold", "--name", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Ctrl-C is for this process, which lets go of it when it has removed what stands on it.
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", xtask.display()))?;
    let stdout = child.stdout.take().context("no standard output")?;
    let mut directory = String::new();
    BufReader::new(stdout)
        .read_line(&mut directory)
        .context("reading what xtask says")?;
    if directory.is_empty() {
        let _ended = child.wait();
    }
    ensure!(
        !directory.is_empty(),
        "the control plane did not come up, see above"
    );
    Ok((child, PathBuf::from(directory.trim())))
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.stdin.take());
            let _ended = child.wait();
        }
    }
}
