//! mgre on a kernel that is set up to allow less, one guest for each way.

use std::{path::Path, time::Duration};

use anyhow::{Result, bail};

use super::{
    battery::{MEMORY_MIB, Setting, Tools},
    machine::Machine,
    release::{Flavour, Wanted},
    tools::Extras,
};

/// How long a guest may take.
const TIMEOUT: Duration = Duration::from_secs(600);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A kernel, as for a run
    #[arg(long, default_value = "6.12")]
    kernel: String,
}

/// A way to set up a kernel.
struct Host {
    name: &'static str,
    /// Arguments of the kernel.
    append: &'static str,
    /// A path below /proc/sys, and a value.
    sysctl: Option<(&'static str, &'static str)>,
    /// What the battery is told to look for besides.
    words: &'static [&'static str],
}

const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

const HOSTS: [Host; 5] = [
    Host { name: "limits of the process", append: "", sysctl: None, words: &["--limits"] },
    Host {
        name: "no BPF for who is not privileged",
        append: "",
        sysctl: Some(("kernel/unprivileged_bpf_disabled", "2")),
        words: &["--is", "/proc/sys/kernel/unprivileged_bpf_disabled=2"],
    },
    Host {
        name: "a hardened compiler",
        append: "",
        sysctl: Some(("net/core/bpf_jit_harden", "2")),
        words: &["--is", "/proc/sys/net/core/bpf_jit_harden=2"],
    },
    Host {
        name: "lockdown, integrity",
        append: "lockdown=integrity",
        sysctl: None,
        words: &["--is", "LOCKDOWN=[integrity]"],
    },
    Host {
        name: "lockdown, confidentiality",
        append: "lockdown=confidentiality",
        sysctl: None,
        words: &["--is", "LOCKDOWN=[confidentiality]"],
    },
];

/// Runs all of them.
///
/// # Errors
/// In one of them, a check fails.
pub(super) fn run(root: &Path, arguments: &Arguments) -> Result<()> {
    let tools = Tools::build(root)?;
    let wanted = Wanted::parse(&arguments.kernel, Flavour::Cloud);
    let mut failed = Vec::new();
    for host in &HOSTS {
        println!("vm: {}", host.name);
        let words = host.words.iter().map(|word| word.replace("LOCKDOWN", LOCKDOWN));
        let words: Vec<String> = std::iter::once("hardened".to_owned()).chain(words).collect();
        let machine = Machine {
            cpus: 1,
            memory_mib: MEMORY_MIB,
            cards: Vec::new(),
            icount: false,
            qemu: Vec::new(),
            append: host.append.to_owned(),
            timeout: TIMEOUT,
        };
        let sysctls = host.sysctl.map(|(path, value)| (path.to_owned(), value.to_owned()));
        let extras = Extras { python: false, ovs: false };
        let setting = Setting { machine, extras, sysctls: sysctls.into_iter().collect() };
        if tools.run(&wanted, &words, setting)? != 0 {
            failed.push(host.name);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join("; ")) }
}
