//! The grammar, and what it comes to.

use std::path::PathBuf;

use clap::CommandFactory;
use hyper::Method;
use serde_json::{Value, json};

use super::args::Args;
use super::settings::{Command, Settings};
use crate::api::messages::{FdbFilter, NeighborFilter};
use crate::daemon::TcAttach;

fn parse(line: &str) -> Result<Settings, clap::Error> {
    Args::read(std::iter::once("mgre").chain(line.split(' '))).map(Settings::from)
}

fn client(line: &str) -> (String, PathBuf, bool, Command) {
    match parse(line).unwrap_or_else(|error| panic!("{line}: {error}")) {
        Settings::Client { instance, run_dir, json, command } => (instance, run_dir, json, command),
        Settings::Daemon(_) => panic!("{line} is the daemon"),
    }
}

fn change(line: &str) -> (Method, String, Value) {
    match client(line).3 {
        Command::Change { method, path, body } => (method, path, body),
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_grammar_is_sound() {
    Args::command().debug_assert();
}

#[test]
fn global_options_stand_anywhere() {
    for line in [
        "-i x --run-dir /r -j peer show",
        "peer -i x --run-dir /r -j show",
        "peer show -i x --run-dir /r -j",
        "--instance=x peer --json show --run-dir /r",
    ] {
        assert_eq!(client(line), ("x".into(), "/r".into(), true, Command::Peers), "{line}");
    }
}

#[test]
fn verbs_become_requests() {
    let cases = [
        (
            "underlay add eth0 --local 192.0.2.1",
            Method::PUT,
            "/v1/underlays/eth0",
            json!({"local": "192.0.2.1"}),
        ),
        (
            "underlay add eth0 --local 192.0.2.1 --mode generic",
            Method::PUT,
            "/v1/underlays/eth0",
            json!({"local": "192.0.2.1", "mode": "generic"}),
        ),
        (
            "underlay add eth0 --local 192.0.2.1 --local 2001:db8::1",
            Method::PUT,
            "/v1/underlays/eth0",
            json!({"local": ["192.0.2.1", "2001:db8::1"]}),
        ),
        ("underlay del eth0", Method::DELETE, "/v1/underlays/eth0", json!({})),
        (
            "underlay del eth0 --local 2001:db8::1",
            Method::DELETE,
            "/v1/underlays/eth0?local=2001%3Adb8%3A%3A1",
            json!({}),
        ),
        ("underlay del eth0 --force", Method::DELETE, "/v1/underlays/eth0?force=true", json!({})),
        (
            "underlay del eth0 --local 192.0.2.1 --force",
            Method::DELETE,
            "/v1/underlays/eth0?local=192.0.2.1&force=true",
            json!({}),
        ),
        ("segment add lan", Method::PUT, "/v1/segments/lan", json!({})),
        (
            "segment add lan --key 0x10 --mtu 1400 --aging 60 --max-macs 9 --hub",
            Method::PUT,
            "/v1/segments/lan",
            json!({"key": 16, "mtu": 1400, "aging_seconds": 60, "max_macs": 9, "hub": true}),
        ),
        (
            "segment add virtual --vsid 0x1388 --clamp-mss",
            Method::PUT,
            "/v1/segments/virtual",
            json!({"vsid": 5000, "clamp_mss": true}),
        ),
        ("segment set lan --vsid 5000", Method::PATCH, "/v1/segments/lan", json!({"vsid": 5000})),
        ("segment set lan --clamp-mss=false", Method::PATCH, "/v1/segments/lan", json!({"clamp_mss": false})),
        (
            "segment add lan --suppress-neighbors --key 7",
            Method::PUT,
            "/v1/segments/lan",
            json!({"key": 7, "suppress_neighbors": true}),
        ),
        (
            "segment set lan --suppress-neighbors off",
            Method::PATCH,
            "/v1/segments/lan",
            json!({"suppress_neighbors": false}),
        ),
        (
            "segment set lan --suppress-neighbors=on",
            Method::PATCH,
            "/v1/segments/lan",
            json!({"suppress_neighbors": true}),
        ),
        ("segment set lan --key none", Method::PATCH, "/v1/segments/lan", json!({"key": null})),
        ("segment set lan --hub=false", Method::PATCH, "/v1/segments/lan", json!({"hub": false})),
        ("segment set lan --mtu auto", Method::PATCH, "/v1/segments/lan", json!({"mtu": "auto"})),
        ("segment del lan", Method::DELETE, "/v1/segments/lan", json!({})),
        (
            "port add lan veth0 --mode tc",
            Method::PUT,
            "/v1/ports/veth0",
            json!({"segment": "lan", "mode": "tc"}),
        ),
        (
            "port add lan eth1 --vlan 10",
            Method::PUT,
            "/v1/ports/eth1",
            json!({"segment": "lan", "mode": "auto", "vlan": 10}),
        ),
        ("port del eth1.10", Method::DELETE, "/v1/ports/eth1.10", json!({})),
        (
            "port create lan host0 --address 10.0.0.1/24 --address fd00::1/64 --mac 2:0:0:0:0:1",
            Method::PUT,
            "/v1/ports/host0",
            json!({"segment": "lan", "create": true, "addresses": ["10.0.0.1/24", "fd00::1/64"], "mac": "02:00:00:00:00:01"}),
        ),
        ("port del a?b", Method::DELETE, "/v1/ports/a%3Fb", json!({})),
        (
            "peer add b 192.0.2.2 --segment lan",
            Method::PUT,
            "/v1/peers/b",
            json!({"remote": "192.0.2.2", "segments": ["lan"]}),
        ),
        (
            "peer add b 192.0.2.2 --segment lan dmz --segment x --ttl 3",
            Method::PUT,
            "/v1/peers/b",
            json!({"remote": "192.0.2.2", "segments": ["lan", "dmz", "x"], "ttl": 3}),
        ),
        (
            "peer set b --tos 0xb8 --df unset --mtu 1300 --max-macs 5",
            Method::PATCH,
            "/v1/peers/b",
            json!({"tos": 184, "df": "unset", "mtu": 1300, "max_macs": 5}),
        ),
        (
            "peer add b 2001:db8::2 --segment lan --csum --seq --tos inherit --df inherit --encap gre-udp",
            Method::PUT,
            "/v1/peers/b",
            json!({"remote": "2001:db8::2", "segments": ["lan"], "csum": true, "seq": true, "tos": "inherit",
                   "df": "inherit", "encap": "gre-udp"}),
        ),
        (
            "peer set b --csum=false --seq=false --encap gre --tos 0",
            Method::PATCH,
            "/v1/peers/b",
            json!({"csum": false, "seq": false, "encap": "gre", "tos": 0}),
        ),
        (
            "peer set b --remote hub.example --segment a",
            Method::PATCH,
            "/v1/peers/b",
            json!({"remote": "hub.example", "segments": ["a"]}),
        ),
        ("peer del b", Method::DELETE, "/v1/peers/b", json!({})),
        (
            "fdb add lan 02:00:00:00:00:01 --peer b",
            Method::PUT,
            "/v1/fdb/lan/02%3A00%3A00%3A00%3A00%3A01",
            json!({"peer": "b", "port": null}),
        ),
        (
            "fdb del lan 02:00:00:00:00:01",
            Method::DELETE,
            "/v1/fdb/lan/02%3A00%3A00%3A00%3A00%3A01",
            json!({}),
        ),
    ];
    for (line, method, path, body) in cases {
        assert_eq!(change(line), (method, path.to_owned(), body), "{line}");
    }
}

#[test]
fn the_other_commands() {
    let filter = FdbFilter { segment: Some("lan".into()), peer: Some("b".into()) };
    let cases = [
        ("underlay show", Command::Underlays),
        ("segment show", Command::Segments),
        ("port show", Command::Ports),
        ("fdb show", Command::Fdb(FdbFilter::default())),
        ("fdb show --segment lan --peer b", Command::Fdb(filter.clone())),
        ("neigh show", Command::Neighbors(NeighborFilter::default())),
        ("neigh show --segment lan", Command::Neighbors(NeighborFilter { segment: Some("lan".into()) })),
        ("fdb flush --peer b --segment lan", Command::Flush(filter)),
        ("stats", Command::Stats { drops: false }),
        ("stats --drops", Command::Stats { drops: true }),
        ("status", Command::Status),
        ("monitor", Command::Monitor),
        ("detach", Command::Detach { state_dir: None, bpffs: None }),
        ("export", Command::Export),
        ("apply - --dry-run", Command::Apply { file: "-".into(), dry_run: true, allow_empty: false }),
        ("apply x --allow-empty", Command::Apply { file: "x".into(), dry_run: false, allow_empty: true }),
    ];
    for (line, command) in cases {
        assert_eq!(client(line).3, command, "{line}");
    }
}

#[test]
fn options_of_the_daemon() {
    let daemon = |line| match parse(line).expect("parses") {
        Settings::Daemon(options) => options,
        Settings::Client { .. } => panic!("not the daemon"),
    };
    let options = daemon(
        "-i hub daemon --metrics off --config f --state-dir s --bpffs b --fdb-entries 100 --adjacencies 7",
    );
    assert_eq!((options.instance.as_str(), options.metrics, options.config), ("hub", None, Some("f".into())));
    assert_eq!((options.state_dir, options.bpffs), ("s".into(), "b".into()));
    assert_eq!((options.fdb_entries, options.adjacencies), (100, 7));
    assert_eq!(daemon("daemon --fdb-entries 1048576").fdb_entries, 1_048_576);
    assert_eq!(daemon("daemon --tc-attach clsact").tc_attach, TcAttach::Clsact);
    let options = daemon("daemon");
    assert_eq!(options.tc_attach, TcAttach::Auto);
    assert_eq!(options.metrics, Some(([127, 0, 0, 1], 9747).into()));
    assert_eq!((options.fdb_entries, options.adjacencies), (131_072, 16_384));
}

#[test]
fn names_may_stand_behind_the_segments() {
    let added = change("peer add b 192.0.2.2 --segment lan other");
    assert_eq!(added.1, "/v1/peers/b");
    assert_eq!(added.2, json!({"remote": "192.0.2.2", "segments": ["lan", "other"]}));
    for line in [
        "peer add --segment lan other b 192.0.2.2",
        "peer add b --segment lan other 192.0.2.2",
        "peer add --segment lan --segment other b 192.0.2.2",
    ] {
        assert_eq!(change(line), added, "{line}");
    }
    assert_eq!(change("peer add --segment lan b hub").2, json!({"remote": "hub", "segments": ["lan"]}));
    assert_eq!(change("peer set --segment lan other b"), change("peer set b --segment lan other"));
}

#[test]
fn bad_usage_is_refused() {
    for line in [
        "peer",
        "peer add b",
        "peer add --segment lan",
        "peer add --segment lan b",
        "peer add b --segment lan",
        "peer add b --segment lan other",
        "peer add b --segment 192.0.2.2",
        "peer set --segment lan",
        "peer del ",
        "segment add ",
        "port add lan ",
        "underlay del ",
        "peer add b 192.0.2.2",
        "peer set b",
        "segment set lan",
        "segment add lan --key none",
        "segment add lan --key 4294967296",
        "peer add b 192.0.2.2 --segment lan --tos 3",
        "peer add b 192.0.2.2 --segment lan --tos inherited",
        "peer add b 192.0.2.2 --segment lan --df maybe",
        "peer add b 192.0.2.2 --segment lan --encap udp",
        "peer add b 192.0.2.2 --segment lan --csum=often",
        "segment add lan --vsid 4095",
        "segment add lan --vsid 0xffffff",
        "segment add lan --vsid 5000 --key 7",
        "segment set lan --vsid 5000 --key none",
        "port add lan eth1 --vlan 0",
        "port add lan eth1 --vlan 4095",
        "peer add b 192.0.2.2 --segment lan --ttl 0",
        "fdb add lan 02:00:00:00:00:01",
        "fdb add lan 02:00:00:00:00:01 --peer a --port b",
        "fdb add lan xx --peer a",
        "underlay add eth0",
        "underlay add eth0 --local x",
        "port create lan h --address 10.0.0.1",
        "-i ../x status",
        "daemon --metrics 9747",
        "daemon --adjacencies 0",
        "daemon --fdb-entries 1048577",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn what_a_verb_lacks_is_told_with_its_own_usage() {
    for (line, usage) in [
        ("peer add b --segment lan", "mgre peer add [OPTIONS] <NAME> <REMOTE>"),
        ("peer set --ttl 9", "mgre peer set [OPTIONS] <NAME>"),
    ] {
        let text = parse(line).expect_err(line).to_string();
        assert!(text.contains("missing") && text.contains(usage), "{text}");
    }
}
