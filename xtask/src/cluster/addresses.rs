//! Addresses: a network of its own a cluster for the nodes, the same ones in all clusters for pods and Services.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::daemon::{call, call_with};
use crate::ui;

/// Pods: a /24 a node.
pub(super) const PODS: &str = "10.244.0.0/16";
/// Pods: a /64 a node.
pub(super) const PODS6: &str = "fd00:10:244::/56";
/// Services.
pub(super) const SERVICES: &str = "10.96.0.0/16";
/// Services.
pub(super) const SERVICES6: &str = "fd00:10:96::/112";
/// The API server's Service.
pub(super) const API_SERVICE: &str = "10.96.0.1";
/// The port of the API server.
pub(super) const API_PORT: u16 = 6443;

/// The first two bytes of networks that are tried, in this order, with every third byte.
const BEGINNINGS: &[[u8; 2]] = &[[172, 30], [10, 130], [192, 168]];

/// The network of a cluster's nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Network {
    /// This machine's end of the link to the cluster.
    pub(super) link: String,
    /// The address of the /24.
    base: Ipv4Addr,
    /// There are IPv6 addresses too.
    dual_stack: bool,
}

impl Network {
    /// This machine.
    pub(super) const HOST: u8 = 1;
    /// The control plane.
    pub(super) const CONTROL: u8 = 2;

    /// A network that overlaps no route of this machine.
    ///
    /// # Errors
    /// Everything is taken, or the routes can't be read.
    pub(super) fn free(name: &str, dual_stack: bool) -> Result<Self> {
        let mut ip = Command::new("ip");
        ip.args(["-4", "route", "show", "table", "all"])
            .env("PATH", ui::path());
        let routes = call(&mut ip)?;
        let base = free_base(&routes)
            .context("no network of 172.30.0.0/16, 10.130.0.0/16, 192.168.0.0/16 is free of routes")?;
        Ok(Self {
            link: format!("npc-{name}"),
            base,
            dual_stack,
        })
    }

    /// The IPv4 address of a machine.
    pub(super) fn v4(&self, machine: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.base.octets();
        Ipv4Addr::new(a, b, c, machine)
    }

    /// The IPv6 address of a machine.
    pub(super) fn v6(&self, machine: u8) -> Option<Ipv6Addr> {
        let [a, b, c, _] = self.base.octets().map(u16::from);
        self.dual_stack
            .then(|| Ipv6Addr::new(0xfd00, a << 8 | b, c, 0, 0, 0, 0, machine.into()))
    }

    /// The lines for `ip -batch` that give `device` the addresses of `machine` and set it up.
    pub(super) fn configure(&self, device: &str, machine: u8) -> String {
        let mut lines = format!("addr add {}/24 dev {device}\n", self.v4(machine));
        if let Some(address) = self.v6(machine) {
            // No duplicate address detection: it would keep the address from being used for a second or more.
            lines += &format!("addr add {address}/64 dev {device} nodad\n");
        }
        lines + &format!("link set {device} up\n")
    }

    /// Makes the link from this machine to the network namespace of the process `init`.
    ///
    /// # Errors
    /// `ip` fails.
    pub(super) fn link_to(&self, init: i32) -> Result<()> {
        let link = &self.link;
        // Where both ends have the same index, each in its namespace, the kernel takes the change of carrier for one that
        // is not urgent, and the link is of no use for up to a second: hence the index.
        batch(
            "link to the cluster",
            &format!("link add {link} type veth peer name host index 1000 netns {init}\n"),
        )?;
        batch(
            "addresses of the link to the cluster",
            &self.configure(link, Self::HOST),
        )
    }
}

/// Runs `ip -batch` on the lines.
///
/// # Errors
/// One fails.
pub(super) fn batch(what: &str, lines: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    ip.args(["-batch", "-"]).env("PATH", ui::path());
    call_with(&mut ip, lines).context(what.to_owned())?;
    Ok(())
}

/// The first /24 that overlaps none of the routes.
fn free_base(routes: &str) -> Option<Ipv4Addr> {
    let taken: Vec<(u32, u8)> = routes.lines().filter_map(destination).collect();
    let free = |base: &Ipv4Addr| {
        taken.iter().all(|(address, length)| {
            let mask = mask((*length).min(24));
            u32::from(*base) & mask != address & mask
        })
    };
    BEGINNINGS
        .iter()
        .flat_map(|[a, b]| (0..=255).map(move |c| Ipv4Addr::new(*a, *b, c, 0)))
        .find(free)
}

/// The destination of a line of `ip route`; the default route is nobody's.
fn destination(line: &str) -> Option<(u32, u8)> {
    let word = line
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let (address, length) = word.split_once('/').unwrap_or((word, "32"));
    let address: Ipv4Addr = address.parse().ok()?;
    let length: u8 = length.parse().ok()?;
    (length > 0 && !line.starts_with("default")).then_some((address.into(), length))
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_with_routes_are_taken() {
        let base = |routes: &str| free_base(routes).map(|base| base.to_string());
        assert_eq!(base(""), Some("172.30.0.0".into()));
        assert_eq!(
            base("default via 172.30.0.1 dev eth0\n10.0.0.0/24 dev eth0"),
            Some("172.30.0.0".into())
        );
        assert_eq!(base("172.30.0.0/24 dev npc-a"), Some("172.30.1.0".into()));
        assert_eq!(
            base("172.30.0.0/24 dev a\nlocal 172.30.1.1 dev b table local"),
            Some("172.30.2.0".into())
        );
        assert_eq!(base("172.16.0.0/12 dev docker0"), Some("10.130.0.0".into()));
        assert_eq!(
            base("172.16.0.0/12 dev a\n10.0.0.0/8 dev b\n192.168.0.0/17 dev c"),
            Some("192.168.128.0".into())
        );
        assert_eq!(
            base("172.16.0.0/12 dev a\n10.0.0.0/8 dev b\n192.168.0.0/16 dev c"),
            None
        );
    }

    #[test]
    fn addresses_follow_from_the_network() {
        let network = Network {
            link: "npc-x".into(),
            base: Ipv4Addr::new(172, 30, 7, 0),
            dual_stack: true,
        };
        assert_eq!(network.v4(11).to_string(), "172.30.7.11");
        assert_eq!(
            network.v6(11).map(|a| a.to_string()),
            Some("fd00:ac1e:7::b".into())
        );
        assert_eq!(
            network.configure("eth0", 11),
            "addr add 172.30.7.11/24 dev eth0\naddr add fd00:ac1e:7::b/64 dev eth0 nodad\nlink set eth0 up\n"
        );
    }
}
