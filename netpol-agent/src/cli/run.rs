//! `run`: enforces for the pods of one node.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use clap::ValueEnum;
use netpol_common::ABI;

use super::{BadInput, Exit};
use crate::{
    agent::{self, source::From},
    datapath::{
        Options, UnknownPods,
        attach::Mode,
        object::{Pins, sizable},
        settings::{QUOTA, Settings, TIMEOUTS},
    },
    source::{kubernetes::Access, parse::closest},
};

/// Where everything is pinned unless `--pin` says otherwise.
pub(super) const PIN: &str = "/sys/fs/bpf/netpol";
/// Where the agent keeps its files unless `--state` says otherwise.
pub(super) const STATE: &str = "/run/netpol";

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file of settings: YAML, its keys the long names of these flags. Flags and environment outrank it.
    #[arg(long, env = "NETPOL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// A directory of YAML and JSON manifests instead of an API server, read with all its subdirectories.
    #[arg(long, env = "NETPOL_MANIFESTS", value_name = "DIR")]
    manifests: Option<PathBuf>,

    /// How to reach the API server from outside of its cluster; without it and --manifests, the cluster that this pod is of.
    #[arg(long, env = "NETPOL_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Which context of the kubeconfig, if not its current one.
    #[arg(long, env = "NETPOL_CONTEXT", value_name = "NAME")]
    context: Option<String>,

    /// The node whose pods are enforced here: `spec.nodeName` of its pods.
    #[arg(long, env = "NETPOL_NODE", value_name = "NAME", value_parser = node_name)]
    node: String,

    /// Where to serve /metrics, /healthz and /readyz: `ADDRESS:PORT`, `[::]:PORT` for all addresses of both families.
    #[arg(long, env = "NETPOL_LISTEN", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,

    /// Remove the taint netpol.io/agent-not-ready from this node once policy is in force on it.
    #[arg(long, env = "NETPOL_REMOVE_TAINT")]
    remove_taint: bool,

    /// Where to pin maps, programs and links, on a BPF file system. One for each node of a machine.
    #[arg(long, env = "NETPOL_PIN", value_name = "DIR", default_value = PIN)]
    pin: PathBuf,

    /// Where to write the agent's report for `status`, and which pod has which index.
    #[arg(long, env = "NETPOL_STATE", value_name = "DIR", default_value = STATE)]
    state: PathBuf,

    /// Bring the kernel up to date and end; what is attached stays in force.
    #[arg(long, env = "NETPOL_ONCE")]
    once: bool,

    /// How long to wait for another agent to end that holds the pins, as on an update; 0 refuses at once.
    #[arg(
        long,
        env = "NETPOL_WAIT_FOR_LOCK",
        value_name = "SECONDS",
        default_value_t = 60
    )]
    wait_for_lock: u64,

    /// How to attach programs.
    #[arg(long, env = "NETPOL_ATTACH", value_name = "HOW", default_value = "auto")]
    attach: Attach,

    /// What a pod's device gets until its pod is known.
    #[arg(
        long,
        env = "NETPOL_UNKNOWN_PODS",
        value_name = "WHAT",
        default_value = "deny"
    )]
    unknown_pods: UnknownPods,

    /// Judge the node's own packets to its pods, too; the API always allows them.
    #[arg(long, env = "NETPOL_POLICE_NODE")]
    police_node: bool,

    /// The container runtime's CNI results: they say which veth is which pod's. Where `DIR/../results` is not there,
    /// `DIR/../cache/results` is read (cri-dockerd).
    #[arg(
        long,
        env = "NETPOL_CNI_CACHE",
        value_name = "DIR",
        default_value = "/var/lib/cni/results"
    )]
    cni_cache: PathBuf,

    /// A device that leads outside, whatever it looks like; a trailing `*` stands for any rest. Repeatable.
    #[arg(long, env = "NETPOL_OUTSIDE", value_name = "DEVICE", value_delimiter = ',')]
    outside: Vec<String>,

    /// Pods that may send from any address and speak tunnel protocols (VPN and router pods). Repeatable.
    #[arg(
        long,
        env = "NETPOL_EXEMPT",
        value_name = "NAMESPACE[/POD]",
        value_delimiter = ','
    )]
    exempt: Vec<String>,

    /// The capacity of a map, in entries; counts when the map is made. Repeatable.
    #[arg(long, env = "NETPOL_MAP_SIZE", value_name = "MAP=ENTRIES", value_delimiter = ',', value_parser = capacity)]
    map_size: Vec<(String, u32)>,

    /// How long a flow may be silent: opening, established, half-closed, closing, reset, unanswered, answered, fragment. Repeatable.
    #[arg(long, env = "NETPOL_TIMEOUT", value_name = "STATE=SECONDS", value_delimiter = ',', value_parser = timeout)]
    timeout: Vec<(String, u32)>,

    /// How many unanswered flows one pod may have recorded in 30 seconds.
    #[arg(long, env = "NETPOL_QUOTA", value_name = "FLOWS", default_value_t = QUOTA)]
    quota: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Attach {
    /// TCX where the kernel has it (6.6), else clsact.
    Auto,
    /// TCX links.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

fn assignment(text: &str) -> Result<(String, u32), String> {
    let (name, number) = text.split_once('=').ok_or("not of the form NAME=NUMBER")?;
    let number = number.parse().map_err(|error| format!("{number}: {error}"))?;
    Ok((name.to_owned(), number))
}

fn capacity(text: &str) -> Result<(String, u32), String> {
    let (name, entries) = assignment(text)?;
    known(&name, "map", &sizable().collect::<Vec<_>>())?;
    if entries == 0 {
        return Err(format!("map `{name}` needs at least one entry"));
    }
    Ok((name, entries))
}

fn timeout(text: &str) -> Result<(String, u32), String> {
    let (name, seconds) = assignment(text)?;
    let states: Vec<_> = TIMEOUTS.iter().map(|(name, ..)| *name).collect();
    known(&name, "state", &states)?;
    Ok((name, seconds))
}

fn known(name: &str, what: &str, names: &[&str]) -> Result<(), String> {
    if names.contains(&name) {
        return Ok(());
    }
    Err(match closest(name, names) {
        Some(meant) => format!("there is no {what} `{name}`; help: did you mean `{meant}`?"),
        None => format!(
            "there is no {what} `{name}`; help: there are {}",
            names.join(", ")
        ),
    })
}

fn node_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains('/') {
        return Err("not the name of a node; help: it is the `spec.nodeName` of its pods".to_owned());
    }
    Ok(text.to_owned())
}

fn settings(args: &Args) -> Settings {
    let mut settings = Settings {
        quota: args.quota,
        ..Settings::default()
    };
    for (name, seconds) in &args.timeout {
        let places = TIMEOUTS.iter().filter(|(known, ..)| known == name);
        places.for_each(|(_, place, _)| settings.timeouts[*place] = u64::from(*seconds));
    }
    settings
}

/// Runs until a signal ends it.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    agent::run(resolve(args)?)?;
    Ok(Exit::Ok)
}

/// What the arguments mean.
///
/// # Errors
/// They contradict each other, or name what there is not.
pub(super) fn resolve(args: Args) -> anyhow::Result<agent::Config> {
    // Read before the arguments were parsed.
    let _file = &args.config;
    let capacities: BTreeMap<_, _> = args.map_size.iter().cloned().collect();
    let settings = settings(&args);
    if args.manifests.is_some() && args.kubeconfig.is_some() {
        return Err(BadInput(
            "--manifests and --kubeconfig are two sources: keep the one that is meant".to_owned(),
        )
        .into());
    }
    if args.context.is_some() && args.kubeconfig.is_none() {
        return Err(
            BadInput("--context chooses from a kubeconfig: name one with --kubeconfig".to_owned()).into(),
        );
    }
    if args.remove_taint && args.manifests.is_some() {
        return Err(
            BadInput("--remove-taint needs an API server, and --manifests has none".to_owned()).into(),
        );
    }
    let from = match (args.manifests, args.kubeconfig) {
        (Some(directory), _) => From::Manifests(directory),
        (None, Some(file)) => From::Kubernetes(Access::File(file, args.context)),
        (None, None) => From::Kubernetes(Access::InCluster),
    };
    Ok(agent::Config {
        from,
        listen: args.listen,
        remove_taint: args.remove_taint,
        datapath: Options {
            pins: Pins::new(args.pin.join(format!("v{ABI}"))),
            files: args.state.join(&args.node),
            attach: match args.attach {
                Attach::Auto => None,
                Attach::Tcx => Some(Mode::Tcx),
                Attach::Clsact => Some(Mode::Clsact),
            },
            capacities,
            settings,
            unknown: args.unknown_pods,
            police_node: args.police_node,
            cni_cache: args.cni_cache,
            outside: args.outside,
            lock_wait: Duration::from_secs(args.wait_for_lock),
        },
        node: args.node,
        exempt: args.exempt,
        once: args.once,
    })
}
