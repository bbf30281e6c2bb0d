//! The test rig: network namespaces, packets, expectations.
//!
//! [`net`] builds namespaces, links and sockets and finds what killed runs left; [`packet`] builds packets as
//! bytes; both know nothing of netpol. [`program`] runs packets through the real object.

pub mod net;
pub mod packet;
pub mod program;
pub mod sandbox;
