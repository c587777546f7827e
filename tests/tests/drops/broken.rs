//! Drops of a datapath that something is wrong with: in the kernel around it, or in its own tables.

use anyhow::{Context as _, Result, ensure};
use mgre_common::{
    endpoint::{EndpointSlot, Owner},
    fdb::Bucket,
    map_name,
    reason::{Direction, DropReason},
    table::{Adjacency, Indexed, MAX_PORTS, MAX_SEGMENTS, PortSlot},
    target::Target,
    wire::MacAddr,
};
use mgre_tests::{
    packet::{BROADCAST, mac_text, marked},
    skip::skipped,
    tables,
    topology::{SEGMENT, Spokes},
    wait,
};
use serde_json::Value;

use crate::case::{
    self, Case, HERE, Of, SENDER, TARGET, here, mgre, outer, run, send, send_from_host, settle, with_static,
};

pub(crate) const CASES: &[Case] = &[
    Case {
        reason: DropReason::RedirectFailed,
        what: "a port whose link is down",
        whose: Of::Peer("spoke1"),
        direction: Direction::Receive,
        provoke: |spokes| {
            let spoke = here(spokes);
            let _host = spoke.add_host(PORT, PORT_HOST)?;
            mgre(spokes, &["port", "add", SEGMENT, PORT])?;
            let is = |state: &'static str| {
                wait::until(&format!("{PORT} is {state}"), wait::SOON, || {
                    let ports = spoke.daemon.list(&["port", "show"])?;
                    Ok(ports.iter().any(|port| port["interface"] == PORT && port["state"] == state))
                })
            };
            is("up")?;
            mgre(spokes, &["fdb", "add", SEGMENT, &mac_text(TARGET), "--port", PORT])?;
            spoke.netns.ip(&format!("link set {PORT} down"))?;
            is("down")?;
            let sent = send(spokes, &[outer(spokes).frame(&marked(TARGET, SENDER, "down"))?])?;
            settle(spokes)?;
            mgre(spokes, &["fdb", "del", SEGMENT, &mac_text(TARGET)])?;
            mgre(spokes, &["port", "del", PORT])?;
            Ok(sent)
        },
    },
    Case {
        reason: DropReason::RedirectFailed,
        what: "a copy for an interface whose queue takes no frame so long",
        whose: Of::Peer("spoke1"),
        direction: Direction::Receive,
        provoke: |spokes| {
            // Of two ports, the first gets a copy. (What becomes of the frame itself, which the last one gets, the
            // kernel does not say.)
            let spoke = here(spokes);
            let _host = spoke.add_host(PORT, PORT_HOST)?;
            mgre(spokes, &["port", "add", SEGMENT, PORT])?;
            spoke.netns.run(&["tc", "qdisc", "add", "dev", "lan0", "root", "bfifo", "limit", "500"])?;
            let mut frame = marked(BROADCAST, SENDER, "refused");
            frame.resize(1000, 0);
            let sent = send(spokes, &[outer(spokes).frame(&frame)?])?;
            settle(spokes)?;
            spoke.netns.run(&["tc", "qdisc", "del", "dev", "lan0", "root"])?;
            mgre(spokes, &["port", "del", PORT])?;
            Ok(sent)
        },
    },
    Case {
        reason: DropReason::Internal,
        what: "an endpoint in a segment that there cannot be",
        whose: Of::Peer("spoke1"),
        direction: Direction::Receive,
        provoke: |spokes| {
            let slots = tables::open::<EndpointSlot>(&here(spokes).daemon, map_name::ENDPOINT_SLOTS)?;
            let all = (0..slots.len()).filter_map(|index| slots.get(index));
            let used: Vec<_> = all.filter_map(|slot| Some((slot, slot.owner()?))).collect();
            ensure!(!used.is_empty(), "no endpoint is in the index");
            for (slot, owner) in &used {
                slot.give(Owner { segment: NO_SEGMENT, ..*owner });
            }
            let sent = send(spokes, &[outer(spokes).frame(&marked(BROADCAST, SENDER, "where?"))?])?;
            settle(spokes)?;
            used.into_iter().for_each(|(slot, owner)| slot.give(owner));
            Ok(sent)
        },
    },
    Case {
        reason: DropReason::Internal,
        what: "a port in a segment that there cannot be",
        whose: Of::Port("lan0"),
        direction: Direction::Receive,
        provoke: |spokes| {
            let slots = tables::open::<PortSlot>(&here(spokes).daemon, map_name::PORT_SLOTS)?;
            let ifindex = ifindex_of(spokes, "lan0")?;
            let slot = slots.get(PortSlot::index(ifindex)).context("no slot")?;
            let indexed = slot.find(ifindex).context("the port is not in the index")?;
            slot.set(ifindex, Indexed { segment: NO_SEGMENT.into(), ..indexed });
            let sent = send_from_host(spokes, &marked(BROADCAST, here(spokes).host_mac(), "where?"))?;
            settle(spokes)?;
            slot.set(ifindex, indexed);
            Ok(sent)
        },
    },
    Case {
        reason: DropReason::Internal,
        what: "an address at a port that there cannot be",
        whose: Of::Peer("spoke1"),
        direction: Direction::Receive,
        provoke: |spokes| {
            with_target_at(spokes, Target::port(MAX_PORTS), || {
                send(spokes, &[outer(spokes).frame(&marked(TARGET, SENDER, "where?"))?])
            })
        },
    },
    Case {
        reason: DropReason::Internal,
        what: "an address at an adjacency that there cannot be, which has no counters",
        whose: Of::Nobody,
        direction: Direction::Transmit,
        provoke: |spokes| {
            let adjacencies = tables::open::<Adjacency>(&here(spokes).daemon, map_name::ADJACENCIES)?;
            with_target_at(spokes, Target::adjacency(adjacencies.len()), || {
                send_from_host(spokes, &marked(TARGET, here(spokes).host_mac(), "where?"))
            })
        },
    },
    Case {
        reason: DropReason::Headroom,
        what: "a frame that is to be finished, where there is no slow path",
        whose: Of::Peer("spoke1"),
        direction: Direction::Transmit,
        provoke: |spokes| {
            let spoke = here(spokes);
            mgre(spokes, &["peer", "set", "spoke1", "--csum"])?;
            let sent = with_static(spokes, ["--peer", "spoke1"], || {
                send_from_host(spokes, &marked(TARGET, spoke.host_mac(), "to be finished"))
            })?;
            let flooded = send_from_host(spokes, &marked(BROADCAST, spoke.host_mac(), "to be finished"))?;
            settle(spokes)?;
            mgre(spokes, &["peer", "set", "spoke1", "--csum=false"])?;
            Ok(sent + flooded)
        },
    },
];

const PORT: &str = "lan1";
const PORT_HOST: [u8; 6] = [0x02, 0, 0, 0, 2, 0x21];
/// No segment has this id.
const NO_SEGMENT: u16 = MAX_SEGMENTS as u16 + 1;

fn ifindex_of(spokes: &Spokes, interface: &str) -> Result<u32> {
    let text = here(spokes).netns.run(&["ip", "-json", "link", "show", interface])?;
    let links: Value = serde_json::from_str(&text)?;
    links[0]["ifindex"].as_u64().and_then(|index| index.try_into().ok()).context("no ifindex")
}

/// Does something while the FDB says that [`TARGET`] is somewhere.
fn with_target_at(spokes: &Spokes, target: Target, act: impl FnOnce() -> Result<u64>) -> Result<u64> {
    with_static(spokes, ["--port", "lan0"], || {
        let table = tables::open::<Bucket>(&here(spokes).daemon, map_name::FDB)?;
        let slots = (0..table.len()).filter_map(|index| table.get(index)).flat_map(|bucket| &bucket.slots);
        let slot = slots.into_iter().find(|slot| slot.key().mac() == MacAddr(TARGET)).context("no entry")?;
        let (was, seen) = (slot.target(), slot.seen());
        slot.retarget(target, seen);
        let sent = act()?;
        settle(spokes)?;
        slot.retarget(was, seen);
        Ok(sent)
    })
}

/// Spokes of which one could not make the interfaces of its slow path: there is one of that name that is not mgre's.
fn build() -> Result<Spokes> {
    let mut spokes = case::build()?;
    let spoke = spokes.spoke_mut(HERE);
    let [name, ..] = SLOW;
    spoke.daemon.stop()?;
    spoke.netns.ip(&format!("link del {name}\nlink add {name} type bridge"))?;
    spoke.daemon.start_again()?;
    spokes.wait_up()?;
    let problems = here(&spokes).daemon.json(&["status"])?["slow_path"]["problems"].to_string();
    ensure!(problems.contains(name) && problems.contains("not mgre's"), "{problems}");
    Ok(spokes)
}

/// The interfaces of the slow path.
const SLOW: [&str; 2] = ["mgre-default-i", "mgre-default-o"];

#[test]
fn drops_of_a_datapath_that_something_is_wrong_with() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    run(&build()?, CASES)
}
