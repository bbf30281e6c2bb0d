//! Adoption: connections that were there before their pod was isolated.
//!
//! They have no flow entry, and a reply to what the pod opened would look like a new packet in mid-stream.
//! Conntrack knows who opened what (never whether it is allowed: it also holds what we drop), so each of its
//! connections becomes an entry *of an older epoch*: the next packet is judged by the rules, from the ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netpol_common::{
    flow::{Flow, Key4, Key6, STATE_ANSWERED, verdict},
    mark::OUTSIDE,
    proto::{SCTP, TCP},
};

use super::{
    conntrack::{Connection, Tuple},
    pods::Slot,
    settings::{word4, words6},
};

/// A local pod, as adoption sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Its place.
    pub slot: Slot,
    /// Isolated for ingress, under the policy that is about to be enforced.
    pub ingress: bool,
    /// Isolated for egress.
    pub egress: bool,
    /// Its isolation begins now: only its connections are adopted.
    pub begins: bool,
}

/// The key of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// IPv4
    V4(Key4),
    /// IPv6
    V6(Key6),
}

/// An entry to write where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The tuple as seen at the way out.
    pub key: Key,
    /// The flow; its state says which table it belongs to.
    pub flow: Flow,
}

/// Turns connections into the entries that replies will need.
///
/// `pods`: local pods by address. `node`: the node's own addresses; its packets need no entries. `epoch`: one
/// before the current. `now`: `jiffies64`.
#[must_use]
pub fn entries(
    connections: &[Connection],
    pods: &BTreeMap<IpAddr, End>,
    node: &BTreeSet<IpAddr>,
    epoch: u32,
    now: u64,
) -> Vec<Entry> {
    connections
        .iter()
        .filter(|connection| !connection.closed && !node.contains(&connection.original.src))
        .filter_map(|connection| {
            let from = pods.get(&connection.original.src);
            // Who answers: after DNAT, so never a Service's address.
            let to = pods.get(&connection.reply.src);
            let begins = [from, to].into_iter().flatten().any(|end| end.begins);
            if !begins
                || !is_needed(from, to, connection.original.proto)
                || node.contains(&connection.reply.src)
            {
                return None;
            }
            let (from, from_inc) = place(from);
            let (to, to_inc) = place(to);
            let flow = Flow {
                from,
                from_inc,
                to,
                to_inc,
                seen: now,
                verdict: verdict(epoch, false),
                state: if connection.answered { STATE_ANSWERED } else { 0 },
            };
            // At the way out a packet looks as the replying end sees it: the reply's tuple, reversed.
            key(&connection.reply).map(|key| Entry { key, flow })
        })
        .collect()
}

/// Whether conntrack knows every TCP connection of the pods of one family, so that a segment in mid-stream which it does
/// not know needs no grace: it tracks pods at all (it does so only where a rule asks for it), and packets that are
/// bridged from pod to pod pass by it (`bridged`: pods are ports of a bridge; `bridge_hook`: br_netfilter calls netfilter).
#[must_use]
pub fn knows_all(
    connections: &[Connection],
    pods: &BTreeMap<IpAddr, End>,
    ipv6: bool,
    bridged: bool,
    bridge_hook: bool,
) -> bool {
    let tracks = |tuple: &Tuple| tuple.src.is_ipv6() == ipv6 && pods.contains_key(&tuple.src);
    (bridge_hook || !bridged)
        && connections
            .iter()
            .any(|found| tracks(&found.original) || tracks(&found.reply))
}

/// The rule of the data path: an entry exists only where a reply needs one.
fn is_needed(from: Option<&End>, to: Option<&End>, proto: u8) -> bool {
    if from.is_some() && from.map(|end| end.slot) == to.map(|end| end.slot) {
        return false;
    }
    let replying_is_held = to.is_some_and(|end| end.egress);
    let initiator_is_closed = from.is_some_and(|end| end.ingress);
    let shows_beginnings = matches!(proto, TCP | SCTP) || super::conntrack::is_icmp(proto);
    replying_is_held
        || initiator_is_closed
        || (!shows_beginnings && (from.is_some_and(|end| end.egress) || to.is_some_and(|end| end.ingress)))
}

fn place(end: Option<&End>) -> (u32, u32) {
    end.map_or((OUTSIDE, 0), |end| (end.slot.index, end.slot.incarnation))
}

fn key(reply: &Tuple) -> Option<Key> {
    let (sport, dport) = (reply.dport.to_be(), reply.sport.to_be());
    let proto = reply.proto.into();
    Some(match (reply.dst, reply.src) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Key::V4(Key4 {
            src: word4(src),
            dst: word4(dst),
            sport,
            dport,
            proto,
        }),
        (IpAddr::V6(src), IpAddr::V6(dst)) => Key::V6(Key6 {
            src: words6(src),
            dst: words6(dst),
            sport,
            dport,
            proto,
        }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: [u8; 4] = [10, 244, 0, 5];
    const OTHER: [u8; 4] = [10, 244, 0, 9];
    const NODE: [u8; 4] = [192, 168, 0, 2];
    const FAR: [u8; 4] = [203, 0, 113, 7];

    fn tuple(proto: u8, src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16) -> Tuple {
        Tuple {
            src: src.into(),
            dst: dst.into(),
            proto,
            sport,
            dport,
        }
    }

    fn connection(original: Tuple, reply: Tuple) -> Connection {
        Connection {
            original,
            reply,
            answered: true,
            closed: false,
        }
    }

    fn plain(proto: u8, src: [u8; 4], dst: [u8; 4]) -> Connection {
        connection(
            tuple(proto, src, 40000, dst, 80),
            tuple(proto, dst, 80, src, 40000),
        )
    }

    fn run(connections: &[Connection], pod: (bool, bool), other: (bool, bool)) -> Vec<Entry> {
        let end = |index, (ingress, egress)| End {
            slot: Slot {
                index,
                incarnation: index + 100,
            },
            ingress,
            egress,
            begins: index == 1 || ingress || egress,
        };
        let pods = BTreeMap::from([(POD.into(), end(1, pod)), (OTHER.into(), end(2, other))]);
        entries(connections, &pods, &BTreeSet::from([NODE.into()]), 6, 1000)
    }

    fn entry(from: u32, to: u32, src: ([u8; 4], u16), dst: ([u8; 4], u16), proto: u8) -> Entry {
        let incarnation = |index| if index == 0 { 0 } else { index + 100 };
        Entry {
            key: Key::V4(Key4 {
                src: u32::from_ne_bytes(src.0),
                dst: u32::from_ne_bytes(dst.0),
                sport: src.1.to_be(),
                dport: dst.1.to_be(),
                proto: proto.into(),
            }),
            flow: Flow {
                from,
                from_inc: incarnation(from),
                to,
                to_inc: incarnation(to),
                seen: 1000,
                verdict: verdict(6, false),
                state: STATE_ANSWERED,
            },
        }
    }

    #[test]
    fn pod_to_service_is_keyed_by_the_backend() {
        let service = [10, 96, 0, 1];
        let connection = connection(
            tuple(6, POD, 40000, service, 80),
            tuple(6, OTHER, 8080, POD, 40000),
        );
        assert_eq!(
            run(&[connection], (true, false), (false, false)),
            [entry(1, 2, (POD, 40000), (OTHER, 8080), 6)]
        );
    }

    #[test]
    fn masqueraded_pod_is_keyed_by_the_node_and_named_by_itself() {
        let connection = connection(tuple(6, POD, 40000, FAR, 443), tuple(6, FAR, 443, NODE, 36630));
        assert_eq!(
            run(&[connection], (true, false), (false, false)),
            [entry(1, 0, (NODE, 36630), (FAR, 443), 6)]
        );
    }

    #[test]
    fn only_where_a_reply_needs_it() {
        let count = |connection: Connection, pod, other| run(&[connection], pod, other).len();
        let (none, ingress, egress) = ((false, false), (true, false), (false, true));
        // TCP: the initiator closed for ingress, or the replying end held for egress.
        assert_eq!(
            [none, ingress, egress].map(|pod| count(plain(6, POD, OTHER), pod, none)),
            [0, 1, 0]
        );
        assert_eq!(
            [none, ingress, egress].map(|other| count(plain(6, POD, OTHER), none, other)),
            [0, 0, 1]
        );
        assert_eq!(
            [none, ingress, egress].map(|pod| count(plain(6, FAR, POD), pod, none)),
            [0, 0, 1]
        );
        // UDP shows no beginning: any isolated end.
        assert_eq!(
            [none, ingress, egress].map(|pod| count(plain(17, POD, OTHER), pod, none)),
            [0, 1, 1]
        );
        assert_eq!(
            [none, ingress, egress].map(|pod| count(plain(17, FAR, POD), pod, none)),
            [0, 1, 1]
        );
        assert_eq!(
            [none, ingress, egress].map(|pod| count(plain(1, FAR, POD), pod, none)),
            [0, 0, 1]
        );
    }

    #[test]
    fn nobodys_business() {
        let both = (true, true);
        let closed = Connection {
            closed: true,
            ..plain(6, POD, OTHER)
        };
        let itself = connection(
            tuple(6, POD, 40000, [10, 96, 0, 1], 80),
            tuple(6, POD, 80, POD, 40000),
        );
        let connections = [
            closed,
            itself,
            plain(6, NODE, POD),
            plain(6, POD, NODE),
            plain(6, FAR, NODE),
        ];
        assert_eq!(run(&connections, both, both), []);
    }

    /// The pod alone, isolated in both directions.
    fn alone(begins: bool) -> BTreeMap<IpAddr, End> {
        let slot = Slot {
            index: 1,
            incarnation: 1,
        };
        let end = End {
            slot,
            ingress: true,
            egress: true,
            begins,
        };
        BTreeMap::from([(POD.into(), end)])
    }

    #[test]
    fn only_of_pods_whose_isolation_begins() {
        let count = |begins| entries(&[plain(6, FAR, POD)], &alone(begins), &BTreeSet::new(), 6, 1000).len();
        assert_eq!([count(true), count(false)], [1, 0]);
    }

    #[test]
    fn grace_only_where_conntrack_is_blind() {
        let pods = alone(true);
        let tracked = [plain(6, FAR, POD)];
        let cases = [
            (knows_all(&tracked, &pods, false, true, true), true),
            (knows_all(&tracked, &pods, false, false, false), true),
            // Bridged packets pass by conntrack.
            (knows_all(&tracked, &pods, false, true, false), false),
            // Nothing is tracked, or only the other family, or only the node's own.
            (knows_all(&[], &pods, false, false, true), false),
            (knows_all(&tracked, &pods, true, false, true), false),
            (
                knows_all(&[plain(6, FAR, NODE)], &pods, false, false, true),
                false,
            ),
        ];
        for (at, (found, expected)) in cases.into_iter().enumerate() {
            assert_eq!(found, expected, "case {at}");
        }
    }

    #[test]
    fn unanswered_stays_unanswered() {
        let opening = Connection {
            answered: false,
            ..plain(6, POD, OTHER)
        };
        let states: Vec<_> = run(&[opening], (true, true), (true, true))
            .iter()
            .map(|entry| entry.flow.state)
            .collect();
        assert_eq!(states, [0]);
    }
}
