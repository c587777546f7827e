//! Which contestants there are.

use clap::ValueEnum;

use super::ovs;

/// What takes frames from one host to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// mgre: GRE with a key, TCX at both ends.
    Mgre,
    /// The same with native XDP, and TCX behind it for what XDP passes. For frames alone: beside XDP a veth carries no
    /// superframes and no unfinished checksums.
    MgreXdp,
    /// mgre over IPv6, TCX at both ends.
    #[value(name = "mgre-v6")]
    MgreV6,
    /// mgre over IPv6 with native XDP.
    #[value(name = "mgre-xdp-v6")]
    MgreXdpV6,
    /// Another build of mgre, TCX at both ends. Races with nobody but this one.
    #[value(skip)]
    OldMgre,
    /// Another build of mgre with native XDP.
    #[value(skip)]
    OldMgreXdp,
    /// A bridge at each end and no tunnel between them.
    Bridges,
    /// A bridge at each end, and the kernel's VXLAN.
    Vxlan,
    /// The same over IPv6.
    #[value(name = "vxlan-v6")]
    VxlanV6,
    /// The bridges as the kernel makes them, going through netfilter where it has that built in.
    #[value(name = "bridges-nf")]
    BridgesDefault,
    /// The same for bridges and VXLAN.
    #[value(name = "vxlan-nf")]
    VxlanDefault,
    /// A TCX program at each end that redirects whatever comes, unread: the limit of TCX.
    Redirect,
    /// An XDP program at each end that redirects whatever comes, unread: the limit of XDP.
    RedirectXdp,
    /// Open vSwitch's userspace datapath: GRE with a key.
    Ovs,
    /// A veth pair and nothing else: the limit of the generator, the sink and TCP.
    Direct,
}

impl Kind {
    /// All but the other build, which has a part of its own.
    pub const ALL: [Self; 13] = [
        Self::Mgre,
        Self::MgreXdp,
        Self::MgreV6,
        Self::MgreXdpV6,
        Self::Bridges,
        Self::Vxlan,
        Self::VxlanV6,
        Self::BridgesDefault,
        Self::VxlanDefault,
        Self::Redirect,
        Self::RedirectXdp,
        Self::Ovs,
        Self::Direct,
    ];

    /// Its name in tables.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Mgre => "mgre (TCX)",
            Self::MgreXdp => "mgre (XDP)",
            Self::MgreV6 => "mgre (TCX), IPv6",
            Self::MgreXdpV6 => "mgre (XDP), IPv6",
            Self::OldMgre => "old mgre (TCX)",
            Self::OldMgreXdp => "old mgre (XDP)",
            Self::Bridges => "two bridges, no tunnel",
            Self::Vxlan => "vxlan + bridge",
            Self::VxlanV6 => "vxlan + bridge, IPv6",
            Self::BridgesDefault => "two bridges, netfilter",
            Self::VxlanDefault => "vxlan + bridge, netfilter",
            Self::Redirect => "bare TCX redirect",
            Self::RedirectXdp => "bare XDP redirect",
            Self::Ovs => "Open vSwitch, userspace",
            Self::Direct => "direct veth",
        }
    }

    /// Its name in JSON and on the command line.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Mgre => "mgre",
            Self::MgreXdp => "mgre-xdp",
            Self::MgreV6 => "mgre-v6",
            Self::MgreXdpV6 => "mgre-xdp-v6",
            Self::OldMgre => "old-mgre",
            Self::OldMgreXdp => "old-mgre-xdp",
            Self::Bridges => "bridges",
            Self::Vxlan => "vxlan",
            Self::VxlanV6 => "vxlan-v6",
            Self::BridgesDefault => "bridges-nf",
            Self::VxlanDefault => "vxlan-nf",
            Self::Redirect => "redirect",
            Self::RedirectXdp => "redirect-xdp",
            Self::Ovs => "ovs",
            Self::Direct => "direct",
        }
    }

    /// Whether it is one of the others with another setting.
    pub const fn is_variant(self) -> bool {
        matches!(self, Self::BridgesDefault | Self::VxlanDefault | Self::VxlanV6)
    }

    /// Whether it is mgre, of whichever build.
    pub const fn is_mgre(self) -> bool {
        matches!(
            self,
            Self::Mgre | Self::MgreXdp | Self::MgreV6 | Self::MgreXdpV6 | Self::OldMgre | Self::OldMgreXdp
        )
    }

    /// Whether it is mgre of another build.
    pub const fn is_old(self) -> bool {
        matches!(self, Self::OldMgre | Self::OldMgreXdp)
    }

    /// Whether it has a VXLAN interface at each end.
    pub const fn is_vxlan(self) -> bool {
        matches!(self, Self::Vxlan | Self::VxlanV6 | Self::VxlanDefault)
    }

    /// Whether it has a bridge at each end.
    pub const fn is_bridged(self) -> bool {
        matches!(self, Self::Bridges | Self::BridgesDefault) || self.is_vxlan()
    }

    /// Whether its underlay is IPv6.
    pub const fn is_v6(self) -> bool {
        matches!(self, Self::MgreV6 | Self::MgreXdpV6 | Self::VxlanV6)
    }

    /// Whether what carries frames is XDP programs.
    pub const fn is_xdp(self) -> bool {
        matches!(self, Self::MgreXdp | Self::MgreXdpV6 | Self::OldMgreXdp | Self::RedirectXdp)
    }

    /// Why it cannot take part here, if so.
    pub fn missing(self) -> Option<String> {
        if self == Self::Ovs { ovs::missing() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contestant_has_one_short_name() {
        for kind in Kind::ALL {
            let value = kind.to_possible_value().expect("none is hidden");
            assert_eq!(value.get_name(), kind.key());
        }
    }
}
