//! Embeds the eBPF object, which `cargo xtask build` makes with a toolchain of its own.
//!
//! `NETPOL_EBPF_OBJECT` names another file. Where there is none, an empty slice is embedded and the agent
//! says at run time how to build it: everything that needs no kernel still works.

use std::{env, fs, path::PathBuf};

fn main() -> std::io::Result<()> {
    let workspace = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("..");
    let object = env::var_os("NETPOL_EBPF_OBJECT")
        .map_or_else(|| workspace.join("target/bpf/netpol.o"), PathBuf::from);
    println!("cargo:rerun-if-env-changed=NETPOL_EBPF_OBJECT");
    println!("cargo:rerun-if-changed={}", object.display());

    let embedded = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("netpol.o");
    if object.exists() {
        fs::copy(object, embedded)?;
    } else {
        fs::write(embedded, [])?;
    }
    Ok(())
}
