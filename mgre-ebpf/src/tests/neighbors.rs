//! What ARP and ND leave behind in the tables, and how little of a question may be wrong.

use mgre_common::neighbor::{NeighborKey, NeighborRecord};
use mgre_common::reason::{Direction, DropReason};
use mgre_common::target::Target;

use core::net::IpAddr;
use core::sync::atomic::Ordering;

use crate::act;
use crate::host::cases;
use crate::host::frame::{Failures, HostAction, HostFrame};
use crate::host::tables::MemoryTables;
use crate::host::world::neighbors::{DISPUTED, SUPPRESSED, host_v4, host_v6};
use crate::host::world::{World, station};
use crate::tables::Tables;

fn tables() -> MemoryTables {
    let mut tables = MemoryTables::default();
    World::standard().install(&mut tables);
    tables.clock.seconds.store(50, Ordering::Relaxed);
    tables
}

/// The bytes of a case, which comes in at port 51.
fn bytes(name: &str) -> Vec<u8> {
    let name = format!("neighbours: {name}");
    let case = cases::all().into_iter().find(|case| case.name == name);
    case.unwrap_or_else(|| panic!("no case {name:?}")).bytes
}

fn record(tables: &MemoryTables, address: impl Into<IpAddr>) -> NeighborRecord {
    let key = NeighborKey::new(SUPPRESSED as u16, address.into());
    Tables::neighbor(tables, &key).expect("it is known").record()
}

fn answered(tables: &MemoryTables) -> bool {
    let floods = tables.floods.borrow();
    floods.get(&SUPPRESSED).is_some_and(|row| row.arp_replies + row.nd_replies > 0)
}

/// Runs a frame through port 51; says whether it was answered.
fn is_answered(bytes: Vec<u8>) -> bool {
    let tables = tables();
    act::process_port(&mut HostFrame::new(bytes), &tables, 61);
    answered(&tables)
}

#[test]
fn who_says_something_is_seen_and_who_is_asked_for_is_not() {
    let tables = tables();
    act::process_port(&mut HostFrame::new(bytes("ARP for a host behind a peer")), &tables, 61);
    assert!(answered(&tables));
    assert_eq!((record(&tables, host_v4(1)).seen, record(&tables, host_v4(3)).seen), (50, 1));
    act::process_port(&mut HostFrame::new(bytes("an advertisement of somebody known")), &tables, 61);
    assert_eq!((record(&tables, host_v6(1)).seen, record(&tables, host_v6(3)).seen), (50, 1));
}

/// Whoever contradicts the table ends its answers, whether the daemon lives or not.
#[test]
fn what_is_contested_is_not_answered_any_more() {
    let [address, ..] = DISPUTED;
    let question = |tables: &MemoryTables| {
        let mut question = bytes("ARP for a host behind a peer");
        question[38..42].copy_from_slice(&host_v4(address));
        act::process_port(&mut HostFrame::new(question), tables, 61);
    };
    let undisputed = tables();
    question(&undisputed);
    assert!(answered(&undisputed));

    let tables = tables();
    act::process_port(&mut HostFrame::new(bytes("an announcement of another's address")), &tables, 61);
    let record = record(&tables, host_v4(address));
    assert_eq!((record.contested, record.binding.mac()), (1, station(3)));
    question(&tables);
    assert!(!answered(&tables));
}

/// Of a solicitation, only the destination MAC address, the traffic class and the flow label may be
/// others: a wrong bit anywhere else is noticed.
#[test]
fn a_solicitation_with_any_bit_wrong_is_not_answered() {
    let question = bytes("ND for a host behind a peer");
    assert!(is_answered(question.clone()));
    for bit in 0..question.len() * 8 {
        let mut wrong = question.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        let free = matches!(bit / 8, 0..6 | 15..18) || bit / 8 == 14 && bit % 8 < 4;
        // What is for one station alone is flooded where that is unknown.
        let group = wrong[0] & 1 != 0;
        assert_eq!(is_answered(wrong), free && group, "byte {} bit {}", bit / 8, bit % 8);
    }
}

/// Of an ARP request, the destination MAC address, the target's MAC address and the sender's IP address
/// may be others; and there are further hosts that may be asked for.
#[test]
fn a_request_with_any_bit_wrong_is_not_answered() {
    let question = bytes("ARP for a host behind a peer");
    let tables = tables();
    for bit in 0..question.len() * 8 {
        let mut wrong = question.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        let free = match bit / 8 {
            0..6 => wrong[0] & 1 != 0,
            28..32 => {
                let [first, ..] = [wrong[28]];
                wrong[28..32] != wrong[38..42] && first != 0 && first != 127 && first < 224
            }
            32..38 => true,
            38..42 => {
                let wanted: [u8; 4] = wrong[38..42].try_into().expect("four bytes");
                let key = NeighborKey::new(SUPPRESSED as u16, wanted.into());
                let known = Tables::neighbor(&tables, &key).map(|slot| slot.record());
                // Station 1 asks, and 5 and 6 are where it is, or nowhere.
                known.is_some_and(|known| [2, 3, 4].map(station).contains(&known.binding.mac()))
            }
            _ => false,
        };
        assert_eq!(is_answered(wrong), free, "byte {} bit {}", bit / 8, bit % 8);
    }
}

#[test]
fn a_reply_that_cannot_be_written_is_a_drop() {
    let tables = tables();
    let failures = Failures { overwrite: true, ..Failures::default() };
    let mut frame = HostFrame::new(bytes("ND for a router")).with_failures(failures);
    assert_eq!(act::process_port(&mut frame, &tables, 61), HostAction::Dropped);
    assert_eq!(tables.dropped(Target::port(51), Direction::Receive, DropReason::Headroom), 1);
    assert_eq!((tables.all_dropped(), frame.sent.len(), answered(&tables)), (1, 0, false));
    assert_eq!(tables.traffic(Target::port(51)).transmit_packets, 0);
}
