//! `kill`: what a node's agent has to endure; `look`: what is left in directories of a node.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::text::{print, quote};

/// Kills, every `every_ms` for `seconds`, the processes called `name` that share this one's network namespace: those of
/// this node. Says how many it killed.
pub(crate) fn run(name: &str, every_ms: u64, seconds: u64) -> Result<bool, String> {
    let own = fs::read_link("/proc/self/ns/net").map_err(|error| format!("/proc/self/ns/net: {error}"))?;
    let start = Instant::now();
    let (mut rounds, mut killed) = (0, 0);
    while start.elapsed() < Duration::from_secs(seconds) {
        let found = processes(name, &own);
        rounds += 1;
        for pid in found {
            // One that has just ended can't be killed.
            killed += u64::from(kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok());
        }
        thread::sleep(Duration::from_millis(every_ms));
    }
    print(&format!("{{\"rounds\":{rounds},\"killed\":{killed}}}"));
    Ok(true)
}

fn processes(name: &str, own: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let command = fs::read_to_string(dir.join("comm")).unwrap_or_default();
        let net = fs::read_link(dir.join("ns/net")).ok();
        command.trim_end() == name && net.as_deref() == Some(own)
    })
    .collect()
}

/// The names of what is in directories; a directory that is not there holds nothing.
pub(crate) fn look(paths: &[String]) -> Result<bool, String> {
    for path in paths {
        let entries = fs::read_dir(path).map(|entries| {
            let mut names: Vec<String> = entries
                .flatten()
                .map(|entry| quote(&entry.file_name().to_string_lossy()))
                .collect();
            names.sort();
            names
        });
        let names = entries.unwrap_or_default().join(",");
        print(&format!("{{\"path\":{},\"holds\":[{names}]}}", quote(path)));
    }
    Ok(true)
}
