//! `cargo xtask image`: the agent as a container image, without a container engine.
//!
//! One static binary on nothing else. The same sources, toolchain and options give the same digest.

mod archive;
mod binary;
mod licences;
mod probe;

use std::{env, fs, path::PathBuf, process::ExitCode, time::SystemTime};

use anyhow::{Context as _, Result, ensure};

use self::archive::{Archive, Entry, Image};
pub(crate) use self::probe::probe;
use crate::{
    ebpf, setup,
    ui::{root, say},
};

/// No image may be larger.
const MOST: usize = 30 << 20;

/// What the agent's image is called.
const NAME: &str = "netpol/netpol-agent";

/// Where the agent is in the image; `PATH` holds its directory, for `kubectl exec … netpol-agent status`.
const PROGRAM: &str = "usr/bin/netpol-agent";

/// `cargo xtask image`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The machine that the image is for.
    #[arg(long, value_name = "ARCH", default_value = Arch::here())]
    arch: Arch,

    /// What the image is called, without a tag; the tag is the version.
    #[arg(long, value_name = "NAME", default_value = NAME)]
    name: String,

    /// Write the image's files below this directory instead of packing them: for a Dockerfile.
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
}

/// A machine, by the name that images use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Arch {
    /// x86_64
    Amd64,
    /// aarch64
    Arm64,
}

impl Arch {
    /// This machine's, if images of it can be made.
    fn here() -> &'static str {
        if env::consts::ARCH == "aarch64" {
            "arm64"
        } else {
            "amd64"
        }
    }

    /// As images call it.
    fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As compilers call it.
    fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }
}

/// The verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    binary::require(args.arch)?;
    let toolchain = setup::ensure(setup::Need::BUILD)?;
    let object = ebpf::object_for(&toolchain, args.arch.machine())?;
    let binary = binary::build(args.arch, &object)?;
    let program = fs::read(&binary).with_context(|| format!("reading {}", binary.display()))?;
    let files = files(program, args.arch)?;
    if let Some(dir) = &args.files {
        write_below(dir, &files)?;
        return Ok(ExitCode::SUCCESS);
    }
    let archive = Archive::new(&Image {
        name: &args.name,
        tag: env!("CARGO_PKG_VERSION"),
        arch: args.arch.name(),
        created: created()?,
        entrypoint: PROGRAM,
        files: &files,
    })?;
    ensure!(
        archive.bytes.len() < MOST,
        "the image has {} bytes, more than the {MOST} that it may have: see what the binary grew by",
        archive.bytes.len()
    );
    let path = archive_path(args.arch);
    let file = root().join(&path);
    fs::create_dir_all(root().join("target/image")).context("creating target/image")?;
    fs::write(&file, &archive.bytes).with_context(|| format!("writing {path}"))?;
    let mib = archive.bytes.len() as f64 / f64::from(1 << 20);
    say("image", &format!("{path}, {mib:.1} MiB"));
    say("name", &archive.reference);
    say("digest", &archive.digest);
    Ok(ExitCode::SUCCESS)
}

/// Builds the image for this machine and returns the archive's path.
///
/// # Errors
/// As the verb.
pub(crate) fn agent() -> Result<PathBuf> {
    let arch = if Arch::here() == "arm64" {
        Arch::Arm64
    } else {
        Arch::Amd64
    };
    run(&Args {
        arch,
        name: NAME.into(),
        files: None,
    })?;
    Ok(root().join(archive_path(arch)))
}

fn archive_path(arch: Arch) -> String {
    format!(
        "target/image/netpol-agent-{}-{}.tar",
        env!("CARGO_PKG_VERSION"),
        arch.name()
    )
}

/// What is in the image.
fn files(program: Vec<u8>, arch: Arch) -> Result<Vec<Entry>> {
    let license = fs::read(root().join("LICENSE")).context("reading LICENSE")?;
    Ok(vec![
        // glibc looks names up where this says; without it /etc/hosts comes after DNS.
        Entry::file("etc/nsswitch.conf", 0o644, b"hosts: files dns\n".to_vec()),
        Entry::file(PROGRAM, 0o755, program),
        Entry::file("usr/share/doc/netpol/LICENSE", 0o644, license),
        Entry::file(
            "usr/share/doc/netpol/LICENSES-OF-DEPENDENCIES",
            0o644,
            licences::texts(arch.machine())?.into_bytes(),
        ),
    ])
}

/// When the image says that it was made: `SOURCE_DATE_EPOCH`, or the epoch itself.
fn created() -> Result<SystemTime> {
    let Some(text) = env::var_os("SOURCE_DATE_EPOCH") else {
        return Ok(SystemTime::UNIX_EPOCH);
    };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    let seconds =
        seconds.with_context(|| format!("SOURCE_DATE_EPOCH={text:?} is not a number of seconds"))?;
    Ok(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
}

fn write_below(dir: &std::path::Path, files: &[Entry]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    for file in files {
        let path = dir.join(&file.path);
        let failed = || format!("writing {}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(failed)?;
        }
        fs::write(&path, &file.content).with_context(failed)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode)).with_context(failed)?;
    }
    say("image", &format!("{} files below {}", files.len(), dir.display()));
    Ok(())
}
