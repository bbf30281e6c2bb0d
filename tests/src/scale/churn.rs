//! Pods that change elsewhere in the cluster, so many a second.

use std::{
    collections::{HashSet, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, future::LocalBoxFuture, stream::FuturesUnordered};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use super::{api::Api, objects::Size};

/// A deleted pod is created again when so many have been deleted after it.
const DEAD: usize = 50;
/// So many requests under way are a server that does not keep up.
const PARALLEL: usize = 200;

/// What has been done so far.
#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
}

/// Runs on a thread of its own until it is ended or dropped.
#[derive(Debug)]
pub(super) struct Churn {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Churn {
    /// Begins to change `rate` pods a second.
    pub(super) fn start(kubeconfig: &Path, size: Size, rate: u32) -> Self {
        let counts = Arc::new(Counts::default());
        let (kubeconfig, theirs): (PathBuf, _) = (kubeconfig.to_owned(), counts.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let api = Api::new(&kubeconfig, size).await?;
                change(&api, rate, &theirs).await
            })
        });
        Self {
            counts,
            thread: Some(thread),
        }
    }

    /// Changes that the server has answered so far.
    pub(super) fn done(&self) -> u64 {
        self.counts.done.load(Ordering::Relaxed)
    }

    /// Ends it.
    ///
    /// # Errors
    /// It has failed, or many of its requests have.
    pub(super) fn end(mut self) -> Result<()> {
        self.counts.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        let (done, failed) = (self.done(), self.counts.failed.load(Ordering::Relaxed));
        if failed * 100 > done {
            bail!("{failed} of {done} changes of pods have failed");
        }
        Ok(())
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Whoever drops it has an error of its own.
            let _ = thread.join();
        }
    }
}

/// Which pods there are, and what happens next.
struct Changes {
    size: Size,
    step: usize,
    dead: VecDeque<usize>,
    /// How often each pod was changed.
    lives: Vec<u32>,
    /// Another one in each run: what is as it was before is no change, and nobody hears of it.
    run: u64,
    /// Pods of which a change is under way: two at a time would overtake each other.
    busy: HashSet<usize>,
}

/// A change under way: whose, and how it ends.
type Change<'a> = LocalBoxFuture<'a, (usize, Result<()>)>;

impl Changes {
    /// A pod elsewhere that is alive and was not changed for long: a step of a prime, in a fixed order.
    fn next_pod(&mut self) -> usize {
        loop {
            self.step += 1;
            let pod = (self.step * 7919) % self.size.pods;
            if self.size.place(pod).is_none() && !self.dead.contains(&pod) && !self.busy.contains(&pod) {
                self.lives[pod] += 1;
                return pod;
            }
        }
    }

    /// A quarter each: gone, other labels, other status, new.
    fn next<'a>(&mut self, api: &'a Api, turn: u64) -> Change<'a> {
        if turn % 4 == 3
            && self.dead.len() > DEAD
            && let Some(change) = self.revive(api)
        {
            return change;
        }
        let pod = self.next_pod();
        let (life, run) = (self.lives[pod], self.run);
        self.busy.insert(pod);
        match turn % 4 {
            0 => {
                self.dead.push_back(pod);
                Box::pin(async move { (pod, api.delete_pod(pod).await) })
            }
            2 => {
                let (ready, restarts) = (life.is_multiple_of(2), (run + u64::from(life)) % 1_000_000);
                Box::pin(async move { (pod, api.set_status(pod, ready, restarts).await) })
            }
            // One in eight of them is one that selectors ask for.
            _ if turn % 32 == 1 => {
                let labels = json!({"app": "api", "version": format!("v{run}-{life}")});
                Box::pin(async move { (pod, api.set_labels(pod, labels).await) })
            }
            _ => {
                let labels = json!({"version": format!("v{run}-{life}")});
                Box::pin(async move { (pod, api.set_labels(pod, labels).await) })
            }
        }
    }

    /// Creates the pod again that has been gone for the longest time.
    fn revive<'a>(&mut self, api: &'a Api) -> Option<Change<'a>> {
        let pod = *self.dead.front().filter(|pod| !self.busy.contains(pod))?;
        self.dead.pop_front();
        let life = self.lives[pod] as usize;
        self.busy.insert(pod);
        Some(Box::pin(async move { (pod, api.create_pod(pod, life).await) }))
    }
}

async fn change(api: &Api, rate: u32, counts: &Counts) -> Result<()> {
    let mut changes = Changes {
        size: api.size,
        step: 0,
        dead: VecDeque::new(),
        lives: vec![0; api.size.pods],
        run: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        busy: HashSet::new(),
    };
    let mut ticks = interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut under_way = FuturesUnordered::new();
    for turn in 0.. {
        loop {
            tokio::select! {
                _ = ticks.tick(), if under_way.len() < PARALLEL => break,
                Some((pod, done)) = under_way.next() => {
                    changes.busy.remove(&pod);
                    note(counts, done);
                }
            }
        }
        if counts.stop.load(Ordering::Relaxed) {
            break;
        }
        under_way.push(changes.next(api, turn));
    }
    // The cluster is left as it was found, but for labels.
    loop {
        while let Some((pod, done)) = under_way.next().await {
            changes.busy.remove(&pod);
            note(counts, done);
        }
        under_way.extend(std::iter::from_fn(|| changes.revive(api)).take(PARALLEL));
        if under_way.is_empty() {
            return Ok(());
        }
    }
}

fn note(counts: &Counts, done: Result<()>) {
    counts.done.fetch_add(1, Ordering::Relaxed);
    if let Err(error) = done.context("changing a pod")
        && counts.failed.fetch_add(1, Ordering::Relaxed) == 0
    {
        eprintln!("  {error:#}");
    }
}
