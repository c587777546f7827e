//! One reason, how it is provoked, and what is to be counted then.

use anyhow::{Context as _, Result, ensure};
use mgre_common::reason::{Direction, DropReason};
use mgre_tests::{
    capture,
    drops::{Counter, Drops, Whose},
    gre::Outer,
    packet::{Mac, mac_text},
    topology::{SEGMENT, Spoke, Spokes, Underlay},
    wait,
};

/// Frames of each case, unless it says otherwise.
pub(crate) const FRAMES: u64 = 5;

/// The spoke that drops, and the one that frames are said to come from.
pub(crate) const HERE: u8 = 2;
pub(crate) const THERE: u8 = 1;

/// Somebody behind the other spoke.
pub(crate) const SENDER: Mac = [0x02, 0, 0, 0, 0xcc, 0x01];
/// Somebody to whom a case sends.
pub(crate) const TARGET: Mac = [0x02, 0, 0, 0, 0xcc, 0x02];

/// A reason and what provokes it.
pub(crate) struct Case {
    pub(crate) reason: DropReason,
    /// What is dropped.
    pub(crate) what: &'static str,
    pub(crate) whose: Of,
    pub(crate) direction: Direction,
    /// Has frames dropped, and says how many.
    pub(crate) provoke: fn(&Spokes) -> Result<u64>,
}

/// Whose counter it is.
#[derive(Clone, Copy)]
pub(crate) enum Of {
    Nobody,
    Peer(&'static str),
    Port(&'static str),
    /// A peer's in another segment.
    PeerIn(&'static str, &'static str),
}

impl Of {
    fn whose(self) -> Whose {
        match self {
            Self::Nobody => Whose::Nobody,
            Self::Peer(name) => Whose::Peer(name.into(), SEGMENT.into()),
            Self::Port(name) => Whose::Port(name.into(), SEGMENT.into()),
            Self::PeerIn(name, segment) => Whose::Peer(name.into(), segment.into()),
        }
    }
}

/// Runs cases one after the other at the same spokes. Nothing else is counted at the one that drops, neither meanwhile
/// nor afterwards.
pub(crate) fn run(spokes: &Spokes, cases: &[Case]) -> Result<()> {
    let daemon = &spokes.spoke(HERE).daemon;
    let start = Drops::read(daemon)?;
    let mut before = start.clone();
    for case in cases {
        let what = || format!("{}: {}", case.reason.name(), case.what);
        let frames = (case.provoke)(spokes).with_context(what)?;
        ensure!(frames > 0, "{}: nothing was sent", what());
        let counter = Counter {
            whose: case.whose.whose(),
            direction: case.direction.name().into(),
            reason: case.reason.name().into(),
        };
        let wanted = Drops::from_iter([(counter, frames)]);
        let mut since = Drops::default();
        let counted = wait::value("what was dropped is counted", wait::SOON, || {
            let now = Drops::read(daemon)?;
            since = now.since(&before)?;
            Ok((since == wanted).then_some(now))
        });
        before = counted.with_context(|| format!("{}: wanted\n{wanted}but counted\n{since}", what()))?;
    }
    ensure!(
        Drops::read(daemon)? == before,
        "something was dropped later:\n{}",
        Drops::read(daemon)?.since(&before)?
    );
    Ok(())
}

/// Two spokes whose hosts say nothing by themselves.
///
/// # Errors
/// They cannot be built.
pub(crate) fn build() -> Result<Spokes> {
    let spokes = Spokes::new(2, Underlay::Switched)?;
    for spoke in spokes.iter() {
        spoke.host.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
    }
    settle(&spokes)?;
    Ok(spokes)
}

/// The spoke that drops.
pub(crate) fn here(spokes: &Spokes) -> &Spoke {
    spokes.spoke(HERE)
}

/// The other spoke's packets.
pub(crate) fn outer(spokes: &Spokes) -> Outer {
    spokes.outer(THERE, HERE)
}

/// Sends packets to the spoke that drops, each of them [`FRAMES`] times.
///
/// # Errors
/// The kernel takes none.
pub(crate) fn send(spokes: &Spokes, packets: &[Vec<u8>]) -> Result<u64> {
    for packet in packets {
        spokes.send_to(HERE, &vec![packet; FRAMES as usize])?;
    }
    Ok(FRAMES * packets.len() as u64)
}

/// Sends frames from the host of the spoke that drops.
///
/// # Errors
/// The kernel takes none.
pub(crate) fn send_from_host(spokes: &Spokes, frame: &[u8]) -> Result<u64> {
    capture::send(&here(spokes).host, "eth0", &vec![frame; FRAMES as usize])?;
    Ok(FRAMES)
}

/// Runs a command of the spoke that drops.
///
/// # Errors
/// It fails.
pub(crate) fn mgre(spokes: &Spokes, arguments: &[&str]) -> Result<()> {
    here(spokes).daemon.mgre(arguments).map(|_| ())
}

/// Does something while an address is a static entry.
///
/// # Errors
/// It cannot be one, or what is done fails.
pub(crate) fn with_static(spokes: &Spokes, at: [&str; 2], act: impl FnOnce() -> Result<u64>) -> Result<u64> {
    let mac = mac_text(TARGET);
    mgre(spokes, &["fdb", "add", SEGMENT, &mac, at[0], at[1]])?;
    let frames = act()?;
    settle(spokes)?;
    mgre(spokes, &["fdb", "del", SEGMENT, &mac])?;
    Ok(frames)
}

/// Waits until all that was sent to the spoke has been handled: counters stand still.
///
/// # Errors
/// They do not soon, or cannot be read.
pub(crate) fn settle(spokes: &Spokes) -> Result<()> {
    let daemon = &here(spokes).daemon;
    let mut last = String::new();
    wait::until("counters stand still", wait::SOON, || {
        let now = daemon.mgre(&["stats"])? + &daemon.mgre(&["stats", "--drops"])?;
        let same = now == last;
        last = now;
        Ok(same)
    })
    .map(|_| ())
}
