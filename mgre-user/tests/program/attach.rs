//! What an interface gets when its driver refuses XDP.

use std::path::Path;

use nix::mount::{MsFlags, mount, umount};

use mgre_user::datapath::Datapath;
use mgre_user::datapath::attach::Placement;
use mgre_user::plan::{Attachment, Hook, Op, TcHook, XdpHook, XdpMode};

use mgre_user::datapath::load::{Capacity, load};
use mgre_user::object::object;

use crate::kernel::in_namespace;

/// In a file system for pins.
fn placement(directory: &Path) -> Placement {
    Placement {
        instance: "test".into(),
        tc: TcHook::Tcx,
        pins: directory.join("links"),
        qdiscs: directory.join("qdiscs"),
    }
}

/// A BPF file system of its own, for as long as this is there.
struct Pins(tempfile::TempDir);

impl Pins {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        Self(directory)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        umount(self.0.path()).unwrap();
    }
}

/// The loopback's driver runs no XDP program.
const LOOPBACK: u32 = 1;

#[test]
fn a_driver_that_refuses_xdp_leaves_tc() {
    in_namespace(|| {
        let pins = Pins::new();
        let loaded = load(object().unwrap(), Capacity { fdb_entries: 16, adjacencies: 16 }).unwrap();
        let mut datapath = Datapath::new(loaded, placement(pins.0.path()), 16).unwrap();
        let attach = |optional| Op::Attach {
            ifindex: LOOPBACK,
            hook: Hook::XdpUnderlay,
            attachment: Attachment {
                interface: "lo".into(),
                xdp: Some(XdpHook { mode: XdpMode::Native, several_pages: false }),
                optional,
            },
        };
        let refused = datapath.apply(&attach(false), &mut Vec::new()).unwrap_err();
        assert!(format!("{refused:#}").contains("lo"), "{refused:#}");
        assert_eq!(datapath.refusal(LOOPBACK, Hook::XdpUnderlay), None);

        datapath.apply(&attach(true), &mut Vec::new()).unwrap();
        assert!(datapath.refusal(LOOPBACK, Hook::XdpUnderlay).is_some());
        assert_eq!(datapath.xdp_interfaces().count(), 0);
        datapath.apply(&Op::Detach { ifindex: LOOPBACK, hook: Hook::XdpUnderlay }, &mut Vec::new()).unwrap();
        assert_eq!(datapath.refusal(LOOPBACK, Hook::XdpUnderlay), None);
    });
}
