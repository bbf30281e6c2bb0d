//! What the guest said over its second serial line, and the sums.

use std::time::Duration;

use crate::test::Count;

/// What goes before a line for us.
const TAG: &str = "::netpol:: ";

/// A job that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Outcome {
    /// The job's name.
    pub(super) name: String,
    /// Its exit status; `None` while it runs.
    pub(super) status: Option<i32>,
    /// How long it took.
    pub(super) took: Duration,
    /// Everything it wrote.
    pub(super) output: String,
}

/// Everything one guest said.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// `uname -r`; `None` until the guest is up.
    pub(super) kernel: Option<String>,
    /// Modules that did not load.
    pub(super) lacks: Vec<String>,
    /// In order; only the last may be running.
    pub(super) jobs: Vec<Outcome>,
    /// Every job has ended.
    pub(super) done: bool,
}

impl Report {
    /// Takes one line (without its end). Returns whether a job ended with it.
    pub(super) fn line(&mut self, line: &str) -> bool {
        let Some(said) = line.strip_prefix(TAG) else {
            if let Some(job) = self.jobs.last_mut() {
                job.output.push_str(line);
                job.output.push('\n');
            }
            return false;
        };
        let words: Vec<&str> = said.split(' ').collect();
        match *words {
            ["kernel", release] => self.kernel = Some(release.to_owned()),
            ["lacks", module] => self.lacks.push(module.to_owned()),
            ["begin", name] => self.jobs.push(Outcome {
                name: name.to_owned(),
                ..Outcome::default()
            }),
            ["end", name, status, seconds] => {
                if let Some(job) = self.jobs.last_mut().filter(|job| job.name == name) {
                    job.status = Some(status.parse().unwrap_or(-1));
                    job.took = Duration::from_secs(seconds.parse().unwrap_or(0));
                    return true;
                }
            }
            ["done"] => self.done = true,
            _ => {}
        }
        false
    }

    /// The sum over jobs. A job that is not a test harness counts as one test.
    pub(super) fn count(&self) -> Count {
        let mut sum = Count::default();
        for job in &self.jobs {
            sum += job.result();
        }
        sum
    }
}

impl Outcome {
    /// The job's tests. One that failed without saying so (it crashed, it never ended) is one failure.
    pub(super) fn result(&self) -> Count {
        let mut count = Count::read(&self.output);
        match self.status {
            Some(0) if count == Count::default() => count.passed = 1,
            Some(0) => {}
            _ => count.failed = count.failed.max(1),
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_summed() {
        let mut report = Report::default();
        let ended: Vec<bool> = [
            "noise before anything",
            "::netpol:: kernel 5.10.0-32-cloud-amd64",
            "::netpol:: lacks tun",
            "::netpol:: begin programs",
            "test allowed ... ok",
            "test result: FAILED. 4 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.61s",
            "::netpol:: end programs 101 12",
            "::netpol:: begin load",
            "::netpol:: end load 0 1",
            "::netpol:: begin crash",
            "Segmentation fault",
            "::netpol:: end crash 139 0",
            "::netpol:: done",
        ]
        .iter()
        .map(|line| report.line(line))
        .collect();
        assert_eq!(ended.iter().filter(|ended| **ended).count(), 3);
        assert_eq!(report.kernel.as_deref(), Some("5.10.0-32-cloud-amd64"));
        assert_eq!(report.lacks, ["tun"]);
        assert!(report.done);
        let sums: Vec<(&str, Count)> = report.jobs.iter().map(|job| (&*job.name, job.result())).collect();
        let counts = |passed, failed, skipped| Count {
            passed,
            failed,
            skipped,
        };
        assert_eq!(
            sums,
            [
                ("programs", counts(4, 1, 2)),
                ("load", counts(1, 0, 0)),
                ("crash", counts(0, 1, 0))
            ]
        );
        assert_eq!(report.count(), counts(5, 2, 2));
    }

    #[test]
    fn a_job_that_never_ends_fails() {
        let mut report = Report::default();
        report.line("::netpol:: begin hang");
        report.line(
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        );
        assert!(!report.line("::netpol:: end other 0 1"));
        assert_eq!(report.count().failed, 1);
    }
}
