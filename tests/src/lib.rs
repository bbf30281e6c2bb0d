//! The test rig: network namespaces, packets, expectations.
//!
//! [`net`] builds namespaces, links and sockets and finds what killed runs left; [`packet`] builds packets as
//! bytes. Both know nothing of netpol.

pub mod net;
pub mod packet;
