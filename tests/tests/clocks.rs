//! Clocks that jump, and a daemon that stands still.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture,
    daemon::Options,
    http::request,
    lone::Lone,
    packet::{BROADCAST, Mac, mac_text, marked},
    skip::{find_program, skip, skipped},
    topology::{SEGMENT, Spokes, Underlay},
    traffic::{self, Background},
    wait,
};

/// The wall clock as the daemon sees it: moved by as many seconds as a file says.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
static volatile long long *offset;
__attribute__((constructor)) static void begin(void) {
    int fd = open(getenv("MGRE_TEST_CLOCK"), O_RDONLY);
    offset = mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += *offset;
    return result;
}
"#;

const STATION: Mac = [0x02, 0, 0, 0, 0xcc, 0x01];
const SECONDS_A_YEAR: i64 = 365 * 86_400;

/// Builds the shim in a folder; none where there is no compiler.
fn shim(folder: &Path) -> Result<Option<PathBuf>> {
    if find_program("cc").is_none() {
        return Ok(None);
    }
    let (source, library) = (folder.join("shim.c"), folder.join("shim.so"));
    fs::write(&source, SHIM)?;
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
    let output = compile.output()?;
    anyhow::ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
    Ok(Some(library))
}

#[test]
fn a_wall_clock_that_jumps_changes_nothing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let Some(library) = shim(folder.path())? else {
        skip("there is no C compiler to make a clock that jumps");
        return Ok(());
    };
    let clock = folder.path().join("clock");
    let file = File::create(&clock)?;
    // In place: where a file was cut short, whoever has mapped it gets SIGBUS.
    let set = |seconds: i64| file.write_all_at(&seconds.to_ne_bytes(), 0);
    set(0)?;
    let wrapper = vec![
        "env".to_owned(),
        format!("LD_PRELOAD={}", library.display()),
        format!("MGRE_TEST_CLOCK={}", clock.display()),
    ];
    let lone = Lone::new(Options { wrapper, ..Options::default() })?;
    let pid = lone.daemon.pid().context("it runs")?;
    if !fs::read_to_string(format!("/proc/{pid}/maps"))?.contains("shim.so") {
        skip("this mgre takes no library that moves its clock");
        return Ok(());
    }
    let speak = || capture::send(&lone.netns, "host0", &[marked(BROADCAST, STATION, "here")]);
    let entry = || -> Result<Option<serde_json::Value>> {
        let mac = mac_text(STATION);
        Ok(lone.daemon.list(&["fdb", "show"])?.into_iter().find(|entry| entry["mac"] == mac.as_str()))
    };
    speak()?;
    wait::until("it is learned", wait::SOON, || Ok(entry()?.is_some()))?;
    for offset in [10 * SECONDS_A_YEAR, -10 * SECONDS_A_YEAR, 3600, -3600, 0] {
        set(offset)?;
        // Several ticks of the daemon.
        sleep(Duration::from_millis(1500));
        let age = entry()?.context("an address that was just learned is forgotten")?["age_seconds"].as_u64();
        assert!(age < Some(60), "{age:?} after {offset}");
        let uptime = lone.daemon.json(&["status"])?["uptime_seconds"].as_u64();
        assert!(uptime < Some(300), "{uptime:?}");
        assert_eq!(lone.peer("b")?["state"], "up");
        let aging = format!("{}", 300 + offset.rem_euclid(7));
        lone.daemon.mgre(&["segment", "set", SEGMENT, "--aging", &aging])?;
        // The daemon does see another time: it is what its log says.
        if offset == 10 * SECONDS_A_YEAR {
            lone.netns.ip("link set wan0 down")?;
            wait::until("the peer is not up", wait::SOON, || Ok(lone.peer("b")?["state"] != "up"))?;
            lone.netns.ip("link set wan0 up")?;
            for neighbor in ["10.0.0.2", "10.0.0.3"] {
                let mac = mac_text(mgre_tests::lone::NEIGHBOR);
                lone.netns.ip(&format!("neigh replace {neighbor} lladdr {mac} dev wan0 nud permanent"))?;
            }
            let logged = || -> (Option<i32>, Option<i32>) {
                let log = lone.daemon.log();
                let years = || log.lines().filter_map(|line| line.get(..4)?.parse().ok());
                (years().min(), years().max())
            };
            wait::until("the clock jumps", wait::SOON, || Ok(logged().1 > logged().0))?;
            lone.wait_up()?;
            wait::until("it is learned again", wait::SOON, || {
                speak()?;
                Ok(entry()?.is_some())
            })?;
        }
    }
    // Ageing goes on, backwards or not.
    set(-SECONDS_A_YEAR)?;
    lone.daemon.mgre(&["segment", "set", SEGMENT, "--aging", "2"])?;
    wait::until("it is forgotten in its time", wait::SOON, || Ok(entry()?.is_none()))?;
    let answer = request(&lone.daemon.socket(), "GET", "/v1/status", "")?;
    assert_eq!(answer.status, 200);
    Ok(())
}

/// Longer than the lease on next hops, where the kernel's clock ticks 1000 times a second.
#[test]
fn a_daemon_that_stood_still_forgets_nobody_who_spoke() -> Result<()> {
    const STOOD: Duration = Duration::from_secs(17);
    if skipped() {
        return Ok(());
    }
    let spokes = Spokes::new(2, Underlay::Routed)?;
    let (one, two) = (spokes.spoke(1), spokes.spoke(2));
    one.daemon.mgre(&["segment", "set", SEGMENT, "--aging", "5"])?;
    traffic::wait_reachable(&one.host, &two.host_ip(), wait::SOON)?;
    capture::send(&one.host, "eth0", &[marked(BROADCAST, STATION, "and never again")])?;
    one.wait_fdb_port(STATION, "lan0")?;
    let pings = Background::ping(&one.host, &["-i", "0.02", "-W", "2", &two.host_ip()])?;
    let paused = one.daemon.pause()?;
    sleep(STOOD);
    // Long after it, too, frames go: the kernel is asked for the next hop.
    drop(paused);
    for _ in 0..20 {
        for (mac, at) in [(one.host_mac(), "port"), (two.host_mac(), "peer")] {
            let entry = one.fdb(mac)?.with_context(|| format!("{} is forgotten", mac_text(mac)))?;
            assert!(!entry[at].is_null() && entry["age_seconds"].as_u64() <= Some(3), "{entry}");
        }
        sleep(Duration::from_millis(100));
    }
    let pings = pings.interrupt()?;
    assert!(pings.sent > 500 && pings.all_came_back(), "{pings:?}");
    wait::until("who is silent is forgotten", Duration::from_secs(20), || Ok(one.fdb(STATION)?.is_none()))?;
    one.wait_up()
}
