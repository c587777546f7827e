//! Which hooks an interface gets, and why.

use crate::model::Mode;
use crate::netlink::{Link, XdpFeatures};

/// Above this MTU a packet may take more than one page, and needs a program that knows of several.
pub(super) const ONE_PAGE_MTU: u32 = 3400;

/// How an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before there is a socket buffer.
    Native,
    /// In the stack, on socket buffers.
    Generic,
}

/// The hook of programs for socket buffers. A daemon uses one of them for all interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcHook {
    /// Links, since Linux 6.6.
    Tcx,
    /// Filters on a clsact qdisc, which every kernel has.
    Clsact,
}

impl TcHook {
    /// What `status` calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// An XDP program for an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpHook {
    /// How it runs.
    pub mode: XdpMode,
    /// Whether it must know of packets of several pages.
    pub several_pages: bool,
}

/// What was chosen for an interface beside TC, which it gets in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The XDP program, if any.
    pub xdp: Option<XdpHook>,
    /// Why.
    pub reason: String,
}

impl Choice {
    /// What `status` says the interface is attached to.
    pub fn hook(&self, tc: TcHook) -> String {
        match self.xdp.map(|hook| hook.mode) {
            None => tc.name().to_owned(),
            Some(XdpMode::Native) => format!("xdp+{}", tc.name()),
            Some(XdpMode::Generic) => format!("xdp-generic+{}", tc.name()),
        }
    }
}

/// Chooses. `foreign` is the id of an XDP program on the interface that is not ours.
///
/// By itself this takes XDP for physical interfaces only. A virtual one carries frames whose checksums are unfinished,
/// and superframes: XDP loses the first and forbids the second. `features` is none where the kernel does not tell them
/// (before Linux 6.3): to attach a program shows that a driver runs one, but not that it can redirect, and a driver
/// that cannot loses the frame.
pub fn choose(link: &Link, features: Option<XdpFeatures>, mode: Mode, foreign: Option<u32>) -> Choice {
    let tc = |reason: String| Choice { xdp: None, reason };
    let xdp = |mode, reason: &str| Choice {
        // In generic mode the kernel makes one piece of a packet for a program that does not know of several. For one
        // that does, since Linux 6.9, it makes a new buffer without the length of the MAC header (`skb_pp_cow_data()`):
        // TC would take the network header for the packet's start.
        xdp: Some(XdpHook { mode, several_pages: mode == XdpMode::Native && link.mtu > ONE_PAGE_MTU }),
        reason: reason.to_owned(),
    };
    let runs = mode != Mode::Auto || features.is_some_and(XdpFeatures::runs_programs);
    match (mode, &link.kind, foreign) {
        (Mode::Tc, ..) => tc("asked for".to_owned()),
        (_, _, Some(id)) => tc(format!("another's XDP program is on it (id {id})")),
        // Whoever asked for it did not ask for frames without their tags.
        (_, None, None) if runs && link.vlan_offload => {
            tc(format!("it takes VLAN tags off before XDP sees them (ethtool -K {} rxvlan off)", link.name))
        }
        (Mode::Native | Mode::Generic, Some(kind), None) => xdp(
            if mode == Mode::Native { XdpMode::Native } else { XdpMode::Generic },
            &format!(
                "asked for; on a {kind}, XDP loses VLAN tags and checksums that a sender leaves to the device (at its far \
                 end: ethtool -K DEV tx off txvlan off)"
            ),
        ),
        (Mode::Native, ..) => xdp(XdpMode::Native, "asked for"),
        (Mode::Generic, ..) => xdp(XdpMode::Generic, "asked for"),
        (Mode::Auto, Some(kind), None) => {
            tc(format!("a {kind}: XDP would lose unfinished checksums and superframes"))
        }
        (Mode::Auto, None, None) if features.is_none() => {
            tc("this kernel does not say whether its driver runs XDP programs (Linux 6.3 and newer do)"
                .to_owned())
        }
        (Mode::Auto, None, None) if !runs => tc("its driver does not run XDP programs".to_owned()),
        (Mode::Auto, None, None) => xdp(XdpMode::Native, "its driver runs XDP programs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPABLE: Option<XdpFeatures> =
        Some(XdpFeatures::from_bits(XdpFeatures::BASIC | XdpFeatures::REDIRECT));

    fn link(kind: Option<&str>, mtu: u32) -> Link {
        Link { name: "x".into(), kind: kind.map(str::to_owned), mtu, ..Link::default() }
    }

    #[test]
    fn physical_interfaces_get_xdp_by_themselves_and_virtual_ones_do_not() {
        let hook = |link: &Link, features| choose(link, features, Mode::Auto, None).hook(TcHook::Tcx);
        assert_eq!(hook(&link(None, 1500), CAPABLE), "xdp+tcx");
        assert_eq!(hook(&link(None, 1500), Some(XdpFeatures::default())), "tcx");
        let untold = choose(&link(None, 1500), None, Mode::Auto, None);
        assert!(untold.xdp.is_none() && untold.reason.contains("does not say"), "{}", untold.reason);
        for kind in ["veth", "tun", "bridge", "bond"] {
            assert_eq!(hook(&link(Some(kind), 1500), CAPABLE), "tcx", "{kind}");
        }
        let tags = Link { vlan_offload: true, ..link(None, 1500) };
        let choice = choose(&tags, CAPABLE, Mode::Auto, None);
        assert!(choice.xdp.is_none() && choice.reason.contains("rxvlan off"));
        let asked = choose(&tags, CAPABLE, Mode::Native, None);
        assert!(asked.xdp.is_none() && asked.reason.contains("rxvlan off"), "tags would be lost");
    }

    #[test]
    fn what_was_asked_for_is_done_but_nobody_is_pushed_aside() {
        let veth = link(Some("veth"), 9000);
        let native = choose(&veth, CAPABLE, Mode::Native, None);
        assert_eq!(native.xdp, Some(XdpHook { mode: XdpMode::Native, several_pages: true }));
        let generic = choose(&veth, CAPABLE, Mode::Generic, None);
        assert_eq!(generic.hook(TcHook::Clsact), "xdp-generic+clsact");
        assert_eq!(generic.xdp, Some(XdpHook { mode: XdpMode::Generic, several_pages: false }));
        assert_eq!(choose(&link(None, 1500), CAPABLE, Mode::Tc, None).hook(TcHook::Tcx), "tcx");
        let taken = choose(&link(None, 1500), CAPABLE, Mode::Native, Some(42));
        assert!(taken.xdp.is_none() && taken.reason.contains("42"));
    }
}
