//! One network namespace: entering it, its links, its processes.

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{NETNS_DIR, Owner, bound, command, sctp};

/// A named network namespace; dropping it removes it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    label: String,
    file: File,
}

impl Namespace {
    /// Creates the namespace `name` and brings `lo` up. `label` is for messages.
    pub(super) fn create(name: &str, label: &str) -> Result<Self> {
        command::run("ip", &["netns", "add", name])?;
        let path = Path::new(NETNS_DIR).join(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let this = Self {
            name: name.to_owned(),
            label: label.to_owned(),
            file,
        };
        // IPv6 addresses are usable only after duplicate address detection, which starts after a random part
        // of the router solicitation delay (a second). Waiting for it would prove nothing.
        for scope in ["all", "default"] {
            for key in ["accept_dad", "router_solicitation_delay", "router_solicitations"] {
                this.sysctl(&format!("net.ipv6.conf.{scope}.{key}"), "0")?;
            }
        }
        this.ip("link set lo up")?;
        Ok(this)
    }

    /// The name as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name that the test gave it.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The file under `/run/netns`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Runs `work` on a thread of its own that has entered this namespace. Sockets opened there stay in the
    /// namespace; everything else (mounts, `/sys/fs/bpf`) is the caller's.
    ///
    /// # Panics
    /// Where `work` panics, with its message, or where the namespace can not be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .unwrap_or_else(|error| panic!("enter the network namespace {}: {error}", self.name));
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// `ip ARGS` in this namespace; `args` are separated by white space.
    ///
    /// # Errors
    /// Where `ip` fails.
    pub fn ip(&self, args: &str) -> Result<String> {
        self.command("ip", &args.split_whitespace().collect::<Vec<_>>())
    }

    /// Many `ip` commands in one process; the first that fails stops.
    ///
    /// # Errors
    /// Where `ip` fails.
    pub fn ip_batch<S: AsRef<str>>(&self, lines: impl IntoIterator<Item = S>) -> Result<()> {
        let input: String = lines
            .into_iter()
            .flat_map(|line| [line.as_ref().to_owned(), "\n".to_owned()])
            .collect();
        self.run(|| command::run_with_input("ip", &["-batch", "-"], &input))
            .with_context(|| format!("in namespace {}", self.label))?;
        Ok(())
    }

    /// Loads an nftables script.
    ///
    /// # Errors
    /// Where `nft` fails.
    pub fn nft(&self, script: &str) -> Result<String> {
        self.run(|| command::run_with_input("nft", &["-f", "-"], script))
            .with_context(|| format!("in namespace {}", self.label))
    }

    /// Runs any program to its end in this namespace; returns its standard output.
    ///
    /// # Errors
    /// As [`command::run`].
    pub fn command(&self, program: &str, args: &[&str]) -> Result<String> {
        self.run(|| command::run(program, args))
            .with_context(|| format!("in namespace {}", self.label))
    }

    /// Sets `net.…` (dots or slashes) to `value`.
    ///
    /// # Errors
    /// Where the setting does not exist or the value is not taken.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.run(|| std::fs::write(&path, value))
            .with_context(|| format!("write {value} to {path} in namespace {}", self.label))
    }

    /// A veth pair: `name` here, `peer` in `other`. Both ends are down.
    ///
    /// # Errors
    /// Where `ip` fails.
    pub fn veth(&self, name: &str, other: &Self, peer: &str) -> Result<()> {
        // Where both ends have the same index, each in its namespace, the kernel takes the change of carrier
        // for one that is not urgent, and the link is of no use for up to a second.
        static INDEX: AtomicU32 = AtomicU32::new(100);
        let index = INDEX.fetch_add(2, Ordering::Relaxed);
        self.ip(&format!(
            "link add {name} index {index} type veth peer name {peer} index {} netns {}",
            index + 1,
            other.name
        ))
        .map(drop)
    }

    /// Adds `address/len` to `link`, at once usable (no duplicate address detection).
    ///
    /// # Errors
    /// Where `ip` fails.
    pub fn address(&self, link: &str, address: IpAddr, len: u8) -> Result<()> {
        let nodad = if address.is_ipv6() { "nodad" } else { "" };
        self.ip(&format!("addr add {address}/{len} dev {link} {nodad}"))
            .map(drop)
    }

    /// The index of `link`.
    ///
    /// # Errors
    /// Where there is no such link.
    pub fn ifindex(&self, link: &str) -> Result<u32> {
        self.run(|| nix::net::if_::if_nametoindex(link))
            .with_context(|| format!("no link {link} in namespace {}", self.label))
    }

    /// The link-layer address of `link`.
    ///
    /// # Errors
    /// Where there is no such link.
    pub fn mac(&self, link: &str) -> Result<[u8; 6]> {
        let shown = self.ip(&format!("-brief link show dev {link}"))?;
        let word = shown
            .split_whitespace()
            .find(|word| word.matches(':').count() == 5)
            .with_context(|| format!("no link-layer address in {shown:?}"))?;
        let bytes: Vec<u8> = word
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect::<Result<_, _>>()
            .with_context(|| format!("not a link-layer address: {word}"))?;
        bytes
            .try_into()
            .ok()
            .with_context(|| format!("not six bytes: {word}"))
    }

    /// A TCP socket that listens on `address`.
    ///
    /// # Errors
    /// As `bind` and `listen`.
    pub fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        self.run(|| bound::listener(address))
    }

    /// A TCP connection to `address`.
    ///
    /// # Errors
    /// As `connect`; `TimedOut` after `timeout`.
    pub fn connect(&self, address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&address, timeout))
    }

    /// An SCTP association with `address`, as a stream of its first stream's bytes; only where the kernel has SCTP.
    ///
    /// # Errors
    /// As `connect`; `TimedOut` after `timeout`.
    pub fn associate(&self, address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        self.run(|| sctp::associate(address, timeout))
    }

    /// A UDP socket bound to `address` whose reads give up after two seconds.
    ///
    /// # Errors
    /// As `bind`.
    pub fn udp(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.run(|| bound::datagrams(address))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(socket)
    }

    /// Starts `command` in this namespace. The process ends with the guard, and its environment names the
    /// owner, so that a killed run's processes are found.
    ///
    /// # Errors
    /// Where it can not be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let owner = Owner::this_process()?;
        command.env(Owner::VARIABLE, owner.to_string());
        let child = self
            .run(|| command.spawn())
            .with_context(|| format!("start {:?} in namespace {}", command.get_program(), self.label))?;
        Ok(Child { child })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let path = self.path();
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_file(&path);
    }
}

/// A process that is killed when dropped.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
}

impl Child {
    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The process itself, for its pipes.
    pub fn inner(&mut self) -> &mut std::process::Child {
        &mut self.child
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// Where the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal)
            .with_context(|| format!("send {signal} to process {}", self.child.id()))
    }

    /// Waits until the process ends.
    ///
    /// # Errors
    /// Where it has not ended after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + timeout;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().context("wait for a process")? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("process {} has not ended after {timeout:?}", self.child.id())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
