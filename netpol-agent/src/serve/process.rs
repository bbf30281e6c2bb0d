//! What this process uses (`proc(5)`: `/proc/self/stat`, `/proc/self/statm`).

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// CPU time and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Usage {
    /// User and system time since the start.
    pub(super) cpu_seconds: f64,
    /// Resident set.
    pub(super) resident_bytes: u64,
    /// Seconds since 1970.
    pub(super) started_seconds: f64,
}

impl Usage {
    /// What `/proc` says; zeros where it can not be read.
    pub(super) fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let system = |name| {
            sysconf(name)
                .ok()
                .flatten()
                .and_then(|value| u32::try_from(value).ok())
        };
        let ticks = f64::from(system(SysconfVar::CLK_TCK).unwrap_or(100));
        let page = u64::from(system(SysconfVar::PAGE_SIZE).unwrap_or(4096));
        Self::parse(
            &read("/proc/self/stat"),
            &read("/proc/self/statm"),
            &read("/proc/stat"),
            ticks,
            page,
        )
    }

    fn parse(stat: &str, statm: &str, system: &str, ticks: f64, page: u64) -> Self {
        // The second field is the name in parentheses, and may hold anything.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let field = |number: usize| {
            fields
                .get(number - 3)
                .and_then(|text| text.parse::<f64>().ok())
                .unwrap_or(0.0)
        };
        let boot = system
            .lines()
            .find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
        let pages = statm
            .split_whitespace()
            .nth(1)
            .and_then(|text| text.parse::<u64>().ok());
        Self {
            cpu_seconds: (field(14) + field(15)) / ticks,
            resident_bytes: pages.unwrap_or(0) * page,
            started_seconds: boot.unwrap_or(0.0) + field(22) / ticks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_is_no_field() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 4 0 1000 1 1";
        let usage = Usage::parse(stat, "9 3 2 1 0 1 0", "cpu 1\nbtime 1700000000\n", 100.0, 4096);
        assert_eq!(
            usage,
            Usage {
                cpu_seconds: 2.0,
                resident_bytes: 3 * 4096,
                started_seconds: 1_700_000_010.0
            }
        );
    }

    #[test]
    fn this_process_uses_something() {
        let usage = Usage::now();
        assert!(
            usage.resident_bytes > 1 << 20 && usage.started_seconds > 1.6e9,
            "{usage:?}"
        );
    }
}
