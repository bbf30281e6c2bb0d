//! The test rig: network namespaces, packets, expectations.
//!
//! [`net`] builds namespaces, links and sockets and finds what killed runs left; [`packet`] builds packets as
//! bytes; both know nothing of netpol. [`program`] runs packets through the real object; [`cluster`] runs real
//! agents on nodes made of namespaces; [`harness`] runs tests that need more than every kernel has;
//! [`town`] says it all in one line; [`scale`] measures one agent in a large cluster without kubelets.

pub mod cluster;
pub mod harness;
pub mod net;
pub mod packet;
pub mod program;
pub mod sandbox;
pub mod scale;
pub mod town;
