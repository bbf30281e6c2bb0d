//! The real object, real maps, packets through `BPF_PROG_TEST_RUN`.

mod attacks;
mod conversations;
mod lifetimes;
mod oracle;
mod origin;
mod overflow;
mod packets;
mod reasons;
mod town;
mod twins;
mod verdicts;
