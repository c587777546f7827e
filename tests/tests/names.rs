//! Peers given by DNS name.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use mgre_tests::{
    capture,
    daemon::Options,
    dns::{self, Dns},
    lone::Lone,
    packet,
    skip::skipped,
    topology::SEGMENT,
    wait,
};
use tempfile::TempDir;

const NAME: &str = "site.example";
/// Who answers on the underlay, and who does not.
const GOOD: [[u8; 4]; 2] = [[10, 0, 0, 2], [10, 0, 0, 3]];
const DEAD: [u8; 4] = [10, 0, 0, 99];

struct World {
    lone: Lone,
    dns: Dns,
    _folder: TempDir,
}

impl World {
    /// A daemon with peer `b` at 10.0.0.2, and a name server that knows one name.
    fn new(addresses: &[[u8; 4]]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let options = Options { wrapper: dns::wrapper(folder.path())?, ..Options::default() };
        let lone = Lone::new(options)?;
        let dns = Dns::start(&lone.netns)?;
        dns.say(NAME, addresses);
        Ok(Self { lone, dns, _folder: folder })
    }

    fn add(&self, peer: &str, name: &str) -> Result<()> {
        self.lone.daemon.mgre(&["peer", "add", peer, name, "--segment", SEGMENT]).map(drop)
    }

    fn endpoint(&self, peer: &str) -> Result<String> {
        Ok(self.lone.peer(peer)?["endpoint"].as_str().unwrap_or_default().to_owned())
    }

    fn state(&self, peer: &str) -> Result<String> {
        Ok(self.lone.peer(peer)?["state"].as_str().unwrap_or_default().to_owned())
    }

    fn wait_up(&self, peer: &str) -> Result<()> {
        wait::until("the peer is up", Duration::from_secs(20), || Ok(self.state(peer)? == "up")).map(drop)
    }
}

#[test]
fn an_address_in_use_is_kept_while_it_is_in_the_answer() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let world = World::new(&GOOD)?;
    // b has one of the two.
    world.lone.daemon.mgre(&["peer", "del", "b"])?;
    world.add("site", NAME)?;
    world.wait_up("site")?;
    let first = world.endpoint("site")?;
    let asked = world.dns.questions();
    // The order is another one with each answer, and answers hold for no time at all.
    wait::until("two more answers", Duration::from_secs(60), || {
        assert_eq!(world.endpoint("site")?, first);
        Ok(world.dns.questions() >= asked + 2)
    })?;
    // It is gone.
    let other = GOOD[usize::from(first == "10.0.0.2")];
    world.dns.say(NAME, &[DEAD, other]);
    let other = std::net::Ipv4Addr::from(other).to_string();
    wait::until("the other address", Duration::from_secs(60), || {
        Ok(world.endpoint("site")? == other && world.state("site")? == "up")
    })?;
    Ok(())
}

#[test]
fn an_address_to_which_there_is_no_way_is_given_up() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    // One after the other is first.
    let world = World::new(&[DEAD, [10, 0, 0, 98], [10, 0, 0, 97], GOOD[1]])?;
    world.add("site", NAME)?;
    wait::until("the address that answers", Duration::from_secs(40), || {
        Ok(world.endpoint("site")? == "10.0.0.3" && world.state("site")? == "up")
    })?;
    let asked = world.dns.questions();
    wait::until("another answer", Duration::from_secs(60), || Ok(world.dns.questions() > asked))?;
    assert_eq!(world.endpoint("site")?, "10.0.0.3");
    Ok(())
}

#[test]
fn an_address_that_is_never_heard_is_given_up() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let world = World::new(&GOOD)?;
    world.lone.daemon.mgre(&["peer", "del", "b"])?;
    world.add("site", NAME)?;
    world.wait_up("site")?;
    let first = world.endpoint("site")?;
    // As long as nothing is sent there, nothing need come.
    sleep(Duration::from_secs(12));
    assert_eq!(world.endpoint("site")?, first);
    let frame = packet::marked(packet::BROADCAST, [2, 0, 0, 0, 7, 7], "is anybody there");
    wait::until("another address", Duration::from_secs(40), || {
        capture::send(&world.lone.netns, "host0", &[&frame])?;
        Ok(world.endpoint("site")? != first)
    })?;
    world.wait_up("site")
}

#[test]
fn a_restart_needs_no_name_server() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut world = World::new(&[GOOD[1]])?;
    world.add("site", NAME)?;
    world.wait_up("site")?;
    let file = world.lone.daemon.path().join("state/default.names.json");
    wait::until("it is on the disk", wait::SOON, || Ok(file.exists()))?;
    world.dns.change(|book| book.silent = true);
    world.lone.daemon.kill()?;
    world.lone.daemon.start_again()?;
    assert_eq!((world.endpoint("site")?, world.state("site")?), ("10.0.0.3".into(), "up".into()));
    // Nor does an answer that there is no such name take anything away.
    world.dns.change(|book| {
        book.silent = false;
        book.names.clear();
    });
    let asked = world.dns.questions();
    wait::until("two more answers", Duration::from_secs(60), || Ok(world.dns.questions() >= asked + 2))?;
    assert_eq!((world.endpoint("site")?, world.state("site")?), ("10.0.0.3".into(), "up".into()));
    // What is not understood is as good as none.
    world.lone.daemon.stop()?;
    std::fs::write(&file, "{")?;
    world.lone.daemon.start_again()?;
    world.dns.say(NAME, &[GOOD[1]]);
    world.wait_up("site")?;
    world.lone.daemon.mgre(&["detach"])?;
    world.lone.daemon.wait()?;
    assert!(!file.exists());
    Ok(())
}

#[test]
fn a_name_server_that_says_nothing_stalls_nobody() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut world = World::new(&[])?;
    world.dns.change(|book| book.silent = true);
    let mut document = world.lone.daemon.mgre(&["export"])?;
    for number in 0..600 {
        document += &format!(
            "\n[[peer]]\nname = \"p{number}\"\nremote = \"host{number}.example\"\nsegments = [\"{SEGMENT}\"]\n"
        );
    }
    let file = world.lone.daemon.path().join("many.toml");
    std::fs::write(&file, document)?;
    world.lone.daemon.mgre(&["apply", &file.display().to_string()])?;
    wait::until("names are asked for", wait::SOON, || Ok(world.dns.questions() >= 10))?;
    let limit = wait::patient(Duration::from_secs(2));
    let quick = |what: &str, start: Instant| {
        assert!(start.elapsed() < limit, "{what} took {:?}", start.elapsed());
    };
    for round in 0..5 {
        let start = Instant::now();
        world.lone.daemon.mgre(&["fdb", "show"])?;
        quick("fdb show", start);
        let start = Instant::now();
        world.add(&format!("new{round}"), &format!("new{round}.example"))?;
        quick("peer add", start);
        sleep(Duration::from_secs(1));
    }
    assert_eq!(world.state("b")?, "up");
    let start = Instant::now();
    world.lone.daemon.stop()?;
    quick("the end", start);
    Ok(())
}

#[test]
fn a_peer_that_is_given_a_new_name_goes_on_until_that_resolves() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let world = World::new(&[GOOD[1]])?;
    let told = world.lone.daemon.outcome(&["peer", "set", "b", "--remote", "nobody.example"])?;
    assert_eq!(told.code, Some(0));
    let kept = "peer b goes on with 10.0.0.2 until nobody.example resolves";
    assert!(told.stderr.contains(kept), "{told:?}");
    let asked = world.dns.questions();
    wait::until("that there is no such name", wait::SOON, || Ok(world.dns.questions() > asked))?;
    sleep(Duration::from_millis(300));
    assert_eq!((world.endpoint("b")?, world.state("b")?), ("10.0.0.2".into(), "up".into()));
    world.lone.daemon.mgre(&["peer", "set", "b", "--remote", NAME])?;
    wait::until("the new address", wait::SOON, || Ok(world.endpoint("b")? == "10.0.0.3"))?;
    assert_eq!(world.state("b")?, "up");
    Ok(())
}

#[test]
fn a_peer_for_which_there_is_no_underlay_is_warned_of() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let world = World::new(&[])?;
    let told = world.lone.daemon.outcome(&["peer", "set", "b", "--remote", "2001:db8::2"])?;
    assert_eq!(told.code, Some(0));
    assert!(told.stderr.contains("peer b is down: no underlay has an IPv6 address"), "{told:?}");
    assert_eq!(world.state("b")?, "down");
    Ok(())
}

#[test]
fn of_two_peers_with_one_address_one_is_used_and_the_other_says_so() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let world = World::new(&[GOOD[1]])?;
    world.dns.say("other.example", &[GOOD[1]]);
    world.add("first", NAME)?;
    world.add("second", "other.example")?;
    wait::until("the second one is told", wait::SOON, || Ok(world.state("second")? == "down"))?;
    let why = "10.0.0.3 is peer first, in the same segment: delete one of the two";
    assert_eq!(world.lone.peer("second")?["reason"], why);
    assert_eq!(world.state("first")?, "up");
    // What is flooded goes there once.
    let sent = |peer: &str| -> Result<u64> { Ok(world.lone.peer(peer)?["tx_packets"].as_u64().unwrap_or(0)) };
    let before = [sent("b")?, sent("first")?, sent("second")?];
    let frame = packet::marked(packet::BROADCAST, [2, 0, 0, 0, 7, 7], "to all");
    capture::send(&world.lone.netns, "host0", &[&frame])?;
    wait::until("it is flooded", wait::SOON, || Ok(sent("b")? > before[0]))?;
    assert_eq!([sent("b")?, sent("first")?, sent("second")?], [before[0] + 1, before[1] + 1, before[2]]);
    // It takes its place.
    world.lone.daemon.mgre(&["peer", "del", "first"])?;
    world.wait_up("second")
}
