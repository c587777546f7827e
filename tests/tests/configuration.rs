//! The daemon's configuration: interfaces that come after it, SIGHUP, and documents with nothing in them.

use std::{fs, io::Write as _, path::Path, process::Stdio, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use mgre_tests::{
    daemon::{Daemon, Options},
    http,
    lone::Lone,
    skip::skipped,
    topology::{Layout, SEGMENT, Spokes, Underlay},
    traffic, wait,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const CONFIG: &str = "[[underlay]]\ninterface = \"wan0\"\nlocal = \"10.0.0.1\"\n\n\
                      [[segment]]\nname = \"lan\"\nkey = 7\n\n\
                      [[port]]\ninterface = \"lan0\"\nsegment = \"lan\"\n\n\
                      [[peer]]\nname = \"spoke2\"\nremote = \"10.0.0.2\"\nsegments = [\"lan\"]\n";

fn hang_up(daemon: &Daemon) -> Result<()> {
    let pid = daemon.pid().context("it runs")?;
    Ok(kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGHUP)?)
}

/// Replaces a spoke's daemon by one with a configuration and nothing saved.
fn with_config(spokes: &mut Spokes, config: &Path) -> Result<()> {
    let spoke = spokes.spoke_mut(1);
    spoke.daemon.mgre(&["detach"])?;
    spoke.daemon.wait()?;
    let options = Options { config: Some(config.to_owned()), ..Options::default() };
    spoke.daemon = Daemon::start(&spoke.netns, options)?;
    Ok(())
}

#[test]
fn a_configuration_waits_for_interfaces_and_addresses() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("mgre.toml");
    fs::write(&config, CONFIG)?;
    let mut spokes = Spokes::new(2, Underlay::Switched)?;
    let one = spokes.spoke(1);
    one.netns.ip("link set lan0 name later\nlink set wan0 name last\naddr flush dev last")?;
    with_config(&mut spokes, &config)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    let log = one.daemon.log();
    for word in ["no interface named wan0", "no interface named lan0", "10.0.0.1 is not an address"] {
        assert!(log.contains(word), "{log}");
    }
    assert_eq!(one.daemon.list(&["port", "show"])?[0]["state"], "missing");
    // By the command line it is a mistake all the same.
    let outcome = one.daemon.outcome(&["port", "add", SEGMENT, "nowhere"])?;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    one.netns.ip("link set last name wan0\naddr add 10.0.0.1/24 dev wan0\nlink set later name lan0")?;
    one.wait_up()?;
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON).map(drop)
}

#[test]
fn a_hangup_reads_the_configuration_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("mgre.toml");
    fs::write(&config, CONFIG)?;
    let mut spokes = Spokes::new(2, Underlay::Switched)?;
    with_config(&mut spokes, &config)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    one.wait_up()?;
    let peers = || Ok::<_, anyhow::Error>(one.daemon.list(&["peer", "show"])?.len());
    fs::write(
        &config,
        format!("{CONFIG}\n[[peer]]\nname = \"b\"\nremote = \"10.0.0.3\"\nsegments = [\"lan\"]\n"),
    )?;
    hang_up(&one.daemon)?;
    wait::until("the new peer is there", wait::SOON, || Ok(peers()? == 2))?;
    // What cannot be changes nothing, and the daemon goes on.
    for (wrong, said) in
        [("[[peer", "line 1"), ("# nothing\n", "empty"), ("[[peer]]\nname = \"x\"\n", "remote")]
    {
        fs::write(&config, wrong)?;
        hang_up(&one.daemon)?;
        wait::until(said, wait::SOON, || {
            let log = one.daemon.log();
            Ok(log.lines().any(|line| line.contains("nothing was changed") && line.contains(said)))
        })?;
        assert_eq!(peers()?, 2);
    }
    fs::remove_file(&config)?;
    hang_up(&one.daemon)?;
    fs::write(&config, CONFIG)?;
    sleep(wait::quiet(Duration::from_millis(200)));
    hang_up(&one.daemon)?;
    wait::until("the peer is gone again", wait::SOON, || Ok(peers()? == 1))?;
    assert!(traffic::reaches(&one.host, &two.host_ip())?);
    // One without a configuration has nothing to read.
    hang_up(&two.daemon)?;
    wait::until("it says so", wait::SOON, || Ok(two.daemon.log().contains("SIGHUP: no configuration")))?;
    assert!(traffic::reaches(&two.host, &one.host_ip())?);
    Ok(())
}

#[test]
fn an_empty_configuration_at_the_start_leaves_what_is_saved() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("mgre.toml");
    fs::write(&config, "")?;
    let options = Options { config: Some(config.clone()), ..Options::default() };
    let (mut lone, ()) = Lone::prepared(options, |_| Ok(()))?;
    // Where there is nothing, an empty document takes nothing away.
    lone.daemon.mgre(&["apply", &config.to_string_lossy()])?;
    lone.set_up()?;
    let before = lone.daemon.mgre(&["export"])?;
    assert!(before.contains("wan0"), "{before}");
    lone.daemon.stop()?;
    lone.daemon.start_again()?;
    assert_eq!(lone.daemon.mgre(&["export"])?, before);
    assert!(lone.daemon.log().contains("what is saved stays in force"), "{}", lone.daemon.log());
    Ok(())
}

#[test]
fn nothing_is_no_configuration() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let layout = Layout::new(1, Underlay::Switched);
    let spokes = layout.build()?;
    let daemon = &spokes.spoke(1).daemon;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("mgre.toml");
    let before = daemon.mgre(&["export"])?;
    assert!(before.contains("wan0"));
    for text in ["", "\n", "# all of it is a remark\n"] {
        fs::write(&file, text)?;
        let refused = daemon.outcome(&["apply", &file.to_string_lossy()])?;
        assert_eq!((refused.code, refused.stderr.lines().count()), (Some(1), 1), "{refused:?}");
        assert!(refused.stderr.contains("--allow-empty"), "{refused:?}");
        let mut piped =
            daemon.command(&["apply", "-"])?.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        piped.stdin.take().context("no standard input")?.write_all(text.as_bytes())?;
        assert_eq!(piped.wait_with_output()?.status.code(), Some(1));
    }
    for body in ["", " ", "{}"] {
        let answer = http::request(&daemon.socket(), "POST", "/v1/apply", body)?;
        assert!((400..500).contains(&answer.status), "{body:?}: {answer:?}");
    }
    assert_eq!(daemon.mgre(&["export"])?, before, "something was removed");
    // A dry run says what it would remove, and that it would not.
    let dry = daemon.outcome(&["apply", "--dry-run", &file.to_string_lossy()])?;
    assert!(dry.code == Some(0) && dry.stdout.contains("underlay wan0 removed"), "{dry:?}");
    assert!(dry.stderr.contains("--allow-empty"), "{dry:?}");
    daemon.mgre(&["apply", "--allow-empty", &file.to_string_lossy()])?;
    assert_eq!(daemon.mgre(&["export"])?, "");
    Ok(())
}
