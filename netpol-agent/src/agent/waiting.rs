//! What the agent tells `status` before it has anything in force.

use super::{Config, now, seconds, source::Source};
use crate::datapath::{
    object::Pins,
    waiting::{Note, Reason, Waiting},
};

/// What it waits for; nobody hears of it any more once this is dropped.
pub(super) struct Waits {
    note: Note,
    waiting: Waiting,
    /// Why it could not be written.
    unwritten: Option<String>,
}

impl Waits {
    pub(super) fn new(config: &Config, source: &Source) -> Self {
        let pin = Pins::parent(&config.datapath.pins);
        Self {
            note: Note::new(&config.datapath.files),
            waiting: Waiting {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                node: config.node.clone(),
                pid: std::process::id(),
                started: now(),
                pin: std::path::absolute(pin).unwrap_or_else(|_| pin.to_owned()),
                source: source.name(),
                reasons: Vec::new(),
            },
            unwritten: None,
        }
    }

    /// For the first list of `source`.
    pub(super) fn for_list(&mut self, source: &Source) {
        let Some(health) = source.health() else { return };
        let awaited = health.awaited().into_iter();
        let reasons = awaited.map(|(since, what)| Reason {
            since: since.map_or(self.waiting.started, seconds),
            what,
        });
        self.waiting.reasons = reasons.collect();
        self.write();
    }

    /// For `what`, from now on.
    pub(super) fn for_one(&mut self, what: String) {
        self.waiting.reasons = vec![Reason { since: now(), what }];
        self.write();
    }

    /// What is refused for the same reason later is refused then; who only waits goes on.
    fn write(&mut self) {
        let error = self.note.write(&self.waiting).err();
        let text = error.map(|error| format!("{:#}", anyhow::Error::from(error)));
        if let Some(text) = text.as_ref().filter(|_| text != self.unwritten) {
            tracing::warn!("{text}: `netpol-agent status` does not say what is waited for");
        }
        self.unwritten = text;
    }
}
