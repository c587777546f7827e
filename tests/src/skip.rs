//! Whether a test can run here.

use std::{io::Write as _, path::PathBuf, process::Command, thread};

use crate::daemon::{self, Tc};

/// The programs that the library runs.
const TOOLS: [&str; 6] = ["ip", "tc", "nsenter", "ping", "iperf3", "ethtool"];

/// What is missing here, if anything.
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root; run cargo xtask test".to_owned());
    }
    if let Some(tool) = TOOLS.iter().find(|tool| find_program(tool).is_none()) {
        return Some(format!("{tool} is missing; run cargo xtask setup"));
    }
    daemon::program().err().map(|error| format!("{error:#}"))
}

/// As [`skipped`], for a test of programs that are attached in one way.
///
/// # Panics
/// As [`skipped`].
pub fn skipped_at(tc: Tc) -> bool {
    let no_tcx = tc == Tc::Tcx && !kernel_has_tcx();
    let why = no_tcx.then(|| "this kernel has no TCX, which came with Linux 6.6".to_owned());
    missing().or(why).is_some_and(|why| skip(&why))
}

/// As [`skipped`], for a test of frames that XDP redirects: mgre has it redirect to what the kernel says takes them.
///
/// # Panics
/// As [`skipped`].
pub fn skipped_without_redirects() -> bool {
    // What cannot be asked is not there.
    let tells = mgre_user::netlink::tells_xdp_features().unwrap_or(false);
    let why =
        (!tells).then(|| "this kernel does not tell what takes redirected frames (Linux 6.3)".to_owned());
    missing().or(why).is_some_and(|why| skip(&why))
}

/// Says on standard error why the running test is skipped, if it has to be.
///
/// # Panics
/// If it has to be, but `MGRE_TESTS_NO_SKIP` is set: where everything is expected to run, nothing may be left out.
pub fn skipped() -> bool {
    missing().is_some_and(|why| skip(&why))
}

/// Says on standard error that the running test is skipped, and why. True, for the test to end by.
///
/// # Panics
/// As [`skipped`].
pub fn skip(why: &str) -> bool {
    let thread = thread::current();
    let test = thread.name().unwrap_or("?");
    assert!(std::env::var_os("MGRE_TESTS_NO_SKIP").is_none(), "{test} cannot run: {why}");
    // Not by `eprintln!`: the test harness keeps that for itself where a test passes.
    writeln!(std::io::stderr(), "SKIP {test}: {why}").ok();
    true
}

/// A program on `PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// How mgre attaches to TC on this kernel if nobody asks for something else.
pub fn tc_of_kernel() -> Tc {
    if kernel_has_tcx() { Tc::Tcx } else { Tc::Clsact }
}

fn kernel_has_tcx() -> bool {
    let Ok(output) = Command::new("uname").arg("-r").output() else { return false };
    let release = String::from_utf8_lossy(&output.stdout);
    let mut numbers = release.split('.').map(|part| part.trim().parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(6))
}
