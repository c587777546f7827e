//! What the demo does, and what must come of it.

use std::{fmt::Write as _, net::Ipv4Addr, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use mgre_tests::{
    capture::{self, Capture},
    netns::Netns,
    packet::{self, BROADCAST, Gre, Mac},
    topology::{SEGMENT, Spokes},
    traffic, wait,
};

use crate::show::Show;

/// The host that moves.
const LAPTOP: Mac = [0x02, 0, 0, 0, 0xaa, 0x01];
const LAPTOP_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
/// How long one that must not come is waited for.
const QUIET: Duration = Duration::from_millis(300);

/// Runs every step, and returns the host that was made for the last.
pub(crate) fn run(show: &mut Show, spokes: &Spokes) -> Option<Netns> {
    show.step("reach", "every host pings every other, over IPv4 and IPv6", || reach(spokes));
    show.step("unicast", "host1 sends 100 frames to host2; only spoke2 may see them", || unicast(spokes));
    show.step("broadcast", "host1 sends one ARP broadcast and one UDP multicast", || broadcast(spokes));
    let mut throughput = None;
    show.step("bulk", "host1 sends TCP to host3 for 3 s (iperf3)", || {
        let (one, three) = (spokes.spoke(1), spokes.spoke(3));
        let tcp = traffic::iperf3(&one.host, &three.host, &three.host_ip(), 3, &[])?;
        throughput = Some(tcp.bits_per_second);
        ensure!(tcp.bytes > 10e6, "only {} bytes arrived", tcp.bytes);
        Ok(format!("{:.2} Gbit/s arrived", tcp.bits_per_second / 1e9))
    });
    if let Some(bits) = throughput {
        show.note_throughput(bits);
    }
    let mut laptop = None;
    show.step("move", "a laptop (10.77.0.100) leaves spoke1 and is plugged in at spoke3", || {
        laptop = Some(match &spokes.layout.prefix {
            Some(prefix) => Netns::with_name(format!("{prefix}laptop"))?,
            None => Netns::new("laptop")?,
        });
        roam(spokes, laptop.as_ref().context("it was just made")?)
    });
    laptop
}

/// Everybody to everybody, as a matrix of round-trip times.
fn reach(spokes: &Spokes) -> Result<String> {
    let mut matrix = format!(
        "round trip {}",
        spokes.iter().map(|to| format!("{:>9}", to_host(to.number))).collect::<String>()
    );
    let mut missing = Vec::new();
    for from in spokes.iter() {
        write!(matrix, "\n               {:>10} ", to_host(from.number))?;
        for to in spokes.iter() {
            if from.number == to.number {
                matrix += "        ·";
                continue;
            }
            let pings = |address: String| {
                traffic::reaches(&from.host, &address)?;
                traffic::ping(&from.host, &["-c", "3", "-i", "0.01", "-W", "2", &address])
            };
            let (four, six) = (pings(to.host_ip())?, pings(to.host_ipv6())?);
            if !four.all_came_back() || !six.all_came_back() {
                missing.push(format!("{} to {}", to_host(from.number), to_host(to.number)));
            }
            match four.round_trip_ms {
                Some(time) => write!(matrix, "{time:>6.3} ms")?,
                None => matrix += "     none",
            }
        }
    }
    ensure!(missing.is_empty(), "replies are missing from {}", missing.join(", "));
    Ok(matrix)
}

fn to_host(number: u8) -> String {
    format!("host{number}")
}

/// Known unicast goes to one spoke: a capture at the underlay of the third proves it.
fn unicast(spokes: &Spokes) -> Result<String> {
    const FRAMES: usize = 100;
    let (one, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
    one.wait_fdb_peer(two.host_mac(), "spoke2")?;
    let at_two = Capture::start(&two.host, "eth0")?;
    let at_third = Capture::start(&three.netns, "wan0")?;
    let frame = packet::marked(two.host_mac(), one.host_mac(), "for host2 alone");
    capture::send(&one.host, "eth0", &vec![&frame; FRAMES])?;
    wait::until("the frames arrive at host2", wait::SOON, || {
        Ok(at_two.count(|seen| seen.bytes == frame) >= FRAMES)
    })?;
    sleep(QUIET);
    let arrived = at_two.count(|seen| seen.bytes == frame);
    let strays = at_third.count(|seen| Gre::parse(&seen.bytes).is_some_and(|gre| gre.inner == frame));
    ensure!(arrived == FRAMES && strays == 0, "{arrived} at host2, {strays} at spoke3");
    Ok(format!("{arrived} arrived at host2, {strays} were seen at spoke3"))
}

/// Group frames are copied at the first spoke, once for each peer, and never sent on by another.
fn broadcast(spokes: &Spokes) -> Result<String> {
    let one = spokes.spoke(1);
    let captures =
        spokes.iter().map(|spoke| Capture::start(&spoke.host, "eth0")).collect::<Result<Vec<_>>>()?;
    let wans = spokes.iter().map(|spoke| Capture::start(&spoke.netns, "wan0")).collect::<Result<Vec<_>>>()?;
    let group = ([0x01, 0, 0x5e, 0x4d, 0, 1], Ipv4Addr::new(239, 77, 0, 1));
    let arp = packet::announcement(one.host_mac(), one.host_ipv4());
    let udp = packet::udp((one.host_mac(), one.host_ipv4()), group, b"to all who listen")?;
    let frames = [arp, udp];
    debug_assert_eq!(frames[0][..6], BROADCAST);
    capture::send(&one.host, "eth0", &frames)?;
    for (capture, spoke) in captures.iter().zip(spokes.iter()).skip(1) {
        for frame in &frames {
            capture.wait_for(&format!("a frame at {}", to_host(spoke.number)), wait::SOON, |seen| {
                seen.bytes == *frame
            })?;
        }
    }
    sleep(QUIET);
    let at_hosts: Vec<usize> = captures
        .iter()
        .map(|capture| capture.count(|seen| !seen.outgoing && frames.contains(&seen.bytes)))
        .collect();
    let copies: Vec<usize> = wans
        .iter()
        .map(|capture| {
            capture.count(|seen| {
                seen.outgoing && Gre::parse(&seen.bytes).is_some_and(|gre| frames.contains(&gre.inner))
            })
        })
        .collect();
    ensure!(
        at_hosts == [0, 2, 2] && copies == [4, 0, 0],
        "at the hosts {at_hosts:?}, sent by the spokes {copies:?}"
    );
    Ok("each once at host2 and host3, none back at host1, none sent on from spoke to spoke".to_owned())
}

/// A host moves with its MAC and IP addresses, and is reachable where it is now.
fn roam(spokes: &Spokes, laptop: &Netns) -> Result<String> {
    let (one, two, three) = (spokes.spoke(1), spokes.spoke(2), spokes.spoke(3));
    let address = LAPTOP_IP.to_string();
    let plug_in = format!("addr add {address}/24 dev eth0");
    one.attach(laptop, "lan1", LAPTOP)?;
    laptop.ip(&plug_in)?;
    one.daemon.mgre(&["port", "add", SEGMENT, "lan1"])?;
    traffic::wait_reachable(&two.host, &address, wait::SOON)?;
    two.wait_fdb_peer(LAPTOP, "spoke1")?;

    one.daemon.mgre(&["port", "del", "lan1"])?;
    one.netns.ip("link del lan1")?;
    three.attach(laptop, "lan1", LAPTOP)?;
    laptop.ip(&plug_in)?;
    three.daemon.mgre(&["port", "add", SEGMENT, "lan1"])?;
    // As every system does when its link comes up.
    capture::send(laptop, "eth0", &[packet::announcement(LAPTOP, LAPTOP_IP)])?;
    let took = traffic::wait_reachable(&two.host, &address, wait::SOON)?;
    two.wait_fdb_peer(LAPTOP, "spoke3")?;
    one.wait_fdb_peer(LAPTOP, "spoke3")?;
    ensure!(traffic::reaches(&one.host, &address)?, "host1 does not reach it");
    Ok(format!(
        "host2 reached it {:.0} ms after it was plugged in; every FDB has it at spoke3",
        took.as_secs_f64() * 1e3
    ))
}
