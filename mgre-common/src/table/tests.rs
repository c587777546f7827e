use super::*;
use crate::target::Target;

#[test]
fn flood_list_is_one_word() {
    let list = FloodList { start: 65_000, ports: 64, adjacencies: 448 };
    assert_eq!(FloodList::from_bits(list.to_bits()), list);
    assert_eq!(FloodList::from_bits(0), FloodList::default());
    assert_eq!(FloodSlot(AtomicU32::new(Target::port(9).to_bits())).target(), Target::port(9));
}

#[test]
fn a_port_slot_answers_for_its_interface_alone() {
    let slot = PortSlot::default();
    assert!(slot.is_free() && slot.find(5).is_none());
    for to in [Indexed { port: 0, segment: 1 }, Indexed { port: MAX_PORTS - 1, segment: MAX_SEGMENTS }] {
        slot.set(5, to);
        assert_eq!((slot.find(5), slot.find(5 + PORT_SLOTS)), (Some(to), None));
    }
    assert_eq!(PortSlot::index(5), PortSlot::index(5 + PORT_SLOTS));
    slot.clear();
    assert!(slot.is_free());
}

/// RFC 2890 2.2: what is old, and what follows a peer's new start.
#[test]
fn sequence_numbers() {
    let sequence = Sequence::default();
    assert!(sequence.accept(0, 0), "the first one, whatever it is");
    assert!(!sequence.accept(0, 0), "twice");
    assert!(sequence.accept(1, 0) && sequence.accept(5, 0), "with a gap");
    for old in [5, 4, 0, u32::MAX, 6_u32.wrapping_sub(1 << 31)] {
        assert!(!sequence.accept(old, 9), "{old}");
    }
    assert!(sequence.accept(5_u32.wrapping_add(1 << 31), 9), "half way round is no longer before");
    assert!(sequence.accept(u32::MAX, 9) && sequence.accept(0, 9), "it wraps");
    assert!(!sequence.accept(u32::MAX, 18), "nine seconds later it is remembered");
    assert!(sequence.accept(0, 19), "ten seconds later it began anew");
    assert!(!sequence.accept(0, 19));
}

#[test]
fn a_template_appears_whole_or_not_at_all() {
    let mut adjacency = Adjacency::default();
    let mut template = Template::zeroed();
    template.ifindex = 7;
    // SAFETY: exclusive access.
    let index = unsafe { Adjacency::write_idle(&raw mut adjacency, template) };
    assert_eq!((index, adjacency.template().ifindex), (1, 0));
    adjacency.activate(index);
    assert_eq!(adjacency.template().ifindex, 7);
    // SAFETY: exclusive access.
    assert_eq!(unsafe { Adjacency::write_idle(&raw mut adjacency, template) }, 0);
}
