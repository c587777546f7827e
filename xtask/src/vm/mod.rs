//! Virtual machines with Debian's kernels, emulated in software: what mgre does on kernels other than this machine's.
//!
//! - [`release`]: which kernel; [`sources`] and [`apt`]: where packages come from; [`unpacked`], [`kernel`] and
//!   [`qemu`]: what is made of them;
//! - [`cpio`], [`libraries`] and [`tools`]: what a guest has for a file system; [`ovs`]: Open vSwitch in it;
//! - [`machine`]: its hardware, and how it ends; [`guest`]: a command in it;
//! - [`battery`]: what two stations do with each other; [`matrix`]: the project's tests on several kernels.
//!
//! Everything fetched or made is in `target/vm`; nothing of it is installed.

mod apt;
mod battery;
mod cpio;
mod files;
mod guest;
mod hardened;
mod kernel;
mod libraries;
mod machine;
mod matrix;
mod ovs;
mod qemu;
mod release;
mod sources;
mod tools;
mod unpacked;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use self::{
    battery::Battery,
    guest::Guest,
    kernel::Kernels,
    machine::{Cards, Machine},
    qemu::Qemu,
    release::{Flavour, Wanted},
    tools::Extras,
};
use crate::setup;

/// The exit code where the harness itself fails, as that of other programs that run a command for somebody.
const FAILED: u8 = 125;
/// The kernels that are looked at where none is named.
const KERNELS: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "newest"];

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// Fetch kernels, the newest of each, and qemu
    Fetch {
        /// As for a run; without any, those of the matrix
        kernels: Vec<String>,
        /// Of which build
        #[arg(long, value_enum, default_value_t)]
        flavour: Flavour,
    },
    /// Run the project's tests on several kernels, and say what each makes of mgre
    Matrix(matrix::Arguments),
    /// Two mgre spokes in a guest, in every mode and with every option
    Spokes(battery::Arguments),
    /// mgre beside the kernel's gretap and Open vSwitch, in a guest
    Peers(battery::Arguments),
    /// mgre over emulated cards, and what happens to cards
    Nic {
        /// qemu's name of the card: igb, vmxnet3, e1000e, virtio-net-pci
        driver: String,
        #[command(flatten)]
        arguments: battery::Arguments,
    },
    /// mgre on kernels that are set up to allow less, a guest for each way
    Hardened(hardened::Arguments),
    /// What a frame costs in instructions, beside bridges, gretap, VXLAN and Open vSwitch
    Instructions(battery::Arguments),
}

#[derive(Debug, clap::Args)]
struct Run {
    /// A version or its start (6.1, 6.12.90), `newest`, or a full release name
    kernel: Option<String>,
    /// Processors
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Memory
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u64,
    /// Seconds after which the guest is ended
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// A file or folder to put into /job, where the command runs; may be repeated
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// A program of this machine to put on PATH, with its libraries; may be repeated
    #[arg(long = "bin", value_name = "PATH")]
    programs: Vec<PathBuf>,
    /// Where to put what the command leaves in /out
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A setting of sysctl; may be repeated
    #[arg(long = "sysctl", value_name = "KEY=VALUE")]
    sysctls: Vec<String>,
    /// More arguments for the kernel
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// Which of Debian's builds; the full one has drivers of igb, e1000e and vmxnet3
    #[arg(long, value_enum, default_value_t)]
    flavour: Flavour,
    /// Let the guest's clock count instructions
    #[arg(long)]
    icount: bool,
    /// Emulated cards, joined in pairs (eth0 with eth1, ...); may be repeated
    #[arg(long = "nic", value_name = "DRIVER=N[,PROPERTY=VALUE...]")]
    cards: Vec<Cards>,
    /// More arguments for qemu
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    qemu: String,
    /// Give the guest Python
    #[arg(long)]
    python: bool,
    /// Give the guest Open vSwitch's programs
    #[arg(long)]
    ovs: bool,
    /// The command and its arguments
    #[arg(last = true)]
    command: Vec<String>,
}

pub(crate) fn run(root: &Path, arguments: Arguments) -> ExitCode {
    let done = match arguments.task {
        Some(Task::Fetch { kernels, flavour }) => fetch(root, &kernels, flavour).map(|()| 0),
        Some(Task::Matrix(arguments)) => matrix::run(root, &arguments).map(|()| 0),
        Some(Task::Spokes(arguments)) => battery::run(root, &Battery::Spokes, arguments),
        Some(Task::Peers(arguments)) => battery::run(root, &Battery::Peers, arguments),
        Some(Task::Nic { driver, arguments }) => battery::run(root, &Battery::Nic(driver), arguments),
        Some(Task::Hardened(arguments)) => hardened::run(root, &arguments).map(|()| 0),
        Some(Task::Instructions(arguments)) => battery::run(root, &Battery::Instructions, arguments),
        None => run_command(root, arguments.run),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn cache(root: &Path) -> Result<PathBuf> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "virtual machines are for x86-64: guests run this machine's programs"
    );
    let cache = xtask::target_dir(root).join("vm");
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    Ok(cache)
}

fn fetch(root: &Path, kernels: &[String], flavour: Flavour) -> Result<()> {
    setup::run(root, setup::Purpose::Machines)?;
    let cache = cache(root)?;
    Qemu::get(&cache)?;
    let default = KERNELS.map(str::to_owned);
    for kernel in if kernels.is_empty() { &default } else { kernels } {
        let kernel = Kernels { cache: &cache }.get(&Wanted::parse(kernel, flavour), true)?;
        println!("vm: {} is here", kernel.release);
    }
    Ok(())
}

fn run_command(root: &Path, run: Run) -> Result<u8> {
    let (Some(wanted), false) = (&run.kernel, run.command.is_empty()) else {
        bail!(
            "a kernel and a command are needed: cargo xtask vm KERNEL [OPTIONS] -- COMMAND [ARGUMENTS...], for example \
             cargo xtask vm 6.12 -- uname -r; --help has the options"
        );
    };
    ensure!(!run.icount || run.cpus == 1, "--icount is for one processor");
    let guest = Guest {
        machine: Machine {
            cpus: run.cpus,
            memory_mib: run.memory,
            cards: run.cards,
            icount: run.icount,
            qemu: run.qemu.split_whitespace().map(str::to_owned).collect(),
            append: run.append,
            timeout: Duration::from_secs(run.timeout),
        },
        extras: Extras { python: run.python, ovs: run.ovs },
        mgre: mgre(root),
        programs: run.programs.iter().map(|path| guest::named(path)).collect::<Result<_>>()?,
        files: run.files.iter().map(|path| guest::named(path)).collect::<Result<_>>()?,
        sysctls: run.sysctls.iter().map(|setting| guest::sysctl(setting)).collect::<Result<_>>()?,
        out: run.out,
        command: run.command,
    };
    setup::run(root, setup::Purpose::Machines)?;
    let cache = cache(root)?;
    let qemu = Qemu::get(&cache)?;
    let kernel = Kernels { cache: &cache }.get(&Wanted::parse(wanted, run.flavour), false)?;
    let ended = guest.run(&cache, &qemu, &kernel, print)?;
    for complaint in ended.complaints {
        eprintln!("vm: the kernel {} says: {complaint}", kernel.release);
    }
    Ok(ended.code)
}

fn print(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    // Whoever reads may have had enough; the command runs on.
    stdout.write_all(bytes).and_then(|()| stdout.flush()).ok();
}

/// What `MGRE_BIN` names, or the release build, if there is one.
fn mgre(root: &Path) -> Option<PathBuf> {
    let path = match std::env::var_os("MGRE_BIN") {
        Some(given) => root.join(given),
        None => xtask::target_dir(root).join("release/mgre"),
    };
    path.is_file().then_some(path)
}
