//! The qdiscs that clsact filters hang on, by rtnetlink.

use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcHeader, TcMessage},
};

use super::{error::Result, netlink::Requests};

/// The qdisc at a device's ingress hook; the kernel has room for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qdisc {
    /// Ingress and egress filters.
    Clsact,
    /// Ingress filters only.
    Ingress,
}

/// Which of them device `index` has.
pub(crate) fn ingress_qdisc(index: u32) -> Result<Option<Qdisc>> {
    let answers = Requests::route()?.dump(
        "qdiscs",
        RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()),
    )?;
    Ok(answers.iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(message) if message.header.index as u32 == index => {
            message.attributes.iter().find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) if kind == "clsact" => Some(Qdisc::Clsact),
                TcAttribute::Kind(kind) if kind == "ingress" => Some(Qdisc::Ingress),
                _ => None,
            })
        }
        _ => None,
    }))
}

/// Whether the clsact qdisc of device `index` has filters, anybody's.
pub(crate) fn has_filters(index: u32) -> Result<bool> {
    Ok(!filters(index, false)?.is_empty() || !filters(index, true)?.is_empty())
}

/// Whether device `index` has the filter of this priority and handle.
pub(crate) fn has_filter(index: u32, egress: bool, priority: u16, handle: u32) -> Result<bool> {
    Ok(filters(index, egress)?
        .iter()
        .any(|header| header.info >> 16 == u32::from(priority) && u32::from(header.handle) == handle))
}

fn filters(index: u32, egress: bool) -> Result<Vec<TcHeader>> {
    if ingress_qdisc(index)?.is_none() {
        return Ok(Vec::new());
    }
    let mut request = TcMessage::default();
    request.header.index = index as i32;
    request.header.parent = TcHandle {
        major: u16::MAX,
        minor: if egress {
            TcHandle::MIN_EGRESS
        } else {
            TcHandle::MIN_INGRESS
        },
    };
    let answers = Requests::route()?.dump("filters", RouteNetlinkMessage::GetTrafficFilter(request))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(message) => Some(message.header),
            _ => None,
        })
        .collect())
}

/// Removes the clsact qdisc of device `index`.
pub(crate) fn delete_clsact(index: u32) -> Result<()> {
    let mut request = TcMessage::default();
    request.header.index = index as i32;
    request.header.parent = TcHandle::CLSACT;
    request.header.handle = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    request.attributes.push(TcAttribute::Kind("clsact".into()));
    Requests::route()?
        .ask(
            "removing a clsact qdisc",
            RouteNetlinkMessage::DelQueueDiscipline(request),
        )
        .map(drop)
}
