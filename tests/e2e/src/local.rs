//! Powers over a cluster of `cargo xtask cluster`: its nodes' inside, its processes, and a host outside of it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;
use serde_json::Value;

use crate::kubectl::until;

/// A process by its id in the cluster's PID namespace.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Process {
    pid: i32,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeRecord {
    name: String,
    address: Ipv4Addr,
    address6: Option<IpAddr>,
    holder: Process,
}

#[derive(Clone, Debug, Deserialize)]
struct Daemon {
    name: String,
    node: Option<String>,
    log: PathBuf,
}

/// What `cluster.json` says; docs/cluster.md describes it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Local {
    components: PathBuf,
    pub(crate) kubeconfig: PathBuf,
    init: Process,
    nodes: Vec<NodeRecord>,
    daemons: Vec<Daemon>,
}

impl Local {
    /// The cluster `name`.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn read(name: &str) -> Result<Self> {
        let path = Path::new("/var/lib/netpol-cluster")
            .join(name)
            .join("cluster.json");
        let text = fs::read(&path).with_context(|| {
            format!(
                "reading {}: `cargo xtask cluster up --name {name}` makes it",
                path.display()
            )
        })?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// kubectl of the cluster's components.
    pub(crate) fn kubectl(&self) -> PathBuf {
        self.components.join("bin/kubectl")
    }

    /// A command in the cluster's PID, network and mount namespaces.
    fn in_cluster(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init.pid.to_string(), "-p", "-n", "-m", "--wd=/", "--"]);
        let own = std::env::var("PATH").unwrap_or_default();
        let parts = ["bin", "debian/usr/sbin", "debian/usr/bin"].map(|part| self.components.join(part));
        let parts = parts
            .iter()
            .map(|part| part.display().to_string())
            .collect::<Vec<_>>()
            .join(":");
        command
            .env_clear()
            .env("PATH", format!("{parts}:{own}:/usr/sbin:/sbin"))
            .env("HOME", "/root");
        command
    }

    fn record(&self, node: &str) -> Result<&NodeRecord> {
        let found = self.nodes.iter().find(|record| record.name == node);
        found.with_context(|| format!("{node} is no node of the local cluster"))
    }

    /// Runs a shell's script inside of a node.
    ///
    /// # Errors
    /// It fails.
    pub(crate) fn in_node(&self, node: &str, script: &str) -> Result<String> {
        let holder = self.record(node)?.holder.pid.to_string();
        let mut command = self.in_cluster();
        command.args([
            "nsenter", "-t", &holder, "-n", "-m", "-u", "--wd=/", "--", "sh", "-ec", script,
        ]);
        output(&mut command)
    }

    /// Runs a shell's script in the control plane's network.
    ///
    /// # Errors
    /// It fails.
    pub(crate) fn in_control(&self, script: &str) -> Result<String> {
        let mut command = self.in_cluster();
        output(command.args(["sh", "-ec", script]))
    }

    /// A component: the newest process with its program's name and its node's network.
    fn find(&self, name: &str, node: Option<&str>) -> Result<Running> {
        let known = self
            .daemons
            .iter()
            .find(|daemon| daemon.name == name && daemon.node.as_deref() == node);
        let known = known.with_context(|| format!("the local cluster has no {name}"))?;
        let of = match node {
            Some(node) => self.record(node)?.holder.pid,
            None => 1,
        };
        // Not by the id that is written down: it may have been started again.
        let script = format!(
            "net=$(readlink /proc/{of}/ns/net)
             for dir in /proc/[0-9]*; do
               read -r name 2>/dev/null <$dir/comm || continue
               if [ \"$name\" = {name} ] && [ \"$(readlink $dir/ns/net)\" = \"$net\" ]; then
                 echo ${{dir#/proc/}}; tr '\\0' '\\n' <$dir/cmdline; exit
               fi
             done"
        );
        let text = self.in_control(&script)?;
        let mut lines = text.lines().map(str::to_owned);
        let pid = lines
            .next()
            .with_context(|| format!("no {name} runs in the local cluster"))?;
        Ok(Running {
            name: name.to_owned(),
            node: node.map(str::to_owned),
            pid: pid.parse().with_context(|| format!("{pid:?} is no process"))?,
            words: lines.collect(),
            log: known.log.clone(),
        })
    }

    /// The API server.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn api_server(&self) -> Result<Running> {
        self.find("kube-apiserver", None)
    }

    /// What runs on a node beside pods, in the order of starting.
    ///
    /// # Errors
    /// Something does not run.
    pub(crate) fn node_daemons(&self, node: &str) -> Result<Vec<Running>> {
        let own = self
            .daemons
            .iter()
            .filter(|daemon| daemon.node.as_deref() == Some(node));
        own.map(|daemon| self.find(&daemon.name, Some(node))).collect()
    }

    /// Ends what runs in the node's pods, and what started it: processes of the node's mounts, and those below its cgroup.
    ///
    /// # Errors
    /// Some stay.
    pub(crate) fn end_processes(&self, node: &str) -> Result<()> {
        let holder = self.record(node)?.holder.pid;
        let script = format!(
            "mounts=$(readlink /proc/{holder}/ns/mnt)
             for round in 1 2 3 4 5; do
               found=
               for dir in /proc/[0-9]*; do
                 pid=${{dir#/proc/}}
                 [ $pid = {holder} ] && continue
                 if [ \"$(readlink $dir/ns/mnt)\" = \"$mounts\" ] || grep -qE '/netpol-cluster-[^/]*/{node}/' $dir/cgroup 2>/dev/null; then
                   kill -9 $pid 2>/dev/null && found=yes
                 fi
               done
               [ -z \"$found\" ] && exit 0
               sleep 0.5
             done
             echo processes of {node} stay >&2; exit 1"
        );
        self.in_control(&script).map(drop)
    }

    /// Sends a signal to a component.
    ///
    /// # Errors
    /// It is not there.
    pub(crate) fn signal(&self, running: &Running, signal: &str) -> Result<()> {
        self.in_control(&format!("kill -{signal} {}", running.pid))
            .map(drop)
    }

    /// Starts a component again as it was started.
    ///
    /// # Errors
    /// It can't be.
    pub(crate) fn start(&self, running: &mut Running) -> Result<()> {
        let log = fs::OpenOptions::new()
            .append(true)
            .open(&running.log)
            .with_context(|| format!("opening {}", running.log.display()))?;
        let mut command = self.in_cluster();
        if let Some(node) = &running.node {
            let holder = self.record(node)?.holder.pid.to_string();
            command.args(["nsenter", "-t", &holder, "-n", "-m", "-u", "--wd=/", "--"]);
            command.env("NODE_NAME", node);
        }
        // The shell says its id and ends, and nsenter with it: its parent is the cluster's init, as of all others. (An nsenter that
        // waits stops where its child is stopped, does not go on with it, and then nobody buries the child.)
        command
            .args(["setsid", "sh", "-c", "\"$@\" >&2 & echo $!", "sh"])
            .args(&running.words);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", running.name))?;
        let mut line = String::new();
        let mut said = std::io::BufReader::new(child.stdout.take().context("a pipe was asked for")?);
        std::io::BufRead::read_line(&mut said, &mut line)?;
        running.pid = line
            .trim()
            .parse()
            .with_context(|| format!("{} did not start: {line:?}", running.name))?;
        child
            .wait()
            .with_context(|| format!("starting {}", running.name))?;
        Ok(())
    }
}

/// A component that runs, or did.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) name: String,
    node: Option<String>,
    pid: i32,
    /// Its command line.
    pub(crate) words: Vec<String>,
    log: PathBuf,
}

/// Runs a command and returns what it says.
fn output(command: &mut Command) -> Result<String> {
    let done = command
        .stdin(Stdio::null())
        .output()
        .context("starting nsenter")?;
    if !done.status.success() {
        bail!(
            "{command:?} failed ({}): {}",
            done.status,
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// A host beside the nodes, in a network namespace of its own: it reaches pods as a router of the network would.
#[derive(Debug)]
pub(crate) struct Outside {
    local: Local,
    probe: PathBuf,
    holder: Child,
    /// Its id on this machine.
    pid: i32,
    /// Its own address on the nodes' network.
    pub(crate) v4: Ipv4Addr,
    /// The same, of IPv6.
    pub(crate) v6: Option<IpAddr>,
}

/// What it listens on: what examples, and the cases of Services, send outside.
const TCP: &str = "80,443,8080";
const UDP: &str = "53";

impl Outside {
    /// Makes it.
    ///
    /// # Errors
    /// Something of its network can't be made.
    pub(crate) fn start(local: &Local, probe: &Path, nodes: &[Value]) -> Result<Self> {
        let first = local.nodes.first().context("a cluster without nodes")?;
        let [a, b, c, _] = first.address.octets();
        let v4 = Ipv4Addr::new(a, b, c, 200);
        let v6 = first.address6.map(beside).transpose()?;
        let token = format!("outside-{}", std::process::id());
        let mut command = local.in_cluster();
        command
            .args(["unshare", "--net", "--"])
            .arg(probe)
            .args(["serve", "--name", "outside"]);
        command.args(["--tcp", TCP, "--udp", UDP, "--token", &token]);
        let holder = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("starting the outside host")?;
        let pid = until(Duration::from_secs(5), || find_process(probe, &token))?;
        let outside = Self {
            local: local.clone(),
            probe: probe.to_owned(),
            holder,
            pid,
            v4,
            v6,
        };
        outside.connect(nodes)?;
        Ok(outside)
    }

    fn connect(&self, nodes: &[Value]) -> Result<()> {
        // The id of the same process inside.
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let inner = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().last());
        let inner = inner.context("the kernel shows no NSpid")?;
        self.local.in_control(&format!(
            "ip link del e2e-out 2>/dev/null || true
             ip link add e2e-out type veth peer name eth0 netns {inner}
             ip link set e2e-out master br0 up"
        ))?;
        let mut script = format!(
            "ip link set lo up; ip link set eth0 up; ip addr add {}/24 dev eth0\n",
            self.v4
        );
        if let Some(v6) = self.v6 {
            script += &format!("ip addr add {v6}/64 dev eth0 nodad\n");
        }
        for node in nodes {
            let record = self
                .local
                .record(node["metadata"]["name"].as_str().unwrap_or_default())?;
            for range in node["spec"]["podCIDRs"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
            {
                let via = match (range.contains(':'), record.address6) {
                    (false, _) => record.address.to_string(),
                    (true, Some(six)) => six.to_string(),
                    (true, None) => continue,
                };
                script += &format!("ip route add {range} via {via}\n");
            }
        }
        self.inside(&["sh", "-ec", &script]).map(drop)
    }

    /// Gives it another address, and the nodes a route to that.
    ///
    /// # Errors
    /// It can't have it: it is of the nodes' own network, for example.
    pub(crate) fn add(&self, address: IpAddr) -> Result<()> {
        let (length, via) = match (address, self.v6) {
            (IpAddr::V4(_), _) => (32, self.v4.to_string()),
            (IpAddr::V6(_), Some(v6)) => (128, v6.to_string()),
            (IpAddr::V6(_), None) => bail!("the cluster has no IPv6"),
        };
        self.inside(&[
            "ip",
            "addr",
            "replace",
            &format!("{address}/{length}"),
            "dev",
            "lo",
        ])?;
        for node in &self.local.nodes {
            self.local.in_node(
                &node.name,
                &format!("ip route replace {address}/{length} via {via} dev eth0"),
            )?;
        }
        Ok(())
    }

    /// Gives it a way to an address that a node has to serve, as a router that announces a load balancer's address.
    ///
    /// # Errors
    /// There is no such node, or it has no address of the family.
    pub(crate) fn route(&self, address: IpAddr, node: &str) -> Result<()> {
        let record = self.local.record(node)?;
        let (length, via) = match (address, record.address6) {
            (IpAddr::V4(_), _) => (32, record.address.to_string()),
            (IpAddr::V6(_), Some(six)) => (128, six.to_string()),
            (IpAddr::V6(_), None) => bail!("node {node} has no IPv6 address"),
        };
        let to = format!("{address}/{length}");
        self.inside(&["ip", "route", "replace", &to, "via", &via])
            .map(drop)
    }

    /// Runs the probe there.
    ///
    /// # Errors
    /// It fails.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        let probe = self.probe.display().to_string();
        self.inside(&[&[probe.as_str()], args].concat())
    }

    fn inside(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.pid.to_string(), "-n", "--"])
            .args(words);
        output(&mut command)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // Already gone where the cluster is.
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        let _ = self.holder.wait();
    }
}

/// `fd00:ac1e:1::b` to `fd00:ac1e:1::c8`
fn beside(node: IpAddr) -> Result<IpAddr> {
    let IpAddr::V6(node) = node else {
        bail!("{node} is no IPv6 address")
    };
    let mut segments = node.segments();
    segments[7] = 0xc8;
    Ok(IpAddr::from(segments))
}

/// The process of this program that was started with this word.
fn find_process(program: &Path, token: &str) -> Result<i32> {
    for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        // nsenter and unshare have the same words behind their own.
        if words.next() == Some(program.as_os_str().as_encoded_bytes())
            && words.any(|word| word == token.as_bytes())
        {
            return Ok(pid);
        }
    }
    bail!("{} did not start", program.display())
}
