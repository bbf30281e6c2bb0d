//! Many different packets through one program without a system call between them, timed by the kernel.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, ProgramArray, lpm_trie},
    programs::{ProgramFd, SchedClassifier, TestRun, TestRunOptions},
};
use netpol_common::flow::{Flow, Key4};

use super::{
    abi::{Abi, Plain},
    machine::{Input, context, object_path},
};

/// The longest ring.
const RING: usize = 1 << 17;

/// One packet of a ring: IPv4 addresses, ports, and the mark that it comes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address, host byte order.
    pub src: u32,
    /// Destination address, host byte order.
    pub dst: u32,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// `skb->mark`
    pub mark: u32,
}

impl Packet {
    /// As the ring holds it: network byte order.
    fn words(self) -> [u32; 4] {
        let ports = u32::from(self.sport) << 16 | u32::from(self.dport);
        [self.src.to_be(), self.dst.to_be(), ports.to_be(), self.mark]
    }
}

/// What the packets go to.
#[derive(Debug)]
pub enum Next {
    /// Nothing: what everything is measured against.
    Empty,
    /// The source address is looked up in a hash of exact addresses, and that is all.
    BareHash,
    /// The same in a trie of prefixes.
    BareTrie,
    /// The tuple is looked up in a table of flows, and that is all.
    BareFlows,
    /// A program of another object.
    Program(ProgramFd),
}

impl Next {
    const fn name(&self) -> &'static str {
        match self {
            Self::Empty | Self::Program(_) => "empty",
            Self::BareHash => "bare_hash",
            Self::BareTrie => "bare_trie",
            Self::BareFlows => "bare_flows",
        }
    }
}

/// The object that makes the packets, and its bare maps.
#[derive(Debug)]
pub struct Rotor {
    ebpf: Ebpf,
}

impl Rotor {
    /// Loads the object; the bare maps get room for `hosts`, `nets` and `flows` entries.
    ///
    /// # Errors
    /// Where there is no object, or the kernel refuses it.
    pub fn load(hosts: u32, nets: u32, flows: u32) -> Result<Self> {
        let path = path();
        let object = std::fs::read(&path)
            .with_context(|| format!("read {}: `cargo xtask bench` builds it", path.display()))?;
        let mut loader = EbpfLoader::new();
        loader
            .btf(None)
            .map_max_entries("hash", hosts)
            .map_max_entries("trie", nets)
            .map_max_entries("flows", flows);
        let mut ebpf = loader
            .load(&object)
            .with_context(|| format!("load {}", path.display()))?;
        for name in ["rotate", "empty", "bare_hash", "bare_trie", "bare_flows"] {
            let program: &mut SchedClassifier = ebpf
                .program_mut(name)
                .with_context(|| format!("the object has no program {name}"))?
                .try_into()?;
            program
                .load()
                .with_context(|| format!("load the program {name}"))?;
        }
        Ok(Self { ebpf })
    }

    fn program(&self, name: &str) -> Result<&SchedClassifier> {
        let program = self
            .ebpf
            .program(name)
            .with_context(|| format!("the object has no program {name}"))?;
        Ok(program.try_into()?)
    }

    fn store<T: Abi>(&mut self, map: &str, index: u32, value: T) -> Result<()> {
        let map = self.ebpf.map_mut(map).context("a map of the object")?;
        Ok(Array::<_, Plain<T>>::try_from(map)?.set(index, Plain(value), 0)?)
    }

    /// The packets to come, one after the other and from the front again.
    ///
    /// # Errors
    /// Where there is none, or more than 131 072.
    pub fn packets(&mut self, packets: &[Packet]) -> Result<()> {
        ensure!((1..=RING).contains(&packets.len()), "a ring of {}", packets.len());
        for (at, packet) in (0..).zip(packets) {
            self.store("ring", at, packet.words())?;
        }
        self.store("at", 0, [0, packets.len() as u32])
    }

    /// Where the packets go from now on.
    ///
    /// # Errors
    /// Where the kernel refuses it.
    pub fn direct(&mut self, next: &Next) -> Result<()> {
        let fd = match next {
            Next::Program(fd) => fd.try_clone()?,
            other => self.program(other.name())?.fd()?.try_clone()?,
        };
        let map = self.ebpf.map_mut("next").context("a map of the object")?;
        ProgramArray::try_from(map)?
            .set(0, &fd, 0)
            .context("the kernel does not let this program be tail-called from the rotor")
    }

    /// `repeat` packets, made of `frame`; nanoseconds a packet as the kernel takes them, and the last answer.
    ///
    /// # Errors
    /// Where the kernel refuses the frame.
    pub fn run(&mut self, frame: &[u8], input: Input, repeat: u32) -> Result<(u64, i32)> {
        run(self.program("rotate")?, frame, input, repeat)
    }

    /// Puts addresses into the bare hash, prefixes (host byte order and length) into the bare trie, tuples into the bare
    /// table of flows.
    ///
    /// # Errors
    /// Where one is full.
    pub fn fill(&mut self, hosts: &[u32], nets: &[(u32, u8)], flows: &[Packet]) -> Result<()> {
        let map = self.ebpf.map_mut("hash").context("a map of the object")?;
        let mut hash = HashMap::<_, u32, u32>::try_from(map)?;
        for (class, host) in (1..).zip(hosts) {
            hash.insert(host.to_be(), class, 0)?;
        }
        let map = self.ebpf.map_mut("trie").context("a map of the object")?;
        let mut trie = lpm_trie::LpmTrie::<_, u32, u32>::try_from(map)?;
        for (class, (net, len)) in (1..).zip(nets) {
            trie.insert(&lpm_trie::Key::new(u32::from(*len), net.to_be()), class, 0)?;
        }
        let map = self.ebpf.map_mut("flows").context("a map of the object")?;
        let mut table = HashMap::<_, Plain<Key4>, Plain<Flow>>::try_from(map)?;
        for packet in flows {
            let [src, dst, ..] = packet.words();
            let key = Key4 {
                src,
                dst,
                sport: packet.sport.to_be(),
                dport: packet.dport.to_be(),
                proto: netpol_common::proto::TCP.into(),
            };
            table.insert(Plain(key), Plain(Flow::default()), 0)?;
        }
        Ok(())
    }
}

fn run(program: &SchedClassifier, frame: &[u8], input: Input, repeat: u32) -> Result<(u64, i32)> {
    let before = context(input);
    let options = TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(&before),
        repeat,
        ..TestRunOptions::default()
    };
    let result = program.test_run(options)?;
    Ok((result.duration.as_nanos() as u64, result.return_value as i32))
}

/// Beside the object of the four programs.
fn path() -> PathBuf {
    object_path().with_file_name("netpol-bench.o")
}
