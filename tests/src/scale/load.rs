//! Fills the API server.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::api::Api;
use crate::sandbox::stop;

/// Requests under way at a time.
const PARALLEL: usize = 48;
/// How often progress is told.
const PROGRESS: usize = 10_000;

/// Creates everything; namespaces first, as what is in them needs them. Nothing where all pods are there.
pub(super) async fn everything(api: &Api) -> Result<Option<Duration>> {
    let begun = Instant::now();
    let size = api.size;
    let there = api.count_pods().await?;
    ensure!(
        there <= size.pods,
        "the cluster has {there} pods already: it was filled for another size"
    );
    if there == size.pods {
        return Ok(None);
    }
    all("namespaces", size.namespaces(), |at| api.create_namespace(at)).await?;
    all("nodes", size.nodes(), |at| api.create_node(at)).await?;
    all("policies", size.namespaces(), |at| api.create_policy(at)).await?;
    all("pods", size.pods, |at| api.create_pod(at, 0)).await?;
    Ok(Some(begun.elapsed()))
}

async fn all<F: Future<Output = Result<()>>>(
    what: &str,
    count: usize,
    one: impl Fn(usize) -> F,
) -> Result<()> {
    let begun = Instant::now();
    let done = stream::iter(0..count).map(one).buffer_unordered(PARALLEL);
    let counted = done.try_fold(0, |done, ()| async move {
        stop::check()?;
        if (done + 1) % PROGRESS == 0 {
            eprintln!(
                "  {} of {count} {what} after {:.0} s",
                done + 1,
                begun.elapsed().as_secs_f64()
            );
        }
        Ok(done + 1)
    });
    let created = counted.await?;
    let took = begun.elapsed().as_secs_f64();
    eprintln!(
        "  {created} {what} in {took:.1} s, {:.0} a second",
        created as f64 / took
    );
    Ok(())
}
