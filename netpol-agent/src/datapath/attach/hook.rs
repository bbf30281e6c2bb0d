//! The four places of a program, and which side of a device each is on.

use aya::programs::TcAttachType;
use serde::{Deserialize, Serialize};

/// One of the four programs, with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// A pod's way in.
    FromPod,
    /// A pod's way out.
    ToPod,
    /// The outside's way in.
    Arrive,
    /// The outside's way out.
    Settle,
}

impl Hook {
    /// All four.
    pub const ALL: [Self; 4] = [Self::FromPod, Self::ToPod, Self::Arrive, Self::Settle];

    /// The program's name in the object.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::Arrive => "arrive",
            Self::Settle => "settle",
        }
    }

    /// Whether it marks who sends (a way in), rather than judges.
    #[must_use]
    pub const fn is_way_in(self) -> bool {
        matches!(self, Self::FromPod | Self::Arrive)
    }

    pub(super) const fn direction(self) -> Direction {
        if self.is_way_in() {
            Direction::Ingress
        } else {
            Direction::Egress
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(super) const fn tc(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}
