//! How long to wait before a failed watch is begun again.

use std::time::Duration;

use tokio::{sync::watch, time::sleep};

/// Nobody waits less, nor more.
const RANGE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The first pause is drawn from the least to this: when an API server comes back, thousands of nodes have lost their
/// watches in the same instant.
const FIRST: Duration = Duration::from_secs(3);
/// A server's wish counts up to this: a mistake in it must not blind the node for hours.
const WISH: Duration = Duration::from_secs(300);

/// Each pause is drawn between the least and three times the one before, so that nodes that failed together drift apart.
#[derive(Debug)]
pub(super) struct Pauses {
    last: Option<Duration>,
    random: fastrand::Rng,
}

impl Pauses {
    pub(super) fn new() -> Self {
        Self::with(fastrand::Rng::new())
    }

    fn with(random: fastrand::Rng) -> Self {
        Self { last: None, random }
    }

    /// Waits as long as the server wishes, or a pause where that is longer. Another watch's answer shortens no wish.
    pub(super) async fn wait_for_wish(&mut self, wish: Duration) {
        let pause = self.after(wish);
        sleep(pause).await;
    }

    /// Nodes that were told the same come back apart, and none early.
    fn after(&mut self, wish: Duration) -> Duration {
        let pause = self.draw();
        pause.max(wish.min(WISH) + FIRST.mul_f64(self.random.f64()))
    }

    /// Waits. When the server answers another watch meanwhile it is there again, and the wait begins anew with a short one.
    pub(super) async fn wait(&mut self, recoveries: &mut watch::Receiver<()>) {
        recoveries.mark_unchanged();
        tokio::select! {
            () = sleep(self.draw()) => return,
            Ok(()) = recoveries.changed() => self.reset(),
        }
        sleep(self.draw()).await;
    }

    /// The failures are over: the next pause is a first one.
    pub(super) fn reset(&mut self) {
        self.last = None;
    }

    fn draw(&mut self) -> Duration {
        let most = self.last.map_or(FIRST, |last| last * 3).min(RANGE.1);
        let share = self.random.f64();
        let pause = RANGE.0 + most.saturating_sub(RANGE.0).mul_f64(share);
        self.last = Some(pause);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(seed: u64) -> Vec<Duration> {
        let mut pauses = Pauses::with(fastrand::Rng::with_seed(seed));
        (0..12).map(|_| pauses.draw()).collect()
    }

    #[test]
    fn nodes_that_fail_together_come_back_apart() {
        let first: Vec<f64> = (0..5000).map(|seed| pauses(seed)[0].as_secs_f64()).collect();
        let within = |from: f64| {
            first
                .iter()
                .filter(|pause| (from..from + 0.1).contains(*pause))
                .count()
        };
        // Evenly over 2.5 s: 200 in each tenth.
        let crowd = (5..30).map(|tenth| within(f64::from(tenth) / 10.0)).max();
        assert!(
            crowd < Some(300),
            "{crowd:?} of 5000 in the same tenth of a second"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_answers_another_watch_is_not_waited_for() {
        for seed in 0..50 {
            let sender = watch::Sender::new(());
            let mut pauses = Pauses::with(fastrand::Rng::with_seed(seed));
            // What was told before a failure is old.
            let mut recoveries = sender.subscribe();
            sender.send_replace(());
            pauses.last = Some(RANGE.1);
            let start = tokio::time::Instant::now();
            let tell = async {
                sleep(Duration::from_millis(100)).await;
                sender.send_replace(());
            };
            tokio::join!(pauses.wait(&mut recoveries), tell);
            let took = start.elapsed();
            assert!(
                took > RANGE.0 && took <= FIRST + Duration::from_millis(110),
                "{took:?}"
            );
        }
    }

    #[test]
    fn a_wish_is_the_least_and_keeps_nodes_apart() {
        let wish = Duration::from_secs(40);
        let after = |seed| Pauses::with(fastrand::Rng::with_seed(seed)).after(wish);
        let all: Vec<Duration> = (0..50).map(after).collect();
        assert!(
            all.iter().all(|pause| (wish..=wish + FIRST).contains(pause)),
            "{all:?}"
        );
        assert!(all.iter().max() > all.iter().min().map(|least| *least + FIRST / 2).as_ref());
        let long = Pauses::with(fastrand::Rng::with_seed(1)).after(WISH * 100);
        assert!(long <= WISH + FIRST, "{long:?}");
    }

    #[test]
    fn pauses_stay_in_range_and_begin_anew() {
        for seed in 0..50 {
            let pauses = pauses(seed);
            assert!(
                pauses.iter().all(|pause| (RANGE.0..=RANGE.1).contains(pause)),
                "{pauses:?}"
            );
            assert!(pauses[0] <= FIRST);
        }
        let mut long = Pauses::with(fastrand::Rng::with_seed(1));
        long.last = Some(RANGE.1);
        long.reset();
        assert!(long.draw() <= FIRST);
    }
}
