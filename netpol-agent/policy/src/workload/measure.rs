//! What the compiler and the plan cost.

use std::time::{Duration, Instant};

use super::{Cluster, NODE, Names, namespace};
use crate::{
    compile::{Compiler, Stats},
    model::{Event, Labels, Namespace, NamespaceScope, Peer, Peers, Pod, Policy, Selector},
    plan::{Scope, Sizes, plan},
};

/// A whole cluster.
#[derive(Clone, Debug)]
pub struct Full {
    /// From nothing to tables, without the time to make the objects.
    pub compile: Duration,
    /// The plan that writes them.
    pub plan: Duration,
    /// Bytes that stay resident for it: what the compiler keeps. `None` where the system does not say.
    pub resident: Option<u64>,
    /// Bytes resident at the most, the objects handed in included.
    pub peak: Option<u64>,
    /// How much there is.
    pub stats: Stats,
    /// Entries of the tables.
    pub sizes: Sizes,
}

/// One kind of change: the median of several rounds.
#[derive(Clone, Debug)]
pub struct Change {
    /// What changes.
    pub what: &'static str,
    /// From event to tables.
    pub compile: Duration,
    /// The slowest round.
    pub compile_most: Duration,
    /// From tables to steps.
    pub plan: Duration,
    /// Exact addresses written.
    pub hosts: usize,
    /// Prefixes written.
    pub prefixes: usize,
    /// Cells written.
    pub cells: usize,
}

/// Compiles `cluster`, then changes it in every way, `rounds` times there and back.
#[must_use]
pub fn measure(cluster: &Cluster, rounds: usize) -> (Full, Vec<Change>) {
    let before = status("VmRSS:");
    let mut compiler = Compiler::new(NODE.into(), 1);
    let events = cluster.events();
    let start = Instant::now();
    compiler.apply_all(events);
    let compile = start.elapsed();
    drop(compiler.take_dirty());
    let (after, peak) = (status("VmRSS:"), status("VmHWM:"));
    let start = Instant::now();
    let steps = plan(
        &Default::default(),
        compiler.tables(),
        Scope::Everything,
        &mut compiler.ids(),
    );
    let full = Full {
        compile,
        plan: start.elapsed(),
        resident: before
            .zip(after)
            .map(|(before, after)| after.saturating_sub(before)),
        peak,
        stats: compiler.stats(),
        sizes: compiler.tables().sizes(),
    };
    drop(steps);
    let changes = changes(cluster)
        .into_iter()
        .flat_map(|(there, back, event, undo)| {
            let (mut first, mut second) = (Rounds::default(), Rounds::default());
            for _ in 0..rounds.max(1) {
                first.run(&mut compiler, event.clone());
                second.run(&mut compiler, undo.clone());
            }
            [first.into_change(there), second.into_change(back)]
        });
    (full, changes.collect())
}

type Toggle = (&'static str, &'static str, Event, Event);

fn changes(cluster: &Cluster) -> Vec<Toggle> {
    let mut names = Names::default();
    let local = cluster.pod(0, &mut names);
    // The same namespace as the local pod: a peer of its rules.
    let remote = cluster.pod(7 * cluster.namespaces(), &mut names);
    let toggles = |pod: &Pod| {
        [
            Event::Pod(relabelled(pod)),
            Event::Pod(pod.clone()),
            Event::PodGone(pod.name.clone()),
        ]
    };
    let [local_new, local_old, local_gone] = toggles(&local);
    let [remote_new, remote_old, remote_gone] = toggles(&remote);
    let mut moved = remote.clone();
    moved.addresses.truncate(1);
    let policy = cluster.policy(0, &mut names);
    let mut edited = policy.clone();
    edited.egress = Some(Vec::new());
    let gone = |policy: &Policy| Event::PolicyGone(policy.name.clone());
    let many = Cluster {
        blocks: 10_000,
        ..*cluster
    }
    .block_policy("many", &mut names);
    let (wide, wider) = (
        wide_policy(cluster, 1, &mut names),
        wide_policy(cluster, 0, &mut names),
    );
    let space = namespace(0, &mut names);
    let bare = Namespace::new(space.name.clone(), []);
    vec![
        (
            "local pod relabelled",
            "local pod labelled back",
            local_new,
            local_old.clone(),
        ),
        ("local pod gone", "local pod new", local_gone, local_old),
        (
            "remote peer relabelled",
            "remote peer labelled back",
            remote_new,
            remote_old.clone(),
        ),
        (
            "remote peer loses an address",
            "remote peer gains an address",
            Event::Pod(moved),
            remote_old.clone(),
        ),
        ("remote peer gone", "remote peer new", remote_gone, remote_old),
        (
            "policy edited",
            "policy edited back",
            Event::Policy(edited),
            Event::Policy(policy.clone()),
        ),
        ("policy gone", "policy new", gone(&policy), Event::Policy(policy)),
        (
            "policy with a team as peer new",
            "policy with a team as peer gone",
            Event::Policy(wide.clone()),
            gone(&wide),
        ),
        (
            "policy with every pod new",
            "policy with every pod gone",
            Event::Policy(wider.clone()),
            gone(&wider),
        ),
        (
            "policy of 10000 ipBlocks new",
            "policy of 10000 ipBlocks gone",
            Event::Policy(many.clone()),
            gone(&many),
        ),
        (
            "namespace relabelled",
            "namespace labelled back",
            Event::Namespace(bare),
            Event::Namespace(space),
        ),
    ]
}

fn relabelled(pod: &Pod) -> Pod {
    let labels = pod
        .labels
        .iter()
        .map(|(key, value)| (key, if key == "app" { "app-19" } else { value }));
    Pod {
        labels: Labels::from_iter(labels),
        ..pod.clone()
    }
}

/// A policy for all pods of a local pod's namespace, with peers by namespace: of one team, or (0) every pod there is.
fn wide_policy(cluster: &Cluster, teams: usize, names: &mut Names) -> Policy {
    let mut policy = cluster.policy(0, names);
    policy.name.name = names.get("wide");
    policy.selector = Selector::default();
    policy.egress = None;
    let namespaces = match teams {
        0 => Selector::default(),
        _ => super::equals("team", "team-0", names),
    };
    let peer = Peer::Pods {
        namespaces: NamespaceScope::Matching(namespaces),
        pods: Selector::default(),
    };
    for rule in policy.ingress.iter_mut().flatten() {
        rule.peers = Peers::Of(vec![peer.clone()]);
    }
    policy
}

#[derive(Default)]
struct Rounds {
    compile: Vec<Duration>,
    plan: Vec<Duration>,
    written: [usize; 3],
}

impl Rounds {
    fn run(&mut self, compiler: &mut Compiler, event: Event) {
        let actual = compiler.tables().clone();
        let start = Instant::now();
        compiler.apply(event);
        self.compile.push(start.elapsed());
        let start = Instant::now();
        let dirty = compiler.take_dirty();
        let plan = plan(
            &actual,
            compiler.tables(),
            Scope::Dirty(&dirty),
            &mut compiler.ids(),
        );
        self.plan.push(start.elapsed());
        self.written = [dirty.hosts.len(), dirty.nets.len(), dirty.cells.len()];
        drop(plan);
    }

    fn into_change(mut self, what: &'static str) -> Change {
        self.compile.sort_unstable();
        self.plan.sort_unstable();
        let [hosts, prefixes, cells] = self.written;
        Change {
            what,
            compile: self.compile[self.compile.len() / 2],
            compile_most: self.compile[self.compile.len() - 1],
            plan: self.plan[self.plan.len() / 2],
            hosts,
            prefixes,
            cells,
        }
    }
}

/// A size in `/proc/self/status`, in bytes.
fn status(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
