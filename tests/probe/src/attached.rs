//! `attached`: what hangs on the devices of this network namespace, by TCX, whoever put it there.

use std::{io, mem};

use nix::{libc, net::if_::if_nameindex};

use crate::text::{print, quote};

/// `BPF_PROG_QUERY` of bpf(2).
const QUERY: libc::c_int = 16;
/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
const HOOKS: [(&str, u32); 2] = [("ingress", 46), ("egress", 47)];

/// `union bpf_attr`, as much as a query needs: without room for ids the kernel says how many there are.
#[repr(C)]
#[derive(Default)]
struct Query {
    device: u32,
    hook: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    reserved: u32,
    id_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// A line for each device and hook that has programs.
pub(crate) fn run() -> Result<bool, String> {
    let devices = if_nameindex().map_err(|error| format!("devices: {error}"))?;
    for device in &devices {
        let name = device.name().to_string_lossy();
        for (hook, number) in HOOKS {
            let count =
                programs(device.index(), number).map_err(|error| format!("{name} {hook}: {error}"))?;
            if count > 0 {
                let name = quote(&name);
                print(&format!(
                    "{{\"device\":{name},\"hook\":\"{hook}\",\"programs\":{count}}}"
                ));
            }
        }
    }
    Ok(true)
}

fn programs(device: u32, hook: u32) -> io::Result<u32> {
    let mut query = Query {
        device,
        hook,
        ..Query::default()
    };
    // SAFETY: the kernel reads and writes no more than the given length of the structure, which is as it expects it.
    let done = unsafe { libc::syscall(libc::SYS_bpf, QUERY, &raw mut query, mem::size_of::<Query>()) };
    match done {
        0 => Ok(query.count),
        // A kernel before 6.6 knows no such hook.
        _ if io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) => Ok(0),
        _ => Err(io::Error::last_os_error()),
    }
}
