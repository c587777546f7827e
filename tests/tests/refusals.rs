//! What a daemon says that the kernel does not let start, one line each, and what one that runs says of the kernel.

use anyhow::Result;
use mgre_tests::{
    daemon::{self, Options, Outcome, Tc},
    lone::Lone,
    skip::skipped,
};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Starts a daemon by way of another command, where one ran and left everything in place.
fn start_by(wrapper: &[&str], arguments: &[&str]) -> Result<Outcome> {
    let options = Options { instance: "refused".to_owned(), ..Options::default() };
    let (mut lone, ()) = Lone::prepared(options, |_| Ok(()))?;
    lone.daemon.stop()?;
    assert_eq!(statfs(&lone.daemon.bpffs())?.filesystem_type(), BPF_FS_MAGIC);
    let started = lone.daemon.daemon_command()?;
    let mut command = lone.netns.command(wrapper[0]);
    command.args(&wrapper[1..]).arg(daemon::program()?);
    // What comes after nsenter's own words and the program's name.
    let words: Vec<_> = started.get_args().skip_while(|word| *word != "--instance").collect();
    command.args(words).args(arguments);
    daemon::outcome(&mut command)
}

fn is_one_line(outcome: &Outcome, words: &[&str]) {
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    for word in words {
        assert!(outcome.stderr.contains(word), "no {word} in {outcome:?}");
    }
}

#[test]
fn a_user_namespace_has_no_bpf() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let outcome = start_by(&["unshare", "--user", "--map-root-user"], &[])?;
    is_one_line(&outcome, &["the kernel (", "refuses mgre's maps", "user namespace"]);
    Ok(())
}

#[test]
fn missing_capabilities_are_named() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let outcome =
        start_by(&["setpriv", "--bounding-set", "-bpf,-sys_admin", "--inh-caps", "-bpf,-sys_admin"], &[])?;
    is_one_line(&outcome, &["CAP_BPF", "CAP_PERFMON"]);
    Ok(())
}

#[test]
fn status_says_what_the_kernel_is() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let options = Options { tc: Some(Tc::Clsact), ..Options::default() };
    let lone = Lone::new(options)?;
    let status = lone.daemon.json(&["status"])?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    assert_eq!(status["kernel"]["release"], release.trim());
    assert!(status["kernel"]["missing"].is_array() && status["kernel"]["notes"].is_array(), "{status}");
    assert_eq!(status["underlays"][0]["hook"], "clsact");
    Ok(())
}
