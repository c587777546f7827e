//! mgre's tasks, as `cargo xtask TASK`: one command per job, the same for a person and for CI.

mod check;
mod fuzz;
mod host;
mod load;
mod setup;
mod test;
mod vm;

use std::{
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use xtask::{ebpf, toolchain};

#[derive(Debug, Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", about, long_about = None)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what the build and the tests need and this machine lacks
    Setup,
    /// Build mgre with its eBPF object
    Build {
        /// With optimizations
        #[arg(long)]
        release: bool,
    },
    /// rustfmt, clippy, rustdoc and cargo-deny; all of them run, any failure fails the task
    Check,
    /// Run every test, including those in network namespaces
    Test {
        /// Handed to each test program: a filter, --nocapture, ...
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Make a three-spoke overlay in network namespaces and run traffic through it
    Demo {
        /// Leave the overlay up
        #[arg(long)]
        keep: bool,
        /// Handed to the demo program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Compare mgre with what the kernel offers, in network namespaces
    Bench {
        /// Handed to the benchmark: --quick, --only PART, --contestant NAME, --programs, --rounds N, --old MGRE,
        /// --json FILE, --plot FILE
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run millions of frames through the pipeline or the loaded programs, and compare with the model
    Fuzz(fuzz::Arguments),
    /// Build mgre and run its daemon on an interface of this host until Ctrl-C
    Load(load::Arguments),
    /// Run a command in a virtual machine with one of Debian's kernels
    Vm(vm::Arguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent folder")?;
    let done = match task {
        Task::Setup => setup::run(root, setup::Purpose::Everything),
        Task::Build { release } => {
            toolchain::find(root).context("cannot build mgre whole; run cargo xtask setup")?;
            host::run(host::cargo(root).arg("build").args(release.then_some("--release")))
        }
        Task::Check => check::run(root),
        Task::Test { args } => test::run(root, &args),
        Task::Demo { keep, args } => {
            let mut demo = in_namespaces(root, "demo")?;
            host::run(demo.args(keep.then_some("--keep")).args(args))
        }
        Task::Bench { args } => {
            let mut bench = in_namespaces(root, "bench")?;
            let toolchain = toolchain::find(root).context("the eBPF toolchain is gone")?;
            let object =
                ebpf::build(&toolchain, root, &xtask::target_dir(root).join("ebpf"), ebpf::Object::Bench)?;
            host::run(bench.arg("--object").arg(object).args(args))
        }
        Task::Fuzz(arguments) => fuzz::run(root, &arguments),
        Task::Load(arguments) => load::run(root, &arguments),
        // Its exit code is that of the command.
        Task::Vm(arguments) => return Ok(vm::run(root, arguments)),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Builds mgre and a program of `mgre-tests`, which makes network namespaces, and returns the command that runs it.
fn in_namespaces(root: &Path, program: &str) -> Result<Command> {
    setup::run(root, setup::Purpose::Run)?;
    let mgre = host::build_mgre(root)?;
    host::run(host::cargo(root).args(["build", "--release", "--package", "mgre-tests", "--bin", program]))?;
    let program = xtask::target_dir(root).join("release").join(program);
    host::privileged(&program, &[("MGRE_BIN", mgre.as_os_str())])
}
