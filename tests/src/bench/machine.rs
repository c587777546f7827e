//! What the figures were measured on.

use std::{collections::BTreeMap, fs, io, path::Path, process::Command};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::ovs;
use crate::daemon;

/// Puts this thread, and processes that it starts, before all others on this machine. A nice value would not: kernels
/// with autogroups compare it within a session only.
pub fn hurry() {
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter is valid. 0 is this thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) };
    // Without the right to do that, figures only spread more.
    if result != 0 {
        eprintln!("cannot run before others: {}", io::Error::last_os_error());
    }
}

/// Binds this thread to a CPU, and puts it before the others there.
///
/// # Errors
/// There is no such CPU.
pub fn claim(cpu: usize) -> Result<()> {
    hurry();
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot run on CPU {cpu}"))
}

/// The CPUs that this process may use.
fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).collect()
}

/// The CPU of generators and senders: the last, since the first serves most interrupts.
pub fn busy_cpu() -> usize {
    // A thread that was pinned sees only its own CPU; asking the process's first thread does not.
    process_cpus().last().copied().unwrap_or(0)
}

/// The CPU of receivers: another one, if there is one.
pub fn quiet_cpu() -> usize {
    process_cpus().first().copied().unwrap_or(0)
}

fn process_cpus() -> &'static [usize] {
    static CPUS: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();
    CPUS.get_or_init(cpus)
}

/// The machine and the versions of what ran on it.
#[derive(Clone, Debug)]
pub struct Machine {
    kernel: String,
    cpu: String,
    cpus: usize,
    /// What the kernel does about each of its CPU's weaknesses, in few words.
    mitigations: BTreeMap<String, String>,
    mgre: String,
    iperf3: String,
    /// Of Open vSwitch, if it is installed.
    ovs: Option<String>,
    /// Who chooses the CPUs' frequency, if anyone does.
    governor: Option<String>,
    load: f64,
}

impl Machine {
    /// Looks.
    ///
    /// # Errors
    /// A file of /proc is not there.
    pub fn read() -> Result<Self> {
        let read = |file: &str| fs::read_to_string(file).with_context(|| file.to_owned());
        let kernel = read("/proc/sys/kernel/osrelease")?.trim().to_owned();
        let cpu_info = read("/proc/cpuinfo")?;
        let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let load = read("/proc/loadavg")?.split(' ').next().and_then(|word| word.parse().ok());
        Ok(Self {
            kernel,
            cpu: model.map_or("unknown", |(_, name)| name).to_owned(),
            cpus: process_cpus().len(),
            mitigations: mitigations(Path::new("/sys/devices/system/cpu/vulnerabilities")),
            mgre: first_line(Command::new(daemon::program()?).arg("--version"))?,
            iperf3: first_line(Command::new("iperf3").arg("--version"))?,
            ovs: ovs::version(),
            governor: fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
                .ok()
                .map(|text| text.trim().to_owned()),
            load: load.unwrap_or(0.0),
        })
    }

    /// A few lines.
    pub fn text(&self) -> String {
        let active: Vec<_> =
            self.mitigations.iter().map(|(weakness, action)| format!("{weakness} ({action})")).collect();
        let active = if active.is_empty() { "none".to_owned() } else { active.join(", ") };
        let governor = self.governor.as_deref().unwrap_or("none");
        let ovs = self.ovs.as_deref().unwrap_or("Open vSwitch not installed");
        format!(
            "Linux {}, {}, {} CPUs, frequency governor {governor}, load {} before\n{}, {}, {ovs}\n\
             mitigations: {active}\n",
            self.kernel, self.cpu, self.cpus, self.load, self.mgre, self.iperf3
        )
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        json!({
            "kernel": self.kernel,
            "cpu": self.cpu,
            "cpus": self.cpus,
            "mitigations": self.mitigations,
            "mgre": self.mgre,
            "iperf3": self.iperf3,
            "open_vswitch": self.ovs,
            "governor": self.governor,
            "load_before": self.load,
        })
    }
}

/// What is done about each weakness that the CPU has.
fn mitigations(folder: &Path) -> BTreeMap<String, String> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let states = files.filter_map(|file| {
        let text = fs::read_to_string(file.path()).ok()?;
        Some((file.file_name().to_string_lossy().into_owned(), mitigation(&text)?))
    });
    states.collect()
}

/// The gist of one file; none if the CPU has no such weakness.
fn mitigation(text: &str) -> Option<String> {
    let text = text.trim();
    if text.is_empty() || text == "Not affected" {
        return None;
    }
    let gist = text.strip_prefix("Mitigation: ").unwrap_or(text);
    Some(gist.split([';', ',']).next().unwrap_or(gist).trim().to_owned())
}

fn first_line(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    // iperf3 goes on with more about itself.
    Ok(line.split(" (").next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mitigations_in_few_words() {
        assert_eq!(mitigation("Not affected\n"), None);
        assert_eq!(mitigation("Vulnerable: No microcode\n").as_deref(), Some("Vulnerable: No microcode"));
        let text = "Mitigation: Enhanced / Automatic IBRS; IBPB: conditional; RSB filling\n";
        assert_eq!(mitigation(text).as_deref(), Some("Enhanced / Automatic IBRS"));
    }
}
