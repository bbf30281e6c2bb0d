//! Services, node ports and masquerade of one node, as kube-proxy and Flannel would write them.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use super::Node;

/// kube-proxy's mark for packets to be masqueraded.
const MASQUERADE: &str = "0x4000";

impl Node {
    /// From now on TCP, UDP and SCTP to `front` go to `back`, also where they went elsewhere before: what is
    /// tracked of `front` is forgotten, as kube-proxy does for UDP.
    ///
    /// # Errors
    /// Where `nft` or `conntrack` fails.
    pub fn service(&self, front: SocketAddr, back: SocketAddr) -> Result<()> {
        let matches = format!(
            "{} daddr {} meta l4proto {{ tcp, udp, sctp }} th dport {}",
            family(back.ip()),
            front.ip(),
            front.port()
        );
        self.translate(&format!("service-{}", front.port()), &matches, back)?;
        self.forget(&["--orig-dst", &front.ip().to_string()])
    }

    /// TCP, UDP and SCTP to `port` of any of the node's addresses of the family of `back` go there, masqueraded.
    ///
    /// # Errors
    /// Where `nft` fails.
    pub fn node_port(&self, port: u16, back: SocketAddr) -> Result<()> {
        let matches = format!(
            "fib daddr type local meta l4proto {{ tcp, udp, sctp }} th dport {port} meta mark set meta mark or {MASQUERADE}"
        );
        self.translate(&format!("port-{port}"), &matches, back)
    }

    /// What pods send to others than pods gets the node's address, as Flannel does.
    ///
    /// # Errors
    /// Where `nft` fails.
    pub fn masquerade(&self) -> Result<()> {
        for (family, pods) in [("ip", "10.244.0.0/16"), ("ip6", "fd00:244::/32")] {
            self.namespace.nft(&format!(
                "table {family} flannel {{ chain post {{ type nat hook postrouting priority srcnat; \
                 {family} saddr {pods} {family} daddr != {pods} masquerade; }}; }}"
            ))?;
        }
        Ok(())
    }

    /// Removes what connection tracking knows of what `filter` (arguments of `conntrack -D`) says; IPv4 unless it has an
    /// address or `-f`.
    ///
    /// # Errors
    /// Where `conntrack` fails otherwise than for finding nothing.
    pub fn forget(&self, filter: &[&str]) -> Result<()> {
        let arguments: Vec<&str> = ["-D"].into_iter().chain(filter.iter().copied()).collect();
        match self.namespace.command("conntrack", &arguments) {
            Err(error) if !format!("{error:#}").contains("0 flow entries") => Err(error),
            _ => Ok(()),
        }
    }

    /// One table for each family and name, so that a second call replaces the first in one step.
    fn translate(&self, name: &str, matches: &str, back: SocketAddr) -> Result<()> {
        let ip = family(back.ip());
        let table = format!("table {ip} {name}");
        // A pod behind its own Service answers itself only over the node.
        let itself = format!(
            "{ip} saddr {0} {ip} daddr {0} th dport {1}",
            back.ip(),
            back.port()
        );
        self.namespace.nft(&format!(
            "{table}\ndelete {table}\n{table} {{\n \
             chain pre {{ type nat hook prerouting priority dstnat; {matches} dnat to {back}; }}\n \
             chain out {{ type nat hook output priority -100; {matches} dnat to {back}; }}\n \
             chain post {{ type nat hook postrouting priority srcnat - 1;\n  \
             meta mark and {MASQUERADE} == {MASQUERADE} meta mark set meta mark xor {MASQUERADE} masquerade;\n  \
             meta l4proto {{ tcp, udp, sctp }} {itself} masquerade; }}\n}}\n"
        ))?;
        Ok(())
    }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}
