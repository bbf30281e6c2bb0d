//! From a configuration to a running agent.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    Agent, Config, Signals,
    first::First,
    source::{Source, bad_input},
    waiting::Waits,
};
use crate::{
    datapath::{Datapath, kernel::Kernel, wakeups::Wakeups},
    serve::{self, Shared},
};

/// `--once` does not wait longer for an API server.
const ONCE: Duration = Duration::from_secs(60);
/// While the agent waits it says so often that it lives, and what for.
const ALIVE: Duration = Duration::from_secs(1);

/// Runs until a signal ends it. Everything stays in force when it ends, however it ends.
///
/// # Errors
/// The source or the data path can not be opened at all, or, with `once`, something could not be put in force.
pub fn run(config: Config) -> anyhow::Result<()> {
    // Without waiting for an API server: a machine that can't enforce says so at once.
    let kernel = Kernel::probe(config.datapath.pins.root())?;
    // An address that is taken, or a kubeconfig that is none, changes nothing.
    let mut source = Source::open(&config.from)?;
    let health = source.kubernetes().map(|watcher| watcher.health().clone());
    let shared = Arc::new(Shared::new(
        config.datapath.pins.clone(),
        config.node.clone(),
        health,
    ));
    if let Some(address) = config.listen {
        serve::start(address, Arc::clone(&shared))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // First: a signal that comes while we write waits until what was begun is in force.
        let mut signals = Signals::listen()?;
        let announcements = Wakeups::devices()?;
        let mut waits = Waits::new(&config, &source);
        let Some(first) = wait(&mut source, &mut signals, &shared, &config, &mut waits).await? else {
            tracing::info!("ending before anything was listed: nothing was changed");
            return Ok(());
        };
        if source.kubernetes().is_some() {
            first.check_node()?;
        }
        let stats = first.compiler.stats();
        tracing::info!(
            source = source.name(),
            namespaces = stats.namespaces,
            policies = stats.policies,
            pods = stats.pods,
            "everything is listed"
        );
        waits.for_one("everything is listed: the programs are being loaded".to_owned());
        let datapath = {
            let held = |what| waits.for_one(what);
            // Not before: what is refused until here leaves nothing behind.
            let mut opening = pin!(Datapath::open_when_free(config.datapath.clone(), kernel, held));
            loop {
                tokio::select! {
                    opened = &mut opening => break opened?,
                    () = signals.next() => return Ok(()),
                    // Another agent may be long in ending.
                    () = sleep(ALIVE) => shared.alive(),
                }
            }
        };
        Agent::new(config, source, first, datapath, shared)
            .run(announcements, signals, waits)
            .await
    })
}

/// Everything, or nothing where a signal ends the wait.
async fn wait(
    source: &mut Source,
    signals: &mut Signals,
    shared: &Shared,
    config: &Config,
    waits: &mut Waits,
) -> anyhow::Result<Option<First>> {
    let begun = Instant::now();
    let mut first = First::new(&config.node);
    waits.for_list(source);
    loop {
        tokio::select! {
            change = source.next() => if first.take(change?.0) {
                return Ok(Some(first));
            },
            () = signals.next() => return Ok(None),
            () = sleep(ALIVE) => waits.for_list(source),
        }
        shared.alive();
        if config.once && begun.elapsed() > ONCE {
            let name = source.name();
            let message = format!(
                "{name} could not be listed within {} s, see above: nothing was changed",
                ONCE.as_secs()
            );
            return Err(bad_input(message).into());
        }
    }
}
