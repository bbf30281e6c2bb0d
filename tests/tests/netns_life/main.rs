//! Topologies, lives of agents and pods, and flows, on real packets: the real agent on nodes made of namespaces.

mod bare;
mod begin;
mod beside;
mod born;
mod cleanup;
mod flood;
mod kill;
mod layouts;
mod reuse;
mod tcp;
mod topology;
mod tunnel;
mod udp;
mod upgrade;
