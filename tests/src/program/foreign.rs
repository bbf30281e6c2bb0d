//! Somebody else's program on a device: it gives every packet the same verdict and is counted by the kernel.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramInfo, SchedClassifier, TcAttachType,
        links::FdLink,
        tc::{SchedClassifierLink, TcAttachOptions},
    },
    sys::{Stats, enable_stats},
};

use crate::net::Namespace;

/// Lets the next program decide.
pub const NEXT: i32 = -1;
/// Passes the packet for good: programs after this one are not asked.
pub const PASS: i32 = 0;

/// Its name, as the kernel shows it.
pub const NAME: &str = "foreign";

/// A program on one hook of a device by a TCX link, which ends with this.
#[derive(Debug)]
pub struct Foreign {
    _ebpf: Ebpf,
    info: ProgramInfo,
    _link: FdLink,
    // The kernel counts runs while this is open.
    _stats: OwnedFd,
}

impl Foreign {
    /// Attaches it, before all others that are there or behind them.
    ///
    /// # Errors
    /// The kernel's; one without TCX has no such links.
    pub fn attach(
        namespace: &Namespace,
        device: &str,
        hook: TcAttachType,
        verdict: i32,
        order: LinkOrder,
    ) -> Result<Self> {
        let stats = enable_stats(Stats::RunTime).context("have the kernel count runs")?;
        let mut ebpf = Ebpf::load(&object(verdict)).context("load a program of two instructions")?;
        let program = ebpf.program_mut(NAME).context("no program in the object")?;
        let program: &mut SchedClassifier = program.try_into()?;
        program.load().context("load a program of two instructions")?;
        let link: SchedClassifierLink = namespace.run(|| {
            let id = program.attach_with_options(device, hook, TcAttachOptions::TcxOrder(order))?;
            program.take_link(id)
        })?;
        let info = program.info()?;
        Ok(Self {
            _ebpf: ebpf,
            info,
            _link: link.try_into().context("not a TCX link")?,
            _stats: stats,
        })
    }

    /// How many packets it has seen.
    ///
    /// # Errors
    /// The kernel's.
    pub fn seen(&self) -> Result<u64> {
        Ok(aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .find(|program| program.id() == self.info.id())
            .context("the program is gone")?
            .run_count())
    }
}

/// The programs of a hook in the order in which they are asked, by name.
///
/// # Errors
/// The kernel's.
pub fn order(namespace: &Namespace, device: &str, hook: TcAttachType) -> Result<Vec<String>> {
    let (_, programs) = namespace.run(|| SchedClassifier::query_tcx(device, hook))?;
    let name = |program: &ProgramInfo| program.name_as_str().unwrap_or_default().to_owned();
    Ok(programs.iter().map(name).collect())
}

/// A section of an object file.
struct Section {
    name: &'static str,
    /// `SHT_*`
    kind: u32,
    /// `SHF_*`
    flags: u64,
    content: Vec<u8>,
    /// For symbols: the section with their names, how many of them are local, the size of one.
    symbols: (u32, u32, u64),
}

impl Section {
    fn new(name: &'static str, kind: u32, flags: u64, content: &[u8]) -> Self {
        Self {
            name,
            kind,
            flags,
            content: content.to_vec(),
            symbols: (0, 0, 0),
        }
    }
}

/// An object file with the program `return VERDICT`.
fn object(verdict: i32) -> Vec<u8> {
    const HEADER: usize = 64;
    // r0 = VERDICT; exit
    let code = [
        &[0xb7, 0, 0, 0][..],
        &verdict.to_le_bytes(),
        &[0x95, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    // The null symbol, then a global function of section 1 at 0.
    let size = (code.len() as u64).to_le_bytes();
    let symbols = [&[0; 24][..], &[1, 0, 0, 0, 0x12, 0, 1, 0], &[0; 8], &size].concat();
    let mut sections = vec![
        Section::new("classifier", 1, 6, &code),
        Section::new("license", 1, 2, b"GPL\0"),
        Section {
            symbols: (4, 1, 24),
            ..Section::new(".symtab", 2, 0, &symbols)
        },
        Section::new(".strtab", 3, 0, &[b"\0", NAME.as_bytes(), b"\0"].concat()),
        Section::new(".shstrtab", 3, 0, &[]),
    ];
    let mut names = vec![0];
    let mut starts = Vec::new();
    for section in &sections {
        starts.push(names.len() as u32);
        names.extend([section.name.as_bytes(), b"\0"].concat());
    }
    sections[4].content = names;
    let (mut content, mut table) = (Vec::new(), vec![0; HEADER]);
    for (section, start) in sections.iter().zip(starts) {
        let offset = (HEADER + content.len()) as u64;
        let (link, info, entry) = section.symbols;
        table.extend(start.to_le_bytes());
        table.extend(section.kind.to_le_bytes());
        for word in [section.flags, 0, offset, section.content.len() as u64] {
            table.extend(word.to_le_bytes());
        }
        table.extend(link.to_le_bytes());
        table.extend(info.to_le_bytes());
        table.extend(8_u64.to_le_bytes());
        table.extend(entry.to_le_bytes());
        content.extend(&section.content);
        content.resize(content.len().next_multiple_of(8), 0);
    }
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Relocatable, for BPF (247), version 1, no entry, no program headers.
    out.extend([1, 0, 247, 0, 1, 0, 0, 0]);
    for word in [0, 0, (HEADER + content.len()) as u64] {
        out.extend(u64::to_le_bytes(word));
    }
    out.extend([0, 0, 0, 0, HEADER as u8, 0, 0, 0, 0, 0, 64, 0, 6, 0, 5, 0]);
    out.extend(content);
    out.extend(table);
    out
}
