//! Nothing vanishes: after all kinds of traffic, what went in has come out or is counted.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use mgre_tests::{
    capture::{self, Sender},
    conservation::{self, Books},
    gre::Outer,
    netns::Netns,
    packet::{BROADCAST, Datagram, MULTICAST, Mac, UNKNOWN, marked, tagged},
    skip::skipped,
    topology::{Family, KEY, Layout, SEGMENT, Spoke, Spokes, Underlay},
    traffic, wait,
};

/// Frames of each kind.
const FRAMES: usize = 20;
/// A port for frames with this tag, and its host.
const VLAN: u16 = 10;
const VLAN_PORT: &str = "lan1";
const VLAN_HOST: Mac = [0x02, 0, 0, 0, 1, 0x31];
/// Behind no peer, in the packets of one.
const HOSTILE: Mac = [0x02, 0, 0, 0, 0xcc, 0x01];

/// Three spokes, of which the first has a port by VLAN as well.
struct World {
    spokes: Spokes,
    vlan_host: Netns,
}

impl World {
    fn new(family: Family, options: &'static [&'static str]) -> Result<Self> {
        let spokes = Layout { family, options, ..Layout::new(3, Underlay::Switched) }.build()?;
        let one = spokes.spoke(1);
        let vlan_host = one.add_host(VLAN_PORT, VLAN_HOST)?;
        vlan_host.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        one.daemon.mgre(&["port", "add", SEGMENT, VLAN_PORT, "--vlan", &VLAN.to_string()])?;
        // A peer that nobody has seen: no copy for it can be sent.
        one.daemon.mgre(&["peer", "add", "far", "10.9.9.9", "--segment", SEGMENT])?;
        for spoke in spokes.iter() {
            // Longer packets than fit the tunnel.
            spoke.host.ip("link set eth0 mtu 1500")?;
        }
        Ok(Self { spokes, vlan_host })
    }

    fn pairs(&self) -> impl Iterator<Item = (&Spoke, &Spoke)> {
        let all = move || self.spokes.iter();
        all()
            .flat_map(move |from| all().map(move |to| (from, to)))
            .filter(|(from, to)| from.number != to.number)
    }

    /// Every kind of traffic once.
    fn run(&self) -> Result<()> {
        for (from, to) in self.pairs() {
            for address in [to.host_ip(), to.host_ipv6()] {
                assert!(traffic::reaches(&from.host, &address)?, "{} to {address}", from.number);
            }
            self.unicast(from, to)?;
            self.too_big(from, to)?;
        }
        for spoke in self.spokes.iter() {
            for to in [BROADCAST, MULTICAST, UNKNOWN] {
                send(spoke, &marked(to, spoke.host_mac(), "to many"))?;
            }
            // Those are dropped.
            send(spoke, &marked(BROADCAST, MULTICAST, "from a group"))?;
            send(spoke, &marked(spoke.host_mac(), spoke.host_mac(), "to where it comes from"))?;
        }
        self.vlan()?;
        self.spared()?;
        self.hostile()
    }

    fn unicast(&self, from: &Spoke, to: &Spoke) -> Result<()> {
        send(from, &marked(to.host_mac(), from.host_mac(), "to one"))?;
        for v4 in [true, false] {
            send(from, &Datagram::new(from.host_end(v4), to.host_end(v4)).frame()?)?;
        }
        Ok(())
    }

    fn too_big(&self, from: &Spoke, to: &Spoke) -> Result<()> {
        for v4 in [true, false] {
            for dont_fragment in [true, false] {
                let datagram = Datagram::new(from.host_end(v4), to.host_end(v4));
                send(from, &Datagram { length: 1500, dont_fragment, ..datagram }.frame()?)?;
            }
        }
        let mut frame = marked(to.host_mac(), from.host_mac(), "too long");
        frame.resize(1514, 0);
        send(from, &frame)
    }

    fn vlan(&self) -> Result<()> {
        let two = self.spokes.spoke(2);
        for to in [BROADCAST, two.host_mac(), self.spokes.spoke(1).host_mac()] {
            let frame = marked(to, VLAN_HOST, "tagged");
            // The second one is for a VLAN that there is no port for: the kernel's.
            capture::send(&self.vlan_host, "eth0", &vec![tagged(&frame, VLAN); FRAMES])?;
            capture::send(&self.vlan_host, "eth0", &vec![tagged(&frame, VLAN + 1); FRAMES])?;
        }
        self.spokes.spoke(1).wait_fdb_port(VLAN_HOST, &format!("{VLAN_PORT}.{VLAN}"))?;
        send(two, &marked(VLAN_HOST, two.host_mac(), "to a VLAN"))
    }

    /// Frames over a storm limit, and for bridges.
    fn spared(&self) -> Result<()> {
        let one = self.spokes.spoke(1);
        one.daemon.mgre(&["port", "set", "lan0", "--storm-limit", "1"])?;
        one.daemon.mgre(&["segment", "set", SEGMENT, "--link-local", "lldp"])?;
        for to in [BROADCAST, UNKNOWN, MULTICAST] {
            send(one, &marked(to, one.host_mac(), "a storm"))?;
        }
        for last in [0x00, 0x01, 0x0e] {
            send(one, &marked([0x01, 0x80, 0xc2, 0, 0, last], one.host_mac(), "to a bridge"))?;
        }
        let refused = || -> Result<u64> { Ok(one.drops("storm_limit")?.min(one.drops("link_local")?)) };
        wait::until("frames are refused", wait::SOON, || Ok(refused()? > 0))?;
        one.daemon.mgre(&["port", "set", "lan0", "--storm-limit", "off"])?;
        one.daemon.mgre(&["segment", "set", SEGMENT, "--link-local", "forward"]).map(|_| ())
    }

    /// Packets that say they are the first spoke's, at the second one.
    fn hostile(&self) -> Result<()> {
        let two = self.spokes.spoke(2);
        let outer = self.spokes.outer(1, 2);
        let inner = marked(BROADCAST, HOSTILE, "hostile");
        let ecn = Datagram::new(self.spokes.spoke(1).host_end(true), two.host_end(true)).frame()?;
        let packets = [
            Outer { flags: 2, ..outer.clone() }.frame(&inner)?,
            Outer { key: Some(KEY + 1), ..outer.clone() }.frame(&inner)?,
            Outer { protocol: 0x0800, ..outer.clone() }.frame(&inner)?,
            Outer { tos: 3, ..outer.clone() }.frame(&ecn)?,
            Outer { checksum: true, ..outer.clone() }.frame(&inner)?,
            outer.frame(&inner[..13])?,
            outer.frame(&inner[..14])?,
            outer.frame(&marked(BROADCAST, [0; 6], "from nobody"))?,
            outer.frame(&marked(self.spokes.spoke(3).host_mac(), HOSTILE, "on to another peer"))?,
        ];
        for packet in &packets {
            self.spokes.send_to(2, &[packet; FRAMES])?;
        }
        for identification in 1..=FRAMES as u16 {
            let packet = Outer { identification, ..outer.clone() };
            self.spokes.send_to(2, &packet.fragments(&[&inner[..], &[0; 900]].concat(), 400)?)?;
        }
        Ok(())
    }
}

fn send(spoke: &Spoke, frame: &[u8]) -> Result<()> {
    capture::send(&spoke.host, "eth0", &vec![frame; FRAMES])
}

fn nothing_vanishes(family: Family, options: &'static [&'static str], hub: bool) -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut world = World::new(family, options)?;
    if hub {
        // The other two know it alone.
        world.spokes.spoke(1).daemon.mgre(&["segment", "set", SEGMENT, "--hub"])?;
        world.spokes.spoke(2).daemon.mgre(&["peer", "del", "spoke3"])?;
        world.spokes.spoke(3).daemon.mgre(&["peer", "del", "spoke2"])?;
    }
    let mut books = Books::open(&world.spokes)?;
    world.run()?;
    books.check(&world.spokes).context("after a run")?;
    for number in [2, 1] {
        books.restart(&mut world.spokes, number)?;
    }
    world.spokes.iter().try_for_each(|spoke| {
        wait::until("its peers are back", wait::SOON, || {
            Ok(spoke.peer(if spoke.number == 1 { "spoke2" } else { "spoke1" })?["state"] == "up")
        })
        .map(|_| ())
    })?;
    world.run()?;
    books.check(&world.spokes).context("after another one, with daemons started again")?;
    books.check_hosts(&world.spokes)?;
    books.check_underlay(&world.spokes)?;
    for spoke in world.spokes.iter() {
        let terms = books.terms(spoke)?;
        println!("spoke {}: {terms}", spoke.number);
        assert!(terms.sent > 500 && terms.dropped > 0 && terms.flooded > 0, "{terms}");
    }
    // The second spoke got packets that the first one did not send.
    let [one, two, three] = [1, 2, 3].map(|number| world.spokes.spoke(number));
    for (from, to) in [(one, three), (three, one), (two, one)] {
        conservation::check_peer(from, to)?;
    }
    Ok(())
}

#[test]
fn over_ipv4() -> Result<()> {
    nothing_vanishes(Family::V4, &[], false)
}

#[test]
fn over_ipv6() -> Result<()> {
    nothing_vanishes(Family::V6, &[], false)
}

#[test]
fn through_the_slow_path() -> Result<()> {
    nothing_vanishes(Family::V4, &["--csum", "--seq"], false)
}

#[test]
fn where_outer_packets_are_fragmented() -> Result<()> {
    nothing_vanishes(Family::V4, &["--df", "unset"], false)
}

#[test]
fn through_hubs() -> Result<()> {
    nothing_vanishes(Family::V4, &[], true)
}

/// Frames are counted while programs are swapped, too.
#[test]
fn while_a_daemon_is_started_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut spokes = Spokes::new(2, Underlay::Switched)?;
    for spoke in spokes.iter() {
        spoke.host.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        capture::send(&spoke.host, "eth0", &[marked(BROADCAST, spoke.host_mac(), "here I am")])?;
    }
    spokes.spoke(1).wait_fdb_peer(spokes.spoke(2).host_mac(), "spoke2")?;
    spokes.spoke(2).wait_fdb_peer(spokes.spoke(1).host_mac(), "spoke1")?;
    let mut books = Books::open(&spokes)?;
    let over = AtomicBool::new(false);
    let senders: Vec<_> = [(1, 2), (2, 1)]
        .into_iter()
        .map(|(from, to)| {
            let (from, to) = (spokes.spoke(from), spokes.spoke(to));
            let frames = [to.host_mac(), BROADCAST].map(|mac| marked(mac, from.host_mac(), "all the time"));
            Ok((Sender::new(&from.host, "eth0")?, frames))
        })
        .collect::<Result<_>>()?;
    thread::scope(|scope| -> Result<()> {
        let send = |(sender, frames): &(Sender, [Vec<u8>; 2])| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                frames.iter().try_for_each(|frame| sender.send(frame))?;
                thread::sleep(Duration::from_micros(200));
            }
            Ok(())
        };
        let threads: Vec<_> = senders.iter().map(|sender| scope.spawn(move || send(sender))).collect();
        let restarted = (0..3)
            .try_for_each(|_| [1, 2].into_iter().try_for_each(|number| books.restart(&mut spokes, number)));
        over.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a sender panicked"))??;
        }
        restarted
    })?;
    books.check(&spokes)?;
    books.check_hosts(&spokes)?;
    books.check_underlay(&spokes)?;
    conservation::check_peer(spokes.spoke(1), spokes.spoke(2))?;
    conservation::check_peer(spokes.spoke(2), spokes.spoke(1))
}
