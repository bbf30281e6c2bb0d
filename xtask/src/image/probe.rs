//! The image of the end-to-end tests' pods: `netpol-probe`, static, on nothing else.

use std::{fs, path::PathBuf, time::SystemTime};

use anyhow::{Context as _, Result};

use super::{
    Arch,
    archive::{Archive, Entry, Image},
    binary,
};
use crate::ui::root;

/// What the tests' pods ask for.
const NAME: &str = "netpol.local/probe";
/// And its tag.
const TAG: &str = "1";

/// The probe as a program, and as an archive.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) binary: PathBuf,
    pub(crate) archive: PathBuf,
}

/// Builds both, for this machine.
///
/// # Errors
/// The compiler's, or the archive can't be written.
pub(crate) fn probe() -> Result<Probe> {
    let arch = if Arch::here() == "arm64" {
        Arch::Arm64
    } else {
        Arch::Amd64
    };
    let binary = binary::static_program(arch, "netpol-probe", None)?;
    let program = fs::read(&binary).with_context(|| format!("reading {}", binary.display()))?;
    let files = [Entry::file("netpol-probe", 0o755, program)];
    let archive = Archive::new(&Image {
        name: NAME,
        tag: TAG,
        arch: arch.name(),
        created: SystemTime::UNIX_EPOCH,
        entrypoint: "netpol-probe",
        files: &files,
    })?;
    let file = root()
        .join("target/image")
        .join(format!("netpol-probe-{}.tar", arch.name()));
    fs::create_dir_all(root().join("target/image")).context("creating target/image")?;
    fs::write(&file, &archive.bytes).with_context(|| format!("writing {}", file.display()))?;
    Ok(Probe {
        binary,
        archive: file,
    })
}
