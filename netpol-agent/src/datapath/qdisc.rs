//! The qdiscs that clsact filters hang on, by rtnetlink.

use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
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
    for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
        let mut request = TcMessage::default();
        request.header.index = index as i32;
        request.header.parent = TcHandle {
            major: u16::MAX,
            minor,
        };
        let filters = Requests::route()?.dump("filters", RouteNetlinkMessage::GetTrafficFilter(request))?;
        if !filters.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
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
