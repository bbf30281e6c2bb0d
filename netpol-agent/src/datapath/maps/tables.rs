//! What a plan writes: classes of addresses, cells and port sets.

use std::{collections::BTreeMap, net::IpAddr};

use aya::{Pod as Plainly, maps::lpm_trie::Key};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netpol_common::{
    event::maps,
    tables::{Cell, CellKey, PortsChunk, PortsKey},
};
use netpol_policy::tables::Tables;

use super::{Hash, Maps, Trie, absent_is_fine, keys, put, read};
use crate::datapath::{
    abi::{Abi, Plain},
    error::{Error, Result},
    settings::{address4, address6, word4, words6},
};

impl Maps {
    /// The class of an exact address; `None` removes it.
    pub(crate) fn set_host(&mut self, address: IpAddr, class: Option<u32>) -> Result<()> {
        match address {
            IpAddr::V4(address) => {
                let map = self.named(maps::HOSTS4);
                put(&mut self.hosts4, map, word4(address), class)
            }
            IpAddr::V6(address) => {
                let map = self.named(maps::HOSTS6);
                put(&mut self.hosts6, map, words6(address), class)
            }
        }
    }

    /// The class of a prefix; `None` removes it.
    pub(crate) fn set_net(&mut self, net: IpNet, class: Option<u32>) -> Result<()> {
        match net {
            IpNet::V4(net) => {
                let key = Key::new(net.prefix_len().into(), word4(net.addr()));
                let map = self.named(maps::NETS4);
                put_net(&mut self.nets4, map, &key, class)
            }
            IpNet::V6(net) => {
                let key = Key::new(net.prefix_len().into(), words6(net.addr()));
                let map = self.named(maps::NETS6);
                put_net(&mut self.nets6, map, &key, class)
            }
        }
    }

    /// What a ruleset allows for a class; `None` removes the cell.
    pub(crate) fn set_cell(&mut self, key: CellKey, cell: Option<Cell>) -> Result<()> {
        let map = self.named(maps::CELLS);
        put(&mut self.cells, map, Plain(key), cell.map(Plain))
    }

    /// 512 ports of a port set; `None` removes them.
    pub(crate) fn set_ports(&mut self, key: PortsKey, chunk: Option<PortsChunk>) -> Result<()> {
        let map = self.named(maps::PORTS);
        put(&mut self.ports, map, Plain(key), chunk.map(Plain))
    }

    /// Everything that a plan writes, except pods.
    pub(crate) fn read_tables(&self) -> Result<Tables> {
        let nets4 = self.nets4.iter().map(|entry| {
            entry.map(|(key, class)| {
                (
                    Ipv4Net::new_assert(address4(key.data()), key.prefix_len() as u8),
                    class,
                )
            })
        });
        let nets6 = self.nets6.iter().map(|entry| {
            entry.map(|(key, class)| {
                (
                    Ipv6Net::new_assert(address6(key.data()), key.prefix_len() as u8),
                    class,
                )
            })
        });
        Ok(Tables {
            hosts4: keys(read(&self.hosts4, maps::HOSTS4)?, address4),
            hosts6: keys(read(&self.hosts6, maps::HOSTS6)?, address6),
            nets4: nets4
                .collect::<Result<_, _>>()
                .map_err(Error::map(maps::NETS4, "reading", 0))?,
            nets6: nets6
                .collect::<Result<_, _>>()
                .map_err(Error::map(maps::NETS6, "reading", 0))?,
            cells: read_plain(&self.cells, maps::CELLS)?,
            ports: read_plain(&self.ports, maps::PORTS)?,
            pods: BTreeMap::new(),
        })
    }
}

fn put_net<K: Plainly>(
    map: &mut Trie<K>,
    (name, capacity): (&'static str, u32),
    key: &Key<K>,
    value: Option<u32>,
) -> Result<()> {
    match value {
        Some(value) => map
            .insert(key, value, 0)
            .map_err(Error::map(name, "writing a prefix", capacity)),
        None => absent_is_fine(map.remove(key)).map_err(Error::map(name, "removing a prefix", capacity)),
    }
}

fn read_plain<K, V>(map: &Hash<Plain<K>, Plain<V>>, name: &'static str) -> Result<BTreeMap<K, V>>
where
    K: Abi + Ord,
    V: Abi,
{
    map.iter()
        .map(|entry| entry.map(|(key, value)| (key.0, value.0)))
        .collect::<Result<_, _>>()
        .map_err(Error::map(name, "reading", 0))
}
