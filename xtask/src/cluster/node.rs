//! One node: its holder, its link, and its components.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    Cni, Proxy,
    addresses::{Network, PODS, PODS6, batch},
    cgroups, configs,
    control::{ranges, server},
    daemon::{Daemon, call_with, environment, write},
    hold::{self, READY},
    pki::Pki,
    record::{NodeRecord, Process, Record},
    supervisor::this_program,
};

/// How long a component may take to be there.
const LIMIT: Duration = Duration::from_secs(60);

/// A node under way.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) name: String,
    /// The last part of its addresses.
    machine: u8,
    cluster: &'a Path,
    record: &'a Record,
    /// Its files.
    home: PathBuf,
    holder: Process,
    pub(super) daemons: Vec<Daemon>,
}

impl<'a> Node<'a> {
    /// Node number `number`, from 1: its namespaces and its link.
    ///
    /// # Errors
    /// One can't be made.
    pub(super) fn create(cluster: &'a Path, record: &'a Record, number: u8) -> Result<Self> {
        let name = format!("n{number}");
        let holder = start_holder(cluster, &name)?;
        let this = Self {
            machine: 10 + number,
            home: cluster.join("nodes").join(&name),
            name,
            cluster,
            record,
            holder,
            daemons: Vec::new(),
        };
        this.link()?;
        Ok(this)
    }

    fn link(&self) -> Result<()> {
        let (name, network) = (&self.name, &self.record.network);
        let index = 1000 + u32::from(self.machine);
        batch(
            &format!("link of {name}"),
            &format!(
                "link add {name} type veth peer name eth0 index {index} netns {}\nlink set {name} master br0 up\n",
                self.holder.pid
            ),
        )?;
        let mut lines = "link set lo up\n".to_owned();
        lines += &network.configure("eth0", self.machine);
        lines += &format!("route add default via {}\n", network.v4(Network::CONTROL));
        if let Some(control) = network.v6(Network::CONTROL) {
            lines += &format!("route add default via {control}\n");
        }
        self.ip(&lines)
    }

    /// `ip -batch` in the node.
    pub(super) fn ip(&self, lines: &str) -> Result<()> {
        let mut ip = self.inside("ip");
        ip.args(["-batch", "-"]);
        call_with(&mut ip, lines).with_context(|| format!("network of {}", self.name))?;
        Ok(())
    }

    /// A command inside.
    fn inside(&self, program: &str) -> Command {
        let mut command = hold::enter(self.holder.pid);
        environment(&mut command, &self.record.components);
        command.arg(program);
        command
    }

    fn start(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let logs = self.cluster.join("logs");
        let daemon = Daemon::start(&logs, Some(&self.name), name, command)?;
        self.daemons.push(daemon);
        Ok(())
    }

    /// The container runtime, with the images of the cluster.
    ///
    /// # Errors
    /// It fails or takes too long.
    pub(super) fn runtime(&mut self, images: &Path) -> Result<()> {
        let snapshotter = &self.record.snapshotter;
        let config = self.home.join("containerd.toml");
        write(&config, configs::containerd(&self.record.components, snapshotter))?;
        if self.record.options.cni == Cni::Flannel {
            self.conflist(&[])?;
        }
        let mut containerd = self.inside("containerd");
        self.start("containerd", containerd.arg("--config").arg(config))?;
        let socket = self.home.join("run/containerd/containerd.sock");
        self.last()?
            .until("the container runtime", LIMIT, || socket.exists())?;
        let mut import = self.inside("ctr");
        import_arguments(&mut import, snapshotter);
        import.stdin(fs::File::open(images).with_context(|| format!("opening {}", images.display()))?);
        let done = import.output().context("starting ctr")?;
        if !done.status.success() {
            bail!(
                "importing images into {}: {}",
                self.name,
                String::from_utf8_lossy(&done.stderr)
            );
        }
        Ok(())
    }

    fn last(&mut self) -> Result<&mut Daemon> {
        self.daemons.last_mut().context("nothing was started")
    }

    /// kubelet and kube-proxy; the API server is ready.
    ///
    /// # Errors
    /// A file can't be written, or one not be started.
    pub(super) fn join(&mut self, pki: &Pki) -> Result<()> {
        let (name, network) = (self.name.clone(), &self.record.network);
        let address = network.v4(self.machine);
        let addresses = [
            Some(address.to_string()),
            network.v6(self.machine).map(|six| six.to_string()),
        ];
        let addresses: Vec<_> = addresses.into_iter().flatten().collect();
        let mut names = vec![format!("DNS:{name}")];
        names.extend(addresses.iter().map(|address| format!("IP:{address}")));
        pki.issue(&name, &format!("system:node:{name}"), "system:nodes", &names)?;
        let kubeconfig = self.home.join("kubelet.kubeconfig");
        pki.kubeconfig(&server(network), &name, &kubeconfig)?;
        let config = self.home.join("kubelet.yaml");
        cgroups::create(&self.record.name, &name)?;
        let cgroup = cgroups::of_node(&self.record.name, &name);
        write(&config, configs::kubelet(&pki.dir, &name, &cgroup))?;
        // kubelet watches it only where it is there.
        let manifests = self.home.join(configs::STATIC_PODS.trim_start_matches('/'));
        fs::create_dir_all(&manifests).with_context(|| format!("creating {}", manifests.display()))?;
        let mut kubelet = self.inside("kubelet");
        kubelet
            .args(["--v=2", "--root-dir=/var/lib/kubelet"])
            .arg(format!("--config={}", config.display()))
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--hostname-override={name}"))
            .arg(format!("--node-ip={}", addresses.join(",")));
        self.start("kubelet", &mut kubelet)?;
        let mut proxy = self.proxy(pki, address);
        self.start("kube-proxy", &mut proxy)
    }

    fn proxy(&self, pki: &Pki, address: Ipv4Addr) -> Command {
        let mode = match self.record.options.proxy {
            Proxy::Iptables => "iptables",
            Proxy::Nftables => "nftables",
        };
        let mut proxy = self.inside("kube-proxy");
        proxy
            // Limits of connection tracking are the whole machine's: a namespace can't set them.
            .args([
                "--conntrack-max-per-core=0",
                "--conntrack-tcp-timeout-established=0s",
            ])
            .args([
                "--conntrack-tcp-timeout-close-wait=0s",
                "--metrics-bind-address=127.0.0.1:10249",
            ])
            .arg(format!("--healthz-bind-address={address}:10256"))
            .arg(format!("--kubeconfig={}", pki.path("proxy.kubeconfig")))
            .arg(format!("--hostname-override={}", self.name))
            .arg(format!("--cluster-cidr={}", ranges(self.record, PODS, PODS6)))
            .arg(format!("--proxy-mode={mode}"));
        proxy
    }

    fn conflist(&self, cidrs: &[String]) -> Result<()> {
        let (file, text) = configs::conflist(self.record.options.cni, cidrs);
        // Written in place: containerd does not look at a file that was moved into the directory.
        write(&self.home.join("etc/cni/net.d").join(file), text)
    }

    /// The pods' network, on a node whose ranges are known.
    ///
    /// # Errors
    /// Flannel or a command fails.
    pub(super) fn pod_network(&mut self, cidrs: &[String]) -> Result<()> {
        match self.record.options.cni {
            Cni::Flannel => {
                let config = self.home.join("flannel.json");
                write(&config, configs::flannel(&self.record.options))?;
                let kubeconfig = self.record.kubeconfig.clone();
                let mut flannel = self.inside("flannel");
                flannel
                    .env("NODE_NAME", &self.name)
                    .args(["--kube-subnet-mgr", "--iface=eth0", "--ip-masq"])
                    .arg(format!("--kubeconfig-file={}", kubeconfig.display()))
                    .arg(format!("--net-config-path={}", config.display()));
                self.start("flannel", &mut flannel)?;
                let done = self.home.join("run/flannel/subnet.env");
                self.last()?.until("Flannel", LIMIT, || done.exists())
            }
            Cni::Ptp => {
                self.masquerade("iptables", PODS)?;
                if self.record.options.dual_stack {
                    self.masquerade("ip6tables", PODS6)?;
                }
                self.conflist(cidrs)
            }
        }
    }

    /// What leaves the pods' network bears the node's address, as with kindnet.
    fn masquerade(&self, program: &str, pods: &str) -> Result<()> {
        let mut rule = self.inside(program);
        rule.args([
            "-w",
            "-t",
            "nat",
            "-A",
            "POSTROUTING",
            "-s",
            pods,
            "!",
            "-d",
            pods,
            "-j",
            "MASQUERADE",
        ]);
        call_with(&mut rule, "").map(drop)
    }

    /// `ip` lines that lead to the pods of this node.
    pub(super) fn routes(&self, cidrs: &[String]) -> String {
        let network = &self.record.network;
        let via = |cidr: &String| -> Option<String> {
            let address = if cidr.contains(':') {
                network.v6(self.machine)?.to_string()
            } else {
                network.v4(self.machine).to_string()
            };
            Some(format!("route add {cidr} via {address}\n"))
        };
        cidrs.iter().filter_map(via).collect()
    }

    /// For `cluster.json`.
    pub(super) fn record(&self) -> NodeRecord {
        let network = &self.record.network;
        NodeRecord {
            name: self.name.clone(),
            address: network.v4(self.machine).to_string(),
            address6: network.v6(self.machine).as_ref().map(Ipv6Addr::to_string),
            holder: self.holder,
        }
    }
}

/// What `ctr` is given to import an archive from its standard input.
pub(super) fn import_arguments(ctr: &mut Command, snapshotter: &str) {
    ctr.args([
        "--namespace",
        "k8s.io",
        "images",
        "import",
        "--local",
        "--snapshotter",
        snapshotter,
        "-",
    ]);
}

fn start_holder(cluster: &Path, node: &str) -> Result<Process> {
    let log = cluster.join(format!("logs/{node}-holder.log"));
    let file = fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let mut holder = this_program("node")
        .args(["cluster", "hold"])
        .arg(cluster)
        .arg(node)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(file)
        .spawn()
        .context("starting the holder of a node")?;
    let mut line = String::new();
    if let Some(stdout) = holder.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut line)
            .context("reading from the holder of a node")?;
    }
    if line.trim() != READY {
        bail!(
            "the namespaces of {node} can't be made: {}",
            crate::ui::tail(&log, 20)
        );
    }
    Process::find(Path::new("/proc"), holder.id() as i32).context("the holder of a node ended")
}
