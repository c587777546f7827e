//! The command line against a daemon: what it refuses, and what it applies.

use std::fs;

use anyhow::Result;
use mgre_tests::{
    daemon::Outcome,
    skip::{skipped, tc_of_kernel},
    topology::{Layout, SEGMENT, Spokes, Underlay},
    traffic,
};

/// A command that cannot be, and words of the one line that says why.
type Refusal = (&'static [&'static str], &'static [&'static str]);

const REFUSED: &[Refusal] = &[
    // Interfaces.
    (&["underlay", "add", "wan9", "--local", "10.0.0.1"], &["no interface", "wan9"]),
    (&["underlay", "add", "spare", "--local", "10.0.0.77"], &["10.0.0.77", "not an address"]),
    (&["underlay", "add", "spare", "--local", "224.0.0.1"], &["224.0.0.1", "multicast"]),
    (&["underlay", "add", "wan0", "--local", "10.0.0.1"], &["wan0", "exists already"]),
    (&["underlay", "add", "lan0", "--local", "10.0.0.1"], &["lan0", "port"]),
    (&["underlay", "add", "lo", "--local", "10.0.0.1"], &["lo", "not an Ethernet interface"]),
    (&["underlay", "del", "lan0"], &["no underlay", "lan0"]),
    (&["underlay", "del", "wan0"], &["spoke2", "wan0", "--force"]),
    (&["underlay", "del", "wan0", "--local", "10.0.0.1"], &["spoke2", "10.0.0.1", "--force"]),
    (&["port", "add", SEGMENT, "lan9"], &["no interface", "lan9"]),
    (&["port", "add", SEGMENT, "lan0"], &["lan0", "already a port"]),
    (&["port", "add", SEGMENT, "wan0"], &["wan0", "underlay"]),
    (&["port", "add", "nowhere", "spare"], &["no segment", "nowhere"]),
    (&["port", "add", SEGMENT, "enslaved"], &["enslaved", "br9"]),
    (&["port", "create", SEGMENT, "spare"], &["spare", "already"]),
    (&["port", "create", SEGMENT, "a-name-that-is-too-long"], &["15"]),
    (&["port", "del", "lan9"], &["no port", "lan9"]),
    // Segments.
    (&["segment", "add", SEGMENT, "--key", "9"], &[SEGMENT, "exists already"]),
    (&["segment", "add", "other", "--key", "7"], &["key 7", SEGMENT]),
    (&["segment", "add", "a b", "--key", "9"], &["a b", "name"]),
    (&["segment", "add", "other", "--aging", "0"], &["ageing time", "out of range"]),
    (&["segment", "add", "other", "--mtu", "10"], &["MTU", "out of range"]),
    (&["segment", "set", "nowhere", "--key", "9"], &["no segment", "nowhere"]),
    (&["segment", "del", SEGMENT], &[SEGMENT, "remove them first"]),
    // Peers.
    (&["peer", "add", "spoke2", "10.0.0.9", "--segment", SEGMENT], &["spoke2", "exists already"]),
    (&["peer", "add", "self", "10.0.0.1", "--segment", SEGMENT], &["10.0.0.1"]),
    (&["peer", "add", "twin", "10.0.0.2", "--segment", SEGMENT], &["10.0.0.2", "spoke2"]),
    (&["peer", "add", "other", "10.0.0.9", "--segment", "nowhere"], &["no segment", "nowhere"]),
    (&["peer", "add", "other", "10.0.0.256", "--segment", SEGMENT], &["10.0.0.256"]),
    (&["peer", "add", "other", "0.0.0.0", "--segment", SEGMENT], &["0.0.0.0", "unspecified"]),
    (&["peer", "set", "nobody", "--ttl", "3"], &["no peer", "nobody"]),
    (&["peer", "del", "nobody"], &["no peer", "nobody", "spoke2"]),
    // FDB.
    (
        &["fdb", "add", SEGMENT, "01:00:5e:00:00:01", "--peer", "spoke2"],
        &["01:00:5e:00:00:01", "group address"],
    ),
    (&["fdb", "add", SEGMENT, "02:00:00:00:00:77", "--peer", "nobody"], &["no peer", "nobody"]),
    (&["fdb", "add", SEGMENT, "02:00:00:00:00:77", "--port", "spare"], &["spare"]),
    (&["fdb", "del", SEGMENT, "02:00:00:00:00:77"], &["02:00:00:00:00:77"]),
    (&["fdb", "show", "--segment", "nowhere"], &["no segment", "nowhere"]),
    (&["fdb", "flush", "--peer", "nobody"], &["no peer", "nobody"]),
    // Documents.
    (&["apply", "/does/not/exist"], &["/does/not/exist"]),
];

/// Commands that say nothing that could be.
const NONSENSE: &[&[&str]] = &[
    &[],
    &["frobnicate"],
    &["segment", "add"],
    &["segment", "add", "other", "--key", "4294967296"],
    &["segment", "add", "other", "--key", "-1"],
    &["segment", "add", "other", "--key", "seven"],
    &["peer", "add", "other", "10.0.0.9"],
    &["peer", "add", "other", "10.0.0.9", "--segment", SEGMENT, "--ttl", "0"],
    &["peer", "add", "other", "10.0.0.9", "--segment", SEGMENT, "--ttl", "256"],
    &["peer", "add", "other", "10.0.0.9", "--segment", SEGMENT, "--tos", "3"],
    &["fdb", "add", SEGMENT, "02:00:00:00:00:77"],
    &["fdb", "add", SEGMENT, "02:00:00:00:77", "--peer", "spoke2"],
    &["underlay", "add", "wan0"],
    &["underlay", "add", "wan0", "--local", "here"],
];

/// Two spokes, and interfaces beside that nothing uses.
fn spokes() -> Result<Spokes> {
    let spokes = Spokes::new(2, Underlay::Switched)?;
    spokes
        .spoke(1)
        .netns
        .ip("link add spare type veth peer name spare2\nlink add enslaved type veth peer name enslaved2\n\
         link add br9 type bridge\nlink set enslaved master br9")?;
    Ok(spokes)
}

#[test]
fn what_cannot_be_is_refused_in_one_line_and_changes_nothing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = spokes()?;
    let one = spokes.spoke(1);
    let links = || one.netns.run(&["ip", "-oneline", "link", "show"]);
    let (before, links_before) = (one.daemon.mgre(&["export"])?, links()?);
    let mut wrong = Vec::new();
    for (arguments, words) in REFUSED {
        let outcome = one.daemon.outcome(arguments)?;
        let Outcome { code, stdout, stderr } = &outcome;
        let one_line = stderr.lines().count() == 1 && stderr.ends_with('\n');
        let says = words.iter().all(|word| stderr.contains(word));
        if *code != Some(1) || !stdout.is_empty() || !one_line || !says {
            wrong.push(format!("mgre {}: {outcome:?}, not with {words:?}", arguments.join(" ")));
        }
        let after = one.daemon.mgre(&["export"])?;
        assert_eq!(after, before, "mgre {} changes something", arguments.join(" "));
    }
    for arguments in NONSENSE {
        let outcome = one.daemon.outcome(arguments)?;
        if outcome.code != Some(2) || outcome.stderr.is_empty() {
            wrong.push(format!("mgre {}: {outcome:?}, not code 2", arguments.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(one.daemon.mgre(&["export"])?, before);
    assert_eq!(links()?, links_before);
    assert!(traffic::reaches(&one.host, &spokes.spoke(2).host_ip())?);
    Ok(())
}

#[test]
fn without_a_daemon_commands_say_so() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut spokes = Layout { configure: false, ..Layout::new(1, Underlay::Switched) }.build()?;
    let daemon = &mut spokes.spoke_mut(1).daemon;
    daemon.stop()?;
    for arguments in [&["status"][..], &["peer", "show"], &["segment", "add", "x"]] {
        let outcome = daemon.outcome(arguments)?;
        assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
        assert!(
            outcome.stderr.contains("not running") && outcome.stderr.contains("mgre daemon"),
            "{outcome:?}"
        );
    }
    Ok(())
}

#[test]
fn documents_go_round() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = spokes()?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("mgre.toml");
    let path = file.to_string_lossy().into_owned();
    one.daemon.mgre(&["fdb", "add", SEGMENT, "02:00:00:00:aa:05", "--peer", "spoke2"])?;
    one.daemon.mgre(&["segment", "set", SEGMENT, "--aging", "120"])?;
    let first = one.daemon.mgre(&["export"])?;
    fs::write(&file, &first)?;
    // What is there already changes nothing.
    one.daemon.mgre(&["apply", &path])?;
    assert_eq!(one.daemon.mgre(&["export"])?, first);

    let second = format!(
        "{first}\n[[port]]\ninterface = \"spare\"\nsegment = \"{SEGMENT}\"\n\n\
         [[peer]]\nname = \"far\"\nremote = \"10.0.0.9\"\nsegments = [\"{SEGMENT}\"]\nttl = 9\n"
    );
    fs::write(&file, &second)?;
    let said = one.daemon.mgre(&["apply", &path, "--dry-run"])?;
    assert!(said.contains("far") && said.contains("spare"), "{said}");
    assert_eq!(one.daemon.mgre(&["export"])?, first, "a dry run changes nothing");
    one.daemon.mgre(&["apply", &path])?;
    let exported = one.daemon.mgre(&["export"])?;
    assert!(exported.contains("spare") && exported.contains("ttl = 9"), "{exported}");
    assert!(traffic::reaches(&one.host, &two.host_ip())?);

    // One thing in it that cannot be, and nothing of it is done.
    fs::write(
        &file,
        format!("{first}\n[[peer]]\nname = \"x\"\nremote = \"10.0.0.2\"\nsegments = [\"{SEGMENT}\"]\n"),
    )?;
    for arguments in [&["apply", &path][..], &["apply", "--dry-run", &path]] {
        let outcome = one.daemon.outcome(arguments)?;
        assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    }
    assert_eq!(one.daemon.mgre(&["export"])?, exported);

    fs::write(&file, &first)?;
    one.daemon.mgre(&["apply", &path])?;
    assert_eq!(one.daemon.mgre(&["export"])?, first, "what is no longer in it is removed");
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    Ok(())
}

#[test]
fn status_and_tables_say_what_is_there() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let spokes = spokes()?;
    let one = spokes.spoke(1);
    assert!(traffic::reaches(&one.host, &spokes.spoke(2).host_ip())?);
    let status = one.daemon.json(&["status"])?;
    assert_eq!((&status["segments"], &status["peers"], &status["ports"]), (&1.into(), &1.into(), &1.into()));
    let underlay = &status["underlays"][0];
    assert_eq!((&underlay["interface"], &underlay["hook"]), (&"wan0".into(), &tc_of_kernel().name().into()));
    assert_eq!((&underlay["local"], &underlay["mode"]), (&"10.0.0.1".into(), &"auto".into()));
    assert!(underlay["reason"].is_string(), "{underlay}");
    let peer = one.peer("spoke2")?;
    for key in
        ["name", "remote", "segments", "state", "rx_packets", "rx_bytes", "tx_packets", "tx_bytes", "drops"]
    {
        assert!(!peer[key].is_null(), "no {key} in {peer}");
    }
    assert!(peer["last_seen_seconds"].as_u64() <= Some(3), "{peer}");
    assert_eq!(peer["mtu"], 1458);
    assert!(peer["rx_packets"].as_u64() >= Some(2) && peer["tx_packets"].as_u64() >= Some(2), "{peer}");
    for noun in ["underlay", "segment", "port", "peer", "fdb"] {
        let table = one.daemon.mgre(&[noun, "show"])?;
        let mut lines = table.lines();
        let heading = lines.next().unwrap_or_default();
        assert_eq!(heading, heading.to_uppercase(), "{table}");
        assert!(lines.count() > 0, "{table}");
        assert!(one.daemon.list(&[noun, "show"])?.iter().all(serde_json::Value::is_object));
        // The option may stand after the noun too.
        let json: serde_json::Value = serde_json::from_str(&one.daemon.mgre(&[noun, "show", "-j"])?)?;
        assert!(json.is_array());
    }
    Ok(())
}
