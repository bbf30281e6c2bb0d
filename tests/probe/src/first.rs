//! `first`: a pod's first process. It tries at once what is denied, and connects once to what is allowed.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use crate::{
    ask::{Outcome, ask},
    count::try_denied,
    target::{Kind, Target, open},
    text::{print, quote},
};

/// Who tries a denied target, at the same time.
const TRIERS: usize = 6;
/// An attempt; short, so that there is always one under way.
const ATTEMPT: Duration = Duration::from_millis(40);
/// An allowed connection may wait for this, by the kernel's own repetitions of its SYN.
const LIMIT: Duration = Duration::from_secs(30);

/// Tries for `hold_ms`; reports by its output and as the container's termination message.
pub(crate) fn run(allow: &[Target], deny: &[Target], hold_ms: u64) -> Result<bool, String> {
    let start = Instant::now();
    let hold = Duration::from_millis(hold_ms);
    let (denied, allowed) = thread::scope(|scope| {
        let denied: Vec<_> = deny
            .iter()
            .map(|target| {
                let tries = (0..TRIERS).map(|_| scope.spawn(move || batter(*target, start, hold)));
                (target, tries.collect::<Vec<_>>())
            })
            .collect();
        let allowed: Vec<_> = allow
            .iter()
            .map(|target| (target, scope.spawn(move || reach(*target, start))))
            .collect();
        let denied: Vec<_> = denied
            .into_iter()
            .map(|(target, tries)| {
                let counts = tries.into_iter().map(|thread| thread.join().unwrap_or((0, 1)));
                let (tried, through) =
                    counts.fold((0, 0), |sum: (u64, u64), one| (sum.0 + one.0, sum.1 + one.1));
                (target, tried, through)
            })
            .collect();
        let allowed: Vec<_> = allowed
            .into_iter()
            .map(|(target, thread)| (target, thread.join().unwrap_or(Err("the thread died".to_owned()))))
            .collect();
        (denied, allowed)
    });
    let fine =
        denied.iter().all(|(_, _, through)| *through == 0) && allowed.iter().all(|(_, done)| done.is_ok());
    let deny = denied.iter().map(|(target, tried, through)| {
        let target = quote(&target.to_string());
        format!("{{\"target\":{target},\"tried\":{tried},\"through\":{through}}}")
    });
    let allow = allowed.iter().map(|(target, done)| {
        let target = quote(&target.to_string());
        match done {
            Ok(micros) => format!("{{\"target\":{target},\"us\":{micros}}}"),
            Err(why) => format!("{{\"target\":{target},\"why\":{}}}", quote(why)),
        }
    });
    let line = format!(
        "{{\"fine\":{fine},\"allow\":[{}],\"deny\":[{}]}}",
        allow.collect::<Vec<_>>().join(","),
        deny.collect::<Vec<_>>().join(",")
    );
    // Only in a container; its log says the same.
    let _ = fs::write("/dev/termination-log", &line);
    print(&line);
    Ok(fine)
}

fn batter(target: Target, start: Instant, hold: Duration) -> (u64, u64) {
    let (mut tried, mut through) = (0, 0);
    while start.elapsed() < hold {
        tried += 1;
        through += u64::from(try_denied(target, ATTEMPT));
    }
    (tried, through)
}

/// One connection, however long its first packet waits; how many microseconds after the start.
fn reach(target: Target, start: Instant) -> Result<u128, String> {
    let done = match target.kind {
        Kind::Udp => match ask(None, target, Duration::from_secs(1)) {
            Outcome::Answered(..) => Ok(()),
            other => Err(format!("{other:?}")),
        },
        Kind::Tcp | Kind::Connect => open(None, target.address, LIMIT)
            .map(|_| ())
            .map_err(|error| error.to_string()),
    };
    done.map(|()| start.elapsed().as_micros())
}
