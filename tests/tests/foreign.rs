//! A host that has GRE of its own at the address that mgre uses.

use std::{
    io::ErrorKind,
    mem::MaybeUninit,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture::Capture,
    conservation::Books,
    gre::{IP_PROTOCOL_GRE, Outer},
    netns::Netns,
    packet::{BROADCAST, Mac, marked},
    skip::{skipped, tc_of_kernel},
    topology::{Family, KEY, Layout, Spokes, Underlay},
    traffic,
};
use socket2::{Domain, Protocol, Socket, Type};

/// Somebody behind whoever sends.
const SENDER: Mac = [0x02, 0, 0, 0, 0xcc, 0x01];
/// How long the kernel may take.
const QUIET: Duration = Duration::from_millis(500);

/// What the host's own tunnels would get: a socket for all GRE.
struct Stack(Socket);

impl Stack {
    fn listen(netns: &Netns, family: Family) -> Result<Self> {
        let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
        let open = || Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(IP_PROTOCOL_GRE))));
        let socket = netns.enter(open)?.context("a raw socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        Ok(Self(socket))
    }

    /// How many packets came that end so, once nothing has come for a while.
    fn count(&self, end: &[u8]) -> Result<usize> {
        let mut room = [MaybeUninit::uninit(); 2048];
        let (mut count, mut last) = (0, Instant::now());
        while last.elapsed() < QUIET {
            match self.0.recv(&mut room) {
                Ok(len) => {
                    // SAFETY: the kernel wrote that many.
                    let packet: Vec<u8> =
                        room[..len].iter().map(|byte| unsafe { byte.assume_init() }).collect();
                    count += usize::from(packet.ends_with(end));
                    last = Instant::now();
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(count)
    }
}

/// An address of the underlay that no peer has.
fn stranger(family: Family) -> IpAddr {
    if family == Family::V4 { [10, 0, 0, 99].into() } else { [0xfd00, 0, 0, 0, 0, 0, 0, 0x99].into() }
}

/// Packets that are no peer's, from somebody and from a peer's address: each with the reason why.
fn foreign(spokes: &Spokes) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let inner = marked(BROADCAST, SENDER, "somebody else's");
    let peers = spokes.outer(1, 2);
    let strangers = Outer { source: stranger(spokes.layout.family), ..peers.clone() };
    let packets = [
        ("unknown_endpoint", strangers.clone()),
        ("unknown_endpoint", Outer { key: None, ..strangers.clone() }),
        ("key_mismatch", Outer { key: Some(KEY + 1), ..peers.clone() }),
        ("unknown_protocol", Outer { protocol: 0x0800, ..peers.clone() }),
        ("unknown_protocol", Outer { protocol: 0, key: None, ..peers }),
        ("unknown_protocol", Outer { protocol: 0x0800, key: None, ..strangers }),
    ];
    packets.into_iter().map(|(reason, outer)| Ok((reason, outer.frame(&inner)?))).collect()
}

#[test]
fn what_is_no_peers_is_dropped_or_left_to_the_kernel() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for (family, mode) in [(Family::V4, "auto"), (Family::V6, "auto"), (Family::V4, "generic")] {
        let spokes = Layout { family, mode, ..Layout::new(2, Underlay::Switched) }.build()?;
        let two = spokes.spoke(2);
        let stack = Stack::listen(&two.netns, family)?;
        let at_host = Capture::start(&two.host, "eth0")?;
        let packets = foreign(&spokes)?;
        let inner = marked(BROADCAST, SENDER, "somebody else's");
        let books = Books::open(&spokes)?;

        // Packets of a host may have come before the peer was known.
        let early = two.drops("unknown_endpoint")?;
        let send = || packets.iter().try_for_each(|(_, packet)| spokes.send_to(2, &[packet]));
        send()?;
        for (reason, count) in [("unknown_endpoint", early + 2), ("key_mismatch", 1), ("unknown_protocol", 3)]
        {
            two.wait_drops(reason, count)?;
        }
        assert_eq!(
            (stack.count(&inner)?, two.drops("foreign_gre")?),
            (0, 0),
            "dropped unless told otherwise"
        );

        two.daemon.mgre(&["underlay", "set", "wan0", "--foreign-gre", "pass"])?;
        let shown = two.daemon.list(&["underlay", "show"])?;
        assert!(shown.iter().all(|underlay| underlay["foreign_gre"] == "pass"), "{shown:?}");
        send()?;
        assert_eq!(stack.count(&inner)?, packets.len(), "{family:?} {mode}");
        two.wait_drops("foreign_gre", packets.len() as u64)?;
        assert_eq!(two.drops("unknown_endpoint")?, early + 2, "nothing is counted as dropped");
        // What is a peer's is not the kernel's: it arrives at the host alone.
        spokes.send_to(2, &[spokes.outer(1, 2).frame(&inner)?])?;
        at_host.wait_arrival("a peer's", &inner)?;
        assert_eq!((stack.count(&inner)?, at_host.arrived(&inner)), (0, 1));
        books.check(&spokes)?;
        if mode == "auto" {
            // A capture does not see what XDP drops.
            books.check_underlay(&spokes)?;
        }

        // It stays so over a restart, and ends when told.
        drop(books);
        let mut spokes = spokes;
        spokes.spoke_mut(2).daemon.stop()?;
        spokes.spoke_mut(2).daemon.start_again()?;
        let two = spokes.spoke(2);
        two.wait_up()?;
        spokes.send_to(2, &[&packets[0].1])?;
        assert_eq!(stack.count(&inner)?, 1, "after a restart");
        two.daemon.mgre(&["underlay", "set", "wan0", "--foreign-gre", "drop"])?;
        spokes.send_to(2, &[&packets[0].1])?;
        assert_eq!(stack.count(&inner)?, 0);
        assert!(traffic::reaches(&spokes.spoke(1).host, &two.host_ip())?);
    }
    Ok(())
}

#[test]
fn an_underlay_is_changed_while_it_works() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = Layout::new(2, Underlay::Switched).build()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let tc = tc_of_kernel().name();
    let underlay = || -> Result<serde_json::Value> { Ok(two.daemon.list(&["underlay", "show"])?.remove(0)) };
    assert_eq!(underlay()?["hook"], tc);
    two.daemon.mgre(&["underlay", "set", "wan0", "--mode", "generic"])?;
    assert_eq!(
        (&underlay()?["mode"], &underlay()?["hook"]),
        (&"generic".into(), &format!("xdp-generic+{tc}").into())
    );
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    two.daemon.mgre(&["underlay", "set", "wan0", "--mode", "tc"])?;
    assert_eq!(underlay()?["hook"], tc);
    // The program that was taken off is not taken for another's.
    two.daemon.mgre(&["underlay", "set", "wan0", "--mode", "generic"])?;
    assert_eq!(underlay()?["hook"], format!("xdp-generic+{tc}"), "{}", underlay()?);
    two.daemon.mgre(&["underlay", "set", "wan0", "--mode", "tc"])?;
    assert_eq!(underlay()?["hook"], tc);
    assert!(traffic::reaches(&one.host, &two.host_ip())?);

    // The only address by which a peer is reached stays, but where it is to be cut off.
    two.netns.sysctl("ipv6/conf/wan0/disable_ipv6", "0")?;
    two.netns.ip("addr add fd00::2/64 dev wan0 nodad")?;
    let refused = two.daemon.outcome(&["underlay", "set", "wan0", "--local", "fd00::2"])?;
    assert!(refused.code == Some(1) && refused.stderr.contains("reached by 10.0.0.2 of wan0"), "{refused:?}");
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    let nothing = two.daemon.outcome(&["underlay", "set", "wan0"])?;
    assert_eq!(nothing.code, Some(2), "{nothing:?}");
    // Another address of the same version: the far end is told, and all goes on.
    two.netns.ip("addr add 10.0.0.22/24 dev wan0")?;
    two.daemon.mgre(&["underlay", "set", "wan0", "--local", "10.0.0.22"])?;
    one.daemon.mgre(&["peer", "set", "spoke2", "--remote", "10.0.0.22"])?;
    one.wait_up()?;
    two.wait_up()?;
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    assert_eq!(underlay()?["local"], "10.0.0.22");
    two.daemon.mgre(&["underlay", "set", "wan0", "--local", "fd00::2", "--force"])?;
    assert_eq!(underlay()?["local"], "fd00::2");
    assert!(!traffic::reaches(&one.host, &two.host_ip())?, "it was asked to be cut off");
    Ok(())
}
