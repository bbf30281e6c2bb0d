//! The kernel's clock that flow entries are stamped with.

use std::time::{Duration, Instant};

use aya::{Ebpf, TestRun as _, programs::TestRunOptions};

use crate::datapath::{
    error::{Error, Result},
    object::{CLOCK, classifier},
    settings,
};

/// The kernel's `jiffies64`, which flow entries are stamped with: read by a program, as nothing else tells.
pub(in crate::datapath) fn jiffies(ebpf: &mut Ebpf) -> Result<u64> {
    let packet = [0; 64];
    let mut answer = [0; 64];
    let mut options = TestRunOptions::new();
    options.data_in = Some(&packet);
    options.data_out = Some(&mut answer);
    classifier(ebpf, CLOCK)?
        .test_run(options)
        .map_err(Error::program("running the program `clock`"))?;
    Ok(u64::from_le_bytes(answer[..8].try_into().expect("eight bytes")))
}

/// Its ticks a second.
pub(super) fn measure_hz(ebpf: &mut Ebpf) -> Result<u64> {
    let (start, first) = (Instant::now(), jiffies(ebpf)?);
    std::thread::sleep(Duration::from_millis(120));
    let (last, took) = (jiffies(ebpf)?, start.elapsed());
    Ok(settings::hz(last.saturating_sub(first), took.as_nanos() as u64))
}
