//! Asks the oracle and the tables, and holds one answer against the other.

use std::{collections::HashMap, fmt, sync::OnceLock};

use netpol_common::tables::RULESET_NONE;
use netpol_policy::{
    model::{Direction, Snapshot, Str},
    oracle::{Flow, Oracle, Side, Verdict},
    tables::{PodRules, Tables},
};

use super::{
    QueryError,
    end::{Family, Found, Located, Subject, locate},
    ends::Ends,
    port::{self, PortName, Transport},
};

/// A flow between two ends that were found.
#[derive(Clone, Copy, Debug)]
pub struct Question<'q> {
    /// Who opens it.
    pub from: &'q Located<'q>,
    /// To whom.
    pub to: &'q Located<'q>,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port in host byte order; 0 where the protocol has none.
    pub port: u16,
}

impl<'q> Question<'q> {
    /// The flow that a person means: by which addresses, at which port number.
    ///
    /// # Errors
    /// The two have no address of that family, or the port does not fit the protocol or the destination.
    pub fn new(
        from: &'q Found<'q>,
        to: &'q Found<'q>,
        transport: Transport,
        port: Option<&PortName>,
        family: Option<Family>,
    ) -> Result<Self, QueryError> {
        let port = port::resolve(transport, port, to)?;
        let [from, to] = locate(from, to, family)?;
        Ok(Self {
            from,
            to,
            protocol: transport.number(Family::of(to.address)),
            port,
        })
    }

    /// The same for the oracle.
    #[must_use]
    pub fn flow(&self) -> Flow {
        Flow {
            from: self.from.end.clone(),
            to: self.to.end.clone(),
            protocol: self.protocol,
            port: self.port,
        }
    }

    /// The family in which they talk.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of(self.to.address)
    }
}

/// What the tables say of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TableSide {
    /// Whether a ruleset is in force.
    pub isolated: bool,
    /// Whether the flow passes this side.
    pub allowed: bool,
}

/// The oracle and the tables disagree: an error of netpol's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The sender's side: oracle, tables.
    pub egress: [TableSide; 2],
    /// The receiver's side: oracle, tables.
    pub ingress: [TableSide; 2],
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |side: TableSide| match (side.isolated, side.allowed) {
            (false, true) => "allowed (not isolated)",
            (false, false) => "denied (not isolated)",
            (true, true) => "allowed",
            (true, false) => "denied",
        };
        write!(
            f,
            "an error of netpol's own: the policies and the compiled tables disagree; egress: {} by the policies, {} \
             by the tables; ingress: {} by the policies, {} by the tables; please report it with these manifests",
            word(self.egress[0]),
            word(self.egress[1]),
            word(self.ingress[0]),
            word(self.ingress[1])
        )
    }
}

/// Compiles what one node's kernel should hold.
pub type Compile = fn(&Snapshot, &str) -> Tables;

/// Answers questions about one snapshot.
#[derive(Debug)]
pub struct Judge<'a> {
    ends: Ends<'a>,
    oracle: Oracle<'a>,
    nodes: NodeTables,
}

impl<'a> Judge<'a> {
    /// Indexes `snapshot`; `compile` is called once a node, at the first question about one of its pods.
    #[must_use]
    pub fn new(snapshot: &'a Snapshot, compile: Compile) -> Self {
        Self {
            ends: Ends::new(snapshot),
            oracle: Oracle::new(snapshot),
            nodes: NodeTables::new(snapshot, compile),
        }
    }

    /// Who is who in the snapshot.
    #[must_use]
    pub const fn ends(&self) -> &Ends<'a> {
        &self.ends
    }

    /// The oracle's verdict, where the tables agree.
    ///
    /// # Errors
    /// They do not.
    pub fn ask(&self, question: &Question<'_>) -> Result<Verdict<'_>, Mismatch> {
        let Question {
            from,
            to,
            protocol,
            port,
        } = *question;
        let verdict = self.oracle.between([&from.end, &to.end], protocol, port);
        let sides = |side: &Side<'_>, direction| {
            let (local, remote) = match direction {
                Direction::Egress => (from, to),
                Direction::Ingress => (to, from),
            };
            let oracle = TableSide {
                isolated: side.isolated,
                allowed: side.allowed,
            };
            [oracle, self.nodes.side(direction, local, remote, protocol, port)]
        };
        let egress = sides(&verdict.egress, Direction::Egress);
        let ingress = sides(&verdict.ingress, Direction::Ingress);
        if egress[0] == egress[1] && ingress[0] == ingress[1] {
            Ok(verdict)
        } else {
            Err(Mismatch { egress, ingress })
        }
    }
}

/// The tables of every node that has pods, compiled when first asked.
#[derive(Debug)]
struct NodeTables {
    /// The snapshot, with a node for every pod.
    snapshot: Snapshot,
    compile: Compile,
    nodes: Vec<(Str, OnceLock<Tables>)>,
    /// By the pod's place in the snapshot: its node's in `nodes`, and its rulesets there.
    pods: Vec<(usize, OnceLock<PodRules>)>,
}

/// The node of the pods that have none yet: no object's name is empty.
const UNSCHEDULED: &str = "";

impl NodeTables {
    fn new(snapshot: &Snapshot, compile: Compile) -> Self {
        let mut snapshot = snapshot.clone();
        let mut places = HashMap::new();
        let mut nodes = Vec::new();
        let mut pods = Vec::with_capacity(snapshot.pods.len());
        for pod in snapshot.pods.values_mut() {
            let node = pod.node.get_or_insert_with(|| UNSCHEDULED.into());
            let place = *places.entry(node.clone()).or_insert_with(|| {
                nodes.push((node.clone(), OnceLock::new()));
                nodes.len() - 1
            });
            pods.push((place, OnceLock::new()));
        }
        Self {
            snapshot,
            compile,
            nodes,
            pods,
        }
    }

    /// The tables of the subject's node, and its rulesets there. A pod that they do not have is not isolated.
    fn of(&self, subject: Subject<'_>) -> (&Tables, PodRules) {
        let (place, rules) = &self.pods[subject.index];
        let (node, tables) = &self.nodes[*place];
        let tables = tables.get_or_init(|| (self.compile)(&self.snapshot, node));
        let rules = rules.get_or_init(|| tables.pods.get(&subject.pod.name).copied().unwrap_or_default());
        (tables, *rules)
    }

    /// What the kernels of the nodes of `local` decide in `direction`; who is no pod is never isolated.
    fn side(
        &self,
        direction: Direction,
        local: &Located<'_>,
        remote: &Located<'_>,
        protocol: u8,
        port: u16,
    ) -> TableSide {
        let mut side = TableSide {
            isolated: false,
            allowed: true,
        };
        for &subject in &local.subjects {
            let (tables, rules) = self.of(subject);
            let ruleset = match direction {
                Direction::Ingress => rules.ingress,
                Direction::Egress => rules.egress,
            };
            let isolated = ruleset != RULESET_NONE;
            side.isolated |= isolated;
            side.allowed &= !isolated
                || exempt(subject, remote)
                || tables.allows(ruleset, tables.class(remote.address), protocol, port);
        }
        side
    }
}

/// What the programs pass before they look at any table: a pod's packets to itself and its own node's.
fn exempt(subject: Subject<'_>, remote: &Located<'_>) -> bool {
    let itself =
        !remote.subjects.is_empty() && remote.subjects.iter().all(|other| other.index == subject.index);
    itself || (remote.node.is_some() && remote.node == subject.pod.node.as_deref())
}
