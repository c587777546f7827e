//! The one table of drop reasons. Counters, metrics, CLI columns and the
//! documentation take names and help texts from here.

/// Room for reasons in a counter row; more than there are, so that a new one
/// does not change a layout.
pub const REASON_SLOTS: usize = 32;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $help:literal;)+) => {
        /// Why a frame was not forwarded. The numbers are stable: a new reason is
        /// appended, a retired number is never used again.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason {
            $(#[doc = $help] $variant = $number,)+
        }

        impl DropReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name used in metrics, JSON and CLI output.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// One sentence for an operator.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help),+ }
            }
        }
    };
}

reasons! {
    Malformed = 0, "malformed", "A header is cut short, or a length in it cannot be true.";
    BadVersion = 1, "bad_version", "GRE version other than 0 or 1 (RFC 2784 2.3.1).";
    RoutingPresent = 2, "routing_present", "The GRE routing bit is set (RFC 1701, retired by RFC 2784).";
    ReservedBits = 3, "reserved_bits", "A reserved GRE bit that must be zero is set (RFC 2784 2.3).";
    Checksum = 4, "checksum", "A checksum is wrong, or is one that cannot be verified here.";
    UnknownProtocol = 5, "unknown_protocol", "The GRE protocol type is not one the segment carries (RFC 2784 2.4).";
    UnknownEndpoint = 6, "unknown_endpoint", "The outer source address is no configured peer.";
    KeyMismatch = 7, "key_mismatch", "The peer is known, but not with this GRE key (RFC 2890 2.1).";
    SequenceOld = 8, "sequence_old", "The GRE sequence number was seen before (RFC 2890 2.2).";
    SourceMacInvalid = 9, "source_mac_invalid", "The source MAC is a group address or zero.";
    StaticMacMoved = 10, "static_mac_moved", "The source MAC is a static entry that points elsewhere.";
    MacLimit = 11, "mac_limit", "The source MAC is not learned: its peer or segment holds as many as it may.";
    Ecn = 12, "ecn", "Congestion marked outside, but the inner packet is not ECN capable (RFC 6040 4.2).";
    TtlExpired = 13, "ttl_expired", "The inner TTL or hop limit ran out.";
    TooBig = 14, "too_big", "The frame does not fit the MTU of the adjacency or the port.";
    OuterFragment = 15, "outer_fragment", "The outer packet is a fragment; it was handed to the kernel.";
    Loop = 16, "loop", "The source MAC is held elsewhere: it was seen in two places by turns, as in a loop.";
    NoTarget = 17, "no_target", "Nobody to send it to: its destination is where it came from, or only behind the tunnel it came through.";
    NoNextHop = 18, "no_next_hop", "The peer's underlay next hop is not resolved.";
    StormLimit = 19, "storm_limit", "More flooded frames from one port or peer than its storm limit allows.";
    Headroom = 20, "headroom", "The kernel could not make or remove room for the outer headers.";
    RedirectFailed = 21, "redirect_failed", "The kernel did not take the frame for its interface.";
    Internal = 22, "internal", "A table entry that must be there is not; this is a bug.";
    InnerTag = 23, "inner_tag", "The frame has an 802.1Q tag, which NVGRE does not carry (RFC 7637 3.3).";
    LinkLocal = 24, "link_local", "The destination is an address that bridges keep to one link, and the segment says so (802.1Q 8.6.3).";
    ForeignGre = 25, "foreign_gre", "GRE that is no peer's, passed to the kernel (--foreign-gre pass).";
}

const _: () = assert!(DropReason::ALL.len() <= REASON_SLOTS);

impl DropReason {
    /// Whether what is refused for it may well be what another user of GRE on this host waits for.
    #[inline(always)]
    pub const fn may_be_anothers(self) -> bool {
        matches!(
            self,
            Self::BadVersion
                | Self::RoutingPresent
                | Self::ReservedBits
                | Self::UnknownProtocol
                | Self::UnknownEndpoint
                | Self::KeyMismatch
        )
    }

    /// Its stable number, the index into a counter row.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Which way a frame was going.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From the underlay (decapsulation), or into this host from a port.
    Receive = 0,
    /// To the underlay (encapsulation), or out of this host through a port.
    Transmit = 1,
}

impl Direction {
    /// Both directions.
    pub const ALL: [Self; 2] = [Self::Receive, Self::Transmit];

    /// The name used in metrics, JSON and CLI output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Transmit => "transmit",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_positions_and_names_are_unique() {
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), i);
            assert!(DropReason::ALL[..i].iter().all(|other| other.name() != reason.name()));
        }
    }
}
