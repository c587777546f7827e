//! The batteries between two stations (`guest`, of mgre-tests) in a virtual machine.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail};

use super::{
    cache,
    guest::{Guest, strip},
    kernel::Kernels,
    machine::{Cards, Machine},
    print,
    qemu::Qemu,
    release::{Flavour, Wanted},
    tools::Extras,
};
use crate::{host, setup};

/// How many times as slow as this machine a guest is.
const PATIENCE: u32 = 15;
/// Cards on the way from host to host: the one of the host, that of its port, and two of the underlay.
const CARDS: u32 = 4;
/// What a guest has.
pub(super) const MEMORY_MIB: u64 = 2048;

/// What is checked.
#[derive(Clone, Debug)]
pub(super) enum Battery {
    Spokes,
    Peers,
    Nic(String),
    Instructions,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A kernel, as for a run
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Processors
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Seconds after which the guest is ended
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
    /// Handed to the battery; `-- --help` says what it takes
    #[arg(last = true)]
    args: Vec<String>,
}

impl Battery {
    fn command(&self) -> &'static str {
        match self {
            Self::Spokes => "spokes",
            Self::Peers => "peers",
            Self::Nic(_) => "nic",
            Self::Instructions => "instructions",
        }
    }
}

/// What all batteries need.
pub(super) struct Tools {
    cache: PathBuf,
    qemu: Qemu,
    mgre: PathBuf,
    /// The batteries.
    guest: PathBuf,
}

impl Tools {
    /// Builds mgre and the batteries.
    pub(super) fn build(root: &Path) -> Result<Self> {
        setup::run(root, setup::Purpose::Machines)?;
        let mgre = host::build_mgre(root)?;
        let mut cargo = host::cargo(root);
        host::run(cargo.args(["build", "--release", "--package", "mgre-tests", "--bin", "guest"]))?;
        let cache = cache(root)?;
        let stripped = cache.join("battery");
        std::fs::create_dir_all(&stripped)?;
        let guest = strip(&xtask::target_dir(root).join("release/guest"), &stripped.join("guest"))?;
        let mgre = strip(&mgre, &stripped.join("mgre"))?;
        Ok(Self { qemu: Qemu::get(&cache)?, cache, mgre, guest })
    }

    /// Runs a battery with these words in a guest; its exit code.
    pub(super) fn run(&self, wanted: &Wanted, words: &[String], setting: Setting) -> Result<u8> {
        let Setting { machine, extras, sysctls } = setting;
        let patience = PATIENCE * if machine.icount { 3 } else { 1 };
        let mut command =
            vec!["env".to_owned(), format!("MGRE_TEST_PATIENCE={patience}"), "guest".to_owned()];
        command.extend_from_slice(words);
        let guest = Guest {
            machine,
            extras,
            mgre: Some(self.mgre.clone()),
            programs: vec![("guest".to_owned(), self.guest.clone())],
            files: Vec::new(),
            sysctls,
            out: None,
            command,
        };
        let kernel = Kernels { cache: &self.cache }.get(wanted, false)?;
        let ended = guest.run(&self.cache, &self.qemu, &kernel, print)?;
        for complaint in &ended.complaints {
            eprintln!("vm: the kernel {} says: {complaint}", kernel.release);
        }
        // A kernel that finds itself wrong is a failure, whatever the battery says.
        Ok(if ended.code == 0 && !ended.complaints.is_empty() { 1 } else { ended.code })
    }
}

/// The guest of a battery.
pub(super) struct Setting {
    pub(super) machine: Machine,
    pub(super) extras: Extras,
    /// Paths below /proc/sys, and values.
    pub(super) sysctls: Vec<(String, String)>,
}

/// Builds mgre and the batteries and runs one of them; its exit code.
pub(super) fn run(root: &Path, battery: &Battery, arguments: Arguments) -> Result<u8> {
    let icount = matches!(battery, Battery::Instructions);
    if icount && arguments.cpus != 1 {
        bail!("instructions are counted on one processor");
    }
    let tools = Tools::build(root)?;
    let (cards, flavour) = match battery {
        Battery::Nic(driver) => {
            // Those of virtual machines are in every kernel; those of machines are in the full one.
            let flavour = if driver.starts_with("virtio") { Flavour::Cloud } else { Flavour::Full };
            (vec![Cards { driver: driver.clone(), count: CARDS, properties: String::new() }], flavour)
        }
        _ => (Vec::new(), Flavour::Cloud),
    };
    let mut words = vec![battery.command().to_owned()];
    words.extend(arguments.args);
    let machine = Machine {
        cpus: arguments.cpus,
        memory_mib: MEMORY_MIB,
        cards,
        icount,
        qemu: Vec::new(),
        append: String::new(),
        timeout: Duration::from_secs(arguments.timeout),
    };
    let extras = Extras { python: false, ovs: matches!(battery, Battery::Peers | Battery::Instructions) };
    let setting = Setting { machine, extras, sysctls: Vec::new() };
    tools.run(&Wanted::parse(&arguments.kernel, flavour), &words, setting)
}
