//! How many cases, from which seed.

use std::fmt::Debug;

use proptest::{
    strategy::Strategy,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};

/// A number from the environment.
///
/// # Panics
/// If the variable is set and no number.
fn from_env(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|error| panic!("{variable}={text}: {error}")),
    )
}

/// `NETPOL_CASES` scales every property: `share` per cent of it, or of 100 where it is not set; at least one.
pub(crate) fn cases(share: u64) -> u32 {
    let cases = from_env("NETPOL_CASES").unwrap_or(100) * share / 100;
    cases.clamp(1, u64::from(u32::MAX)) as u32
}

/// Runs `test` on `cases` values. The seed is `NETPOL_SEED` or always the same, so that a failure is repeated by
/// the same command.
///
/// # Panics
/// With the smallest value found for which `test` fails, if it fails.
pub(crate) fn check<S: Strategy>(cases: u32, strategy: S, test: impl Fn(&S::Value) -> Result<(), String>)
where
    S::Value: Debug,
{
    let seed = from_env("NETPOL_SEED").unwrap_or(1);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let outcome = TestRunner::new_with_rng(config, rng)
        .run(&strategy, |value| test(&value).map_err(TestCaseError::fail));
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, value)) => {
            panic!(
                "NETPOL_SEED={seed}: {}\nin this cluster:\n{value:#?}",
                reason.message()
            )
        }
        Err(TestError::Abort(reason)) => panic!("NETPOL_SEED={seed}: aborted: {}", reason.message()),
    }
}
