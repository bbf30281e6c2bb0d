//! The traps of a data path that judges at the way out and recognises replies at their way in: real agents, real
//! sockets and raw packets on nodes made of namespaces.

mod bridge;
mod delays;
mod errors;
mod headers;
mod marks;
mod packets;
mod reuse;
mod revocation;
mod services;
mod strangers;
mod town;
