//! The agent as one static binary: with glibc in it, it needs no file of the image but itself.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::Arch;
use crate::{
    build, preflight,
    ui::{path, root, run_quietly, say, seconds},
};

impl Arch {
    fn target(self) -> String {
        format!("{}-unknown-linux-gnu", self.machine())
    }

    /// The C compiler and linker for this machine where it is not ours.
    fn cross_compiler(self) -> Option<String> {
        (self.machine() != std::env::consts::ARCH).then(|| format!("{}-linux-gnu-gcc", self.machine()))
    }
}

/// Everything that building for `arch` takes beyond building for this machine.
///
/// # Errors
/// [`preflight::Missing`], with what to install.
pub(super) fn require(arch: Arch) -> Result<()> {
    let mut missing = Vec::new();
    if let Some(compiler) = arch.cross_compiler() {
        let folders = path();
        if !std::env::split_paths(&folders).any(|dir| dir.join(&compiler).is_file()) {
            missing.push(format!(
                "no {compiler}: apt-get install gcc-{0}-linux-gnu libc6-dev-{1}-cross",
                arch.machine(),
                arch.name()
            ));
        }
        let target = arch.target();
        if !sysroot()?.join("lib/rustlib").join(&target).join("lib").is_dir() {
            missing.push(format!(
                "no standard library for {target}: rustup target add {target}"
            ));
        }
    }
    preflight::require(missing)
}

/// Builds the agent around the eBPF object and returns the binary's path.
///
/// # Errors
/// The compiler's, or the binary is not static.
pub(super) fn build(arch: Arch, object: &Path) -> Result<PathBuf> {
    static_program(arch, "netpol-agent", Some(object))
}

/// Builds the program of a package of the same name and returns the binary's path.
///
/// # Errors
/// The compiler's, or the binary is not static.
pub(super) fn static_program(arch: Arch, name: &str, object: Option<&Path>) -> Result<PathBuf> {
    let target = arch.target();
    let mut cargo = build::cargo("build");
    cargo
        .args(["--package", name, "--bin", name])
        .args(["--profile", "image", "--target", &target])
        .env("CARGO_ENCODED_RUSTFLAGS", flags()?.join("\x1f"));
    cargo.envs(object.map(|object| ("NETPOL_EBPF_OBJECT", object)));
    if let Some(compiler) = arch.cross_compiler() {
        let variable = target.to_uppercase().replace('-', "_");
        cargo.env(format!("CARGO_TARGET_{variable}_LINKER"), compiler);
    }
    let time = run_quietly(&format!("static {name} for {}", arch.name()), &mut cargo)?;
    let binary = root().join("target").join(&target).join("image").join(name);
    let elf = std::fs::read(&binary).with_context(|| format!("reading {}", binary.display()))?;
    ensure!(
        !needs_interpreter(&elf)?,
        "{} is linked dynamically: nothing in the image could load its libraries",
        binary.display()
    );
    say(
        &format!("static {name}"),
        &format!("{}, {} KiB, {}", arch.name(), elf.len() / 1024, seconds(time)),
    );
    Ok(binary)
}

/// Static, and without the places where this checkout and its crates lie: another checkout gives the same binary.
fn flags() -> Result<Vec<String>> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cargo")))
        .context("neither CARGO_HOME nor a home directory")?;
    Ok(vec![
        "-Ctarget-feature=+crt-static".into(),
        format!("--remap-path-prefix={}=cargo", home.display()),
        format!("--remap-path-prefix={}=netpol", root().display()),
    ])
}

/// The compiler's own directory; the one that cargo will use.
fn sysroot() -> Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let done = Command::new(&rustc)
        .args(["--print", "sysroot"])
        .output()
        .with_context(|| format!("starting {}", rustc.display()))?;
    ensure!(
        done.status.success(),
        "{} --print sysroot failed",
        rustc.display()
    );
    Ok(PathBuf::from(String::from_utf8_lossy(&done.stdout).trim()))
}

/// Whether a 64-bit little-endian ELF file names a dynamic loader (`PT_INTERP`).
fn needs_interpreter(elf: &[u8]) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, size: usize| -> Result<usize> {
        let bytes = elf.get(at..at + size).context("the ELF file ends early")?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    ensure!(
        elf.starts_with(b"\x7fELF\x02\x01"),
        "not a 64-bit little-endian ELF file"
    );
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for header in 0..count {
        if number(table + header * size, 4)? == PT_INTERP as usize {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header with one program header of the type.
    fn elf(kind: u8) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[32], elf[54], elf[56], elf[64]) = (64, 56, 1, kind);
        elf
    }

    #[test]
    fn a_binary_that_names_a_loader_is_not_static() {
        assert!(!needs_interpreter(&elf(1)).expect("complete"));
        assert!(needs_interpreter(&elf(3)).expect("complete"));
        assert!(needs_interpreter(&elf(3)[..64]).is_err());
        assert!(needs_interpreter(b"#!/bin/sh\n").is_err());
    }

    #[test]
    fn this_test_is_linked_dynamically() {
        let own = std::fs::read("/proc/self/exe").expect("readable");
        assert!(needs_interpreter(&own).expect("an ELF file"));
    }
}
