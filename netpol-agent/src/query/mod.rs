//! Questions about a snapshot, answered without privileges: who may reach whom, and by which policy.
//!
//! Every answer is worked out twice: by the oracle, which reads the policies, and from the tables that a
//! node's kernel would hold. Where the two differ the answer is an error of netpol's own, never a verdict.

mod answer;
pub mod bulk;
mod end;
mod ends;
mod error;
pub mod group;
mod judge;
mod line;
pub mod matrix;
pub mod matrix_list;
mod near;
mod port;
mod reach;
mod story;

pub use answer::{Answer, SideAnswer, word};
pub use end::{EndName, Family, Found, Kind, Located, Subject};
pub use ends::Ends;
pub use error::QueryError;
pub use judge::{Compile, Judge, Mismatch, Question};
pub use port::{PortName, Transport, protocol_name};
pub use reach::PortRange;
pub use story::Story;

/// `a`, `a and b`, `a, b and c`.
pub(crate) fn join(items: impl IntoIterator<Item = impl ToString>) -> String {
    let mut items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match items.pop() {
        None => String::new(),
        Some(last) if items.is_empty() => last,
        Some(last) => format!("{} and {last}", items.join(", ")),
    }
}

/// The first few, for an error that says what there is.
fn some_of(items: impl Iterator<Item = impl ToString>) -> String {
    const SHOWN: usize = 6;
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    match items.len().checked_sub(SHOWN) {
        None | Some(0) => join(items),
        Some(more) => format!("{} and {more} more", items[..SHOWN].join(", ")),
    }
}

#[cfg(test)]
mod tests;
