//! Several instances on one host.

use anyhow::Result;
use mgre_tests::{
    daemon::{Daemon, Options},
    lone::Lone,
    skip::skipped,
    wait,
};

#[test]
fn an_underlay_address_is_one_instances() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut first = Lone::new(Options::default())?;
    let options = || Options { instance: "second".to_owned(), ..Options::default() };
    let second = Daemon::start(&first.netns, options())?;
    let add = ["underlay", "add", "wan0", "--local", "10.0.0.1"];
    for dry_run in [true, false] {
        let file = second.path().join("second.toml");
        std::fs::write(&file, "[[underlay]]\ninterface = \"wan0\"\nlocal = \"10.0.0.1\"\n")?;
        let file = file.display().to_string();
        let apply = ["apply", &file, "--dry-run"];
        for words in [&add[..], &apply[..if dry_run { 3 } else { 2 }]] {
            let told = second.outcome(words)?;
            let pid = first.daemon.pid().unwrap_or_default();
            let why = format!("another instance of mgre (process {pid}) has 10.0.0.1 on wan0");
            assert!(told.code == Some(1) && told.stderr.contains(&why), "{told:?}");
        }
    }
    assert!(second.list(&["underlay", "show"])?.is_empty());
    // The first one does not suffer, and another address is as good as any.
    first.wait_up()?;
    first.netns.ip("addr add 10.0.0.5/24 dev wan0")?;
    second.mgre(&["underlay", "add", "wan0", "--local", "10.0.0.5"])?;
    second.mgre(&["underlay", "del", "wan0"])?;
    // Where the first is not there, its address is free. It takes note when it comes back.
    first.daemon.stop()?;
    second.mgre(&add)?;
    first.daemon.start_again()?;
    let log = "has 10.0.0.1 on wan0, too";
    wait::until("it is logged", wait::SOON, || Ok(first.daemon.log().contains(log)))?;
    Ok(())
}
