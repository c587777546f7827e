//! The `mgre` command against a daemon.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::engine::Daemon;

/// What a command printed and how it ended.
#[derive(Debug, PartialEq)]
struct Outcome {
    code: Option<i32>,
    out: String,
    error: String,
}

fn command(daemon: &Daemon, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgre"));
    command.args(line.split(' ')).env("MGRE_INSTANCE", "t").env("MGRE_RUN_DIR", daemon.directory.path());
    command.kill_on_drop(true);
    command
}

async fn mgre(daemon: &Daemon, line: &str) -> Outcome {
    let output = command(daemon, line).output().await.expect("runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Outcome { code: output.status.code(), out: text(output.stdout), error: text(output.stderr) }
}

/// A command that works and prints nothing but this engine's warning.
async fn quiet(daemon: &Daemon, line: &str) {
    let outcome = mgre(daemon, line).await;
    assert_eq!(
        outcome,
        Outcome { code: Some(0), out: String::new(), error: "mgre: warning: a warning\n".into() },
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session() {
    let (daemon, _) = Daemon::start().await;
    assert_eq!(
        mgre(&daemon, "segment show").await.out,
        "SEGMENT  KEY  MTU  AGING  MAX-MACS  HUB  CLAMP-MSS  PEERS  PORTS  FDB  OPTIONS\n"
    );
    quiet(&daemon, "segment add lan --key 7").await;
    quiet(&daemon, "underlay add eth0 --local 192.0.2.1").await;
    quiet(&daemon, "port create lan host0 --address 10.0.0.1/24").await;
    quiet(&daemon, "peer add b 192.0.2.2 --segment lan --ttl 9").await;
    quiet(&daemon, "peer set b --df unset").await;
    quiet(&daemon, "fdb add lan 02:00:00:00:00:01 --peer b").await;
    assert_eq!(
        mgre(&daemon, "segment show").await.out,
        "SEGMENT  KEY  MTU  AGING  MAX-MACS  HUB  CLAMP-MSS  PEERS  PORTS  FDB  OPTIONS\n\
         lan      7    -    300    8192      no   no         0      0      0    -\n"
    );
    let json: Value = serde_json::from_str(&mgre(&daemon, "-j segment show").await.out).expect("JSON");
    assert_eq!(json[0]["name"], "lan");

    let exported = mgre(&daemon, "export").await.out;
    assert!(
        exported.contains(
            "[[peer]]\nname = \"b\"\nremote = \"192.0.2.2\"\nsegments = [\"lan\"]\nttl = 9\ndf = \"unset\"\n"
        ),
        "{exported}"
    );
    let file = daemon.directory.path().join("c.toml");
    std::fs::write(&file, exported.replace("ttl = 9", "ttl = 8")).expect("writes");
    let dry = mgre(&daemon, &format!("apply {} --dry-run", file.display())).await;
    assert_eq!((dry.code, dry.out.as_str()), (Some(0), "peer b changed\n"));
    let applied = mgre(&daemon, &format!("apply {}", file.display())).await;
    assert_eq!((applied.code, applied.out.as_str()), (Some(0), "peer b changed\n"));
    std::fs::remove_file(&file).expect("removes");
    assert!(mgre(&daemon, "export").await.out.contains("ttl = 8"));

    let flushed = mgre(&daemon, "fdb flush -j").await;
    assert_eq!(serde_json::from_str::<Value>(&flushed.out).expect("JSON"), json!({"removed": 3}));
    assert_eq!(
        mgre(&daemon, "detach").await,
        Outcome { code: Some(0), out: String::new(), error: String::new() }
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_one_line() {
    let (daemon, _) = Daemon::start().await;
    let cases = [
        ("peer del x", 1, "mgre: there is no peer \"x\" (there is no peer yet)\n"),
        ("-i other status", 1, "mgre: the daemon of instance \"other\" is not running (no socket at "),
        ("apply /nonexistent", 1, "mgre: cannot read /nonexistent: No such file or directory"),
        ("peer frobnicate", 2, "error: unrecognized subcommand"),
    ];
    for (line, code, start) in cases {
        let outcome = mgre(&daemon, line).await;
        assert_eq!(outcome.code, Some(code), "{line}");
        assert!(outcome.error.starts_with(start) && outcome.out.is_empty(), "{line}: {outcome:?}");
        assert!(code == 2 || outcome.error.lines().count() == 1, "{line}: {outcome:?}");
    }
    let mut apply =
        command(&daemon, "apply -").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    let mut input = apply.stdin.take().expect("piped");
    input.write_all(b"[[segment]]\nname = 5\n").await.expect("writes");
    drop(input);
    let output = apply.wait_with_output().await.expect("ends");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "mgre: -: line 2: invalid type: integer `5`, expected a string\n"
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_may_leave() {
    let (daemon, _) = Daemon::start().await;
    let mut monitor =
        command(&daemon, "monitor").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    let mut lines = BufReader::new(monitor.stdout.take().expect("piped")).lines();
    let change_again = async {
        loop {
            mgre(&daemon, "segment add lan").await;
            mgre(&daemon, "segment del lan").await;
        }
    };
    let first = tokio::select! {
        line = lines.next_line() => line.expect("reads").expect("a line"),
        () = change_again => panic!("never ends"),
    };
    assert!(
        first.ends_with("config segment lan added") || first.ends_with("config segment lan removed"),
        "{first}"
    );
    drop(lines);
    let ended = async {
        let change_again = async {
            loop {
                mgre(&daemon, "segment add lan").await;
                mgre(&daemon, "segment del lan").await;
            }
        };
        tokio::select! {
            output = monitor.wait_with_output() => output.expect("ends"),
            () = change_again => panic!("never ends"),
        }
    };
    let output =
        tokio::time::timeout(std::time::Duration::from_secs(10), ended).await.expect("ends by itself");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &[][..]));
    daemon.stop().await;
}
