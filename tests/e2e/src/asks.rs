//! Questions to the network, asked from pods, and what their answers should be.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::{cluster::Cluster, kubectl::until, load::pause};

/// How long who answers may take; who is silent costs this.
const PATIENCE: u64 = 900;
/// As often an allowed question is asked, on a machine that is slow.
const TRIES: u32 = 4;
/// By when a change is in force in the sense of these tests; how fast it really is, metrics say.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// By when a change of objects denies what it takes away. Goal: 100 ms; a machine of two cores that starts pods at the same time
/// takes a second.
const DENIED: Duration = Duration::from_secs(2);

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum From {
    /// Namespace, and a name or `deploy/NAME`.
    Pod(String, String),
    /// The host outside of the cluster, by this address.
    Outside(IpAddr),
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(namespace, name) => write!(f, "{namespace}/{name}"),
            Self::Outside(address) => write!(f, "outside {address}"),
        }
    }
}

/// What should happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// This one answers.
    By(String),
    /// Somebody answers.
    Any,
    /// Nobody, and nobody says no.
    Denied,
}

/// One question.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) from: From,
    /// As the probe reads it.
    pub(crate) to: String,
    pub(crate) expect: Expect,
    /// What is shown to: `Service web, by name`.
    pub(crate) what: String,
}

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// `answered`, `refused`, `silent` or `failed`.
    pub(crate) word: String,
    /// Who answered.
    pub(crate) by: String,
    /// Whom the answerer saw, or why it failed.
    pub(crate) detail: String,
}

impl Outcome {
    fn of(line: &Value) -> Self {
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        Self {
            word: text("outcome"),
            by: text("by"),
            detail: if line["seen"].is_null() {
                text("why")
            } else {
                text("seen")
            },
        }
    }

    /// Whether it is what was expected.
    pub(crate) fn fits(&self, expect: &Expect) -> bool {
        match expect {
            Expect::By(name) => self.word == "answered" && self.by == *name,
            Expect::Any => self.word == "answered",
            Expect::Denied => self.word == "silent",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.word.as_str() {
            "answered" => write!(f, "answered by {:?}, which saw {}", self.by, self.detail),
            "failed" => write!(f, "failed: {}", self.detail),
            word => f.write_str(word),
        }
    }
}

/// `tcp:ADDRESS:PORT`
pub(crate) fn tcp_to(address: IpAddr, port: u16) -> String {
    format!("tcp:{}", SocketAddr::new(address, port))
}

/// `udp:ADDRESS:PORT`
pub(crate) fn udp_to(address: IpAddr, port: u16) -> String {
    format!("udp:{}", SocketAddr::new(address, port))
}

/// A list of questions, and how to build it in few words.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asks(pub(crate) Vec<Ask>);

impl Asks {
    /// Adds one.
    pub(crate) fn add(&mut self, from: From, to: impl Into<String>, expect: Expect, what: impl Into<String>) {
        self.0.push(Ask {
            from,
            to: to.into(),
            expect,
            what: what.into(),
        });
    }

    /// A pod asks, and `by` should answer.
    pub(crate) fn allow(
        &mut self,
        from: (&str, &str),
        to: impl Into<String>,
        by: &str,
        what: impl Into<String>,
    ) {
        let from = From::Pod(from.0.to_owned(), from.1.to_owned());
        self.add(from, to, Expect::By(by.to_owned()), what);
    }

    /// A pod asks, and nobody should answer.
    pub(crate) fn deny(&mut self, from: (&str, &str), to: impl Into<String>, what: impl Into<String>) {
        self.add(
            From::Pod(from.0.to_owned(), from.1.to_owned()),
            to,
            Expect::Denied,
            what,
        );
    }

    /// The outside host asks by `from`, and `by` should answer; nobody where it is `None`.
    pub(crate) fn outside(
        &mut self,
        from: IpAddr,
        to: impl Into<String>,
        by: Option<&str>,
        what: impl Into<String>,
    ) {
        let expect = by.map_or(Expect::Denied, |by| Expect::By(by.to_owned()));
        self.add(From::Outside(from), to, expect, what);
    }

    /// After a change: soon everything is as expected, and then it stays so.
    ///
    /// # Errors
    /// What is not.
    pub(crate) fn settle(&self, cluster: &Cluster) -> Result<()> {
        until(SOON, || self.once(cluster))?;
        self.hold(cluster)
    }

    /// The same after a change that the API server confirmed at `since`; what is denied holds from [`DENIED`] on.
    ///
    /// # Errors
    /// What is not as expected.
    pub(crate) fn settle_from(&self, cluster: &Cluster, since: Instant) -> Result<()> {
        let (denied, allowed) = self
            .0
            .iter()
            .cloned()
            .partition(|ask| ask.expect == Expect::Denied);
        pause(DENIED.saturating_sub(since.elapsed()))?;
        Self(denied).hold(cluster)?;
        Self(allowed).settle(cluster)?;
        self.hold(cluster)
    }

    /// Everything is as expected now. What should be answered is asked some times (a busy machine is slow); what gets
    /// through and should not is never excused.
    ///
    /// # Errors
    /// What is not.
    pub(crate) fn hold(&self, cluster: &Cluster) -> Result<()> {
        let mut open = self.0.clone();
        let mut wrong = Vec::new();
        for last in (0..TRIES).map(|attempt| attempt + 1 == TRIES) {
            let outcomes = ask(cluster, &open)?;
            let asked = open.into_iter().zip(outcomes);
            let missed = asked.filter(|(ask, outcome)| !outcome.fits(&ask.expect));
            let (again, bad): (Vec<_>, Vec<_>) = missed.partition(|(ask, outcome)| {
                !last && (ask.expect != Expect::Denied || outcome.word == "failed")
            });
            wrong.extend(bad);
            open = again.into_iter().map(|(ask, _)| ask).collect();
            if open.is_empty() {
                break;
            }
        }
        report(self.0.len(), &wrong)
    }

    fn once(&self, cluster: &Cluster) -> Result<()> {
        let asked = self.0.iter().cloned().zip(ask(cluster, &self.0)?);
        let wrong: Vec<_> = asked
            .filter(|(ask, outcome)| !outcome.fits(&ask.expect))
            .collect();
        report(self.0.len(), &wrong)
    }
}

fn report(asked: usize, wrong: &[(Ask, Outcome)]) -> Result<()> {
    if wrong.is_empty() {
        return Ok(());
    }
    let lines = wrong.iter().map(|(ask, outcome)| {
        let expected = match &ask.expect {
            Expect::By(name) => format!("expected an answer of {name:?}"),
            Expect::Any => "expected an answer".to_owned(),
            Expect::Denied => "expected silence".to_owned(),
        };
        format!(
            "  {} -> {} ({}): {expected}, but {outcome}",
            ask.from, ask.to, ask.what
        )
    });
    bail!(
        "{} of {asked} questions went wrong:\n{}",
        wrong.len(),
        lines.collect::<Vec<_>>().join("\n")
    )
}

/// Asks all: one command a pod, a few pods at a time.
///
/// # Errors
/// A pod can't be asked at all.
pub(crate) fn ask(cluster: &Cluster, asks: &[Ask]) -> Result<Vec<Outcome>> {
    let mut by_pod: BTreeMap<&From, Vec<usize>> = BTreeMap::new();
    for (at, ask) in asks.iter().enumerate() {
        by_pod.entry(&ask.from).or_default().push(at);
    }
    let mut outcomes = vec![Outcome::default(); asks.len()];
    let work: Vec<_> = by_pod.into_iter().collect();
    for some in work.chunks(4) {
        let answers = std::thread::scope(|scope| {
            let threads: Vec<_> = some
                .iter()
                .map(|(from, own)| scope.spawn(move || ask_from(cluster, from, own, asks)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join())
                .collect::<Vec<_>>()
        });
        for answer in answers {
            let answer = answer.map_err(|_| anyhow::anyhow!("a thread that asks died"))?;
            for (at, outcome) in answer? {
                outcomes[at] = outcome;
            }
        }
    }
    Ok(outcomes)
}

/// Asks the same a number of times, all at once.
///
/// # Errors
/// The pod can't be asked at all.
pub(crate) fn repeat(cluster: &Cluster, from: (&str, &str), to: &str, times: usize) -> Result<Vec<Outcome>> {
    let patience = PATIENCE.to_string();
    let mut command = vec!["/netpol-probe", "ask", "--timeout-ms", &patience];
    command.extend(std::iter::repeat_n(to, times));
    let text = cluster.kubectl.exec(from.0, from.1, &command)?;
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(lines.map(|line| Outcome::of(&line)).collect())
}

fn ask_from(cluster: &Cluster, from: &From, own: &[usize], asks: &[Ask]) -> Result<Vec<(usize, Outcome)>> {
    let patience = PATIENCE.to_string();
    let mut targets: Vec<&str> = own.iter().map(|at| asks[*at].to.as_str()).collect();
    targets.sort_unstable();
    targets.dedup();
    let text = match from {
        From::Pod(namespace, name) => {
            let command = [&["/netpol-probe", "ask", "--timeout-ms", &patience], &targets[..]].concat();
            cluster.kubectl.exec(namespace, name, &command)?
        }
        From::Outside(address) => {
            let address = address.to_string();
            let command = [
                &["ask", "--timeout-ms", &patience, "--from", &address],
                &targets[..],
            ]
            .concat();
            cluster.outside()?.run(&command)?
        }
    };
    let mut found: BTreeMap<String, Outcome> = BTreeMap::new();
    for line in text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
    {
        let target = line["target"].as_str().unwrap_or_default().to_owned();
        found.insert(target, Outcome::of(&line));
    }
    let outcome = |at: &usize| {
        let missing = Outcome {
            word: "failed".into(),
            detail: "the probe did not say".into(),
            ..Outcome::default()
        };
        (*at, found.get(&asks[*at].to).cloned().unwrap_or(missing))
    };
    Ok(own.iter().map(outcome).collect())
}
