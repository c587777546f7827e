//! A kernel that is set up to allow less: mgre works there, or says in one line why not.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use mgre_tests::{
    battery::report::{Report, Verdict},
    daemon::Options,
    lone::Lone,
    topology::{Layout, Spokes, Underlay},
    traffic,
};

/// A group that is too small for the tables of an ordinary daemon, in bytes.
const SMALL_GROUP: u64 = 40 << 20;
const GROUP: &str = "/sys/fs/cgroup/mgre-small";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Files that say how the kernel is set up, and what is to be in them
    #[arg(long = "is", value_name = "FILE=TEXT")]
    settings: Vec<String>,
    /// Limits of the process, too: a small control group, and no bpf file system
    #[arg(long)]
    limits: bool,
}

pub(crate) fn run(report: &mut Report, arguments: &Arguments) {
    for setting in &arguments.settings {
        report.check(&format!("the kernel has {setting}"), is_set(setting));
    }
    report.check("two spokes work, and a restart goes on", spokes());
    if arguments.limits {
        report.check("a control group that is too small is named", small_group());
        report.check("without a bpf file system, one is mounted", no_bpffs());
    }
}

fn is_set(setting: &str) -> Result<Verdict> {
    let (path, wanted) = setting.split_once('=').context("FILE=TEXT")?;
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    Ok(Verdict::when(text.contains(wanted), text.trim()))
}

fn spokes() -> Result<Verdict> {
    let mut spokes: Spokes = Layout::new(2, Underlay::Switched).build()?;
    let reach = |spokes: &Spokes| traffic::reaches(&spokes.spoke(1).host, &spokes.spoke(2).host_ip());
    ensure!(reach(&spokes)?, "no ping");
    let known = spokes.spoke(1).daemon.list(&["fdb", "show"])?.len();
    let daemon = &mut spokes.spoke_mut(1).daemon;
    daemon.stop()?;
    daemon.start_again()?;
    let again = daemon.list(&["fdb", "show"])?.len();
    ensure!(again >= known && known > 0, "{known} addresses were known, {again} are after the restart");
    ensure!(reach(&spokes)?, "no ping after a restart");
    Ok(Verdict::Pass(format!("{again} addresses")))
}

/// Starts a daemon by way of a script that ends by becoming it; what it says where it does not start.
fn started_by(script: &str) -> Result<std::result::Result<Lone, String>> {
    let wrapper = ["sh", "-c", &format!("{script}; exec \"$0\" \"$@\"")].map(str::to_owned).to_vec();
    let lone = Lone::prepared(Options { wrapper, ..Options::default() }, |_| Ok(()));
    Ok(lone.map(|(lone, ())| lone).map_err(|error| format!("{error:#}")))
}

fn small_group() -> Result<Verdict> {
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")?;
    fs::create_dir_all(GROUP)?;
    fs::write(format!("{GROUP}/memory.max"), SMALL_GROUP.to_string())?;
    let started = started_by(&format!("echo $$ >{GROUP}/cgroup.procs"))?;
    Ok(match started {
        Ok(_) => Verdict::Fail("it started".into()),
        Err(said) => Verdict::when(said.contains("memory") && said.contains("mgre-small"), said),
    })
}

fn no_bpffs() -> Result<Verdict> {
    let script = "for word in \"$@\"; do [ \"$before\" = --bpffs ] && umount \"$word\"; before=$word; done";
    Ok(match started_by(script)? {
        Ok(lone) => Verdict::when(lone.daemon.json(&["status"])?["pid"].is_u64(), "it works"),
        Err(said) => Verdict::Fail(said),
    })
}
