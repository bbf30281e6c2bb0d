//! `cargo xtask cluster`: a real Kubernetes in network namespaces of this machine, without Docker.
//!
//! `up` has four processes beside the components: itself, which shows what happens and ends; the *supervisor*, which makes
//! the link to this machine and removes everything in the end; *init*, the first process of the cluster's PID
//! namespace, with which every other one dies; and the *builder*, which starts the components and ends.

mod addresses;
mod builder;
mod cgroups;
mod components;
mod configs;
mod control;
mod daemon;
mod debian;
mod golang;
mod hold;
mod image;
mod init;
mod node;
mod pki;
mod record;
mod residue;
mod show;
mod supervisor;
mod up;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::preflight::{self, Machine};

/// `cargo xtask cluster`
#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build what is not built yet and start a cluster; ends when its nodes are ready.
    Up(Up),
    /// End a cluster and remove everything of it.
    Down(Which),
    /// Nodes, components and where their logs are.
    Status(Which),
    /// Print the path of the kubeconfig.
    Kubeconfig {
        #[command(flatten)]
        which: Which,
        /// Print the file itself.
        #[arg(long)]
        raw: bool,
    },
    /// Import a docker or OCI archive into the container runtime of every node.
    Load {
        /// The archive.
        image: PathBuf,
        #[command(flatten)]
        which: Which,
    },
    /// Run a command inside a node: its network, its mounts, its host name.
    Node {
        /// The node: n1, n2, …
        node: String,
        #[command(flatten)]
        which: Which,
        /// The command and its arguments, after `--`.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run kubectl on the cluster.
    Kubectl {
        #[command(flatten)]
        which: Which,
        /// Its arguments, after `--`.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Build or fetch the components, and start nothing.
    Build,
    #[command(hide = true)]
    Supervise {
        /// A `Plan` as JSON.
        plan: String,
    },
    #[command(hide = true)]
    Init {
        /// The directory of the cluster.
        dir: PathBuf,
    },
    #[command(hide = true)]
    Builder {
        /// The directory of the cluster.
        dir: PathBuf,
    },
    #[command(hide = true)]
    Hold {
        /// The directory of the cluster.
        dir: PathBuf,
        /// The node.
        node: String,
    },
}

/// Which cluster.
#[derive(ClapArgs)]
pub(crate) struct Which {
    /// The cluster's name; up to 11 lower-case letters, digits and hyphens.
    #[arg(long, default_value = "netpol", value_parser = parse_name)]
    name: String,
}

/// `cargo xtask cluster up`
#[derive(ClapArgs)]
pub(crate) struct Up {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    options: Options,
    /// Stay, and end the cluster with this command, however it ends: by Ctrl-C or at the end of its standard input.
    #[arg(long)]
    hold: bool,
}

/// What a cluster is made of.
#[derive(ClapArgs, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Options {
    /// Nodes; with 0, etcd and the API server are all there is, and the API server takes objects as they come.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=32))]
    nodes: u8,
    /// How kube-proxy does Services.
    #[arg(long, value_name = "MODE", default_value = "iptables")]
    proxy: Proxy,
    /// Who gives pods their network.
    #[arg(long, value_name = "WHO", default_value = "flannel")]
    cni: Cni,
    /// How Flannel brings packets from node to node.
    #[arg(long, value_name = "BACKEND", default_value = "vxlan")]
    flannel: Backend,
    /// IPv6 beside IPv4, for nodes, pods and Services.
    #[arg(long)]
    dual_stack: bool,
}

/// kube-proxy's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Proxy {
    /// Rules of iptables.
    Iptables,
    /// Rules of nftables.
    Nftables,
}

/// Who connects pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cni {
    /// Flannel: a bridge a node.
    Flannel,
    /// The ptp plugin (a veth with a host route a pod) and static routes between nodes, as kindnet does it.
    Ptp,
}

/// Flannel's backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Backend {
    /// A VXLAN device.
    Vxlan,
    /// A route to the other node.
    HostGw,
}

/// A cluster's name is part of the name of a link, which has 15 bytes: `npc-` and this.
pub(crate) fn parse_name(name: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 11 || !name.chars().all(fine) || name.starts_with('-') {
        return Err(
            "a name has 1 to 11 lower-case letters, digits and hyphens, and begins with no hyphen".into(),
        );
    }
    Ok(name.to_owned())
}

/// Everything that a cluster needs is made ready; nothing is started.
///
/// # Errors
/// [`crate::preflight::Missing`] where something can't be had.
pub(crate) fn prepare() -> Result<()> {
    up::prepare().map(drop)
}

/// Where the cluster `name` is, if it is.
pub(crate) fn directory(name: &str) -> PathBuf {
    record::dir(name)
}

/// The verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    // Also to look: the directory of a cluster holds keys, and is root's alone.
    preflight::require(Machine::this().lacks_to_run())?;
    match &args.verb {
        Verb::Up(args) => up::run(args),
        Verb::Down(which) => show::down(&which.name),
        Verb::Status(which) => show::status(&which.name),
        Verb::Kubeconfig { which, raw } => show::kubeconfig(&which.name, *raw),
        Verb::Load { image, which } => show::load(&which.name, image),
        Verb::Node { node, which, command } => show::node(&which.name, node, command),
        Verb::Kubectl { which, command } => show::kubectl(&which.name, command),
        Verb::Build => {
            up::prepare()?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Supervise { plan } => supervisor::run(plan),
        Verb::Init { dir } => init::run(dir),
        Verb::Builder { dir } => builder::run(dir),
        Verb::Hold { dir, node } => hold::run(dir, node),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_into_that_of_a_link() {
        assert_eq!(parse_name("netpol"), Ok("netpol".into()));
        assert_eq!(parse_name("abcdefghij1"), Ok("abcdefghij1".into()));
        for bad in ["", "abcdefghijkl", "A", "a/b", "..", "-a", "a b"] {
            assert!(parse_name(bad).is_err(), "{bad:?}");
        }
    }
}
