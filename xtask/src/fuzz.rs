//! Millions of frames through the pipeline or the loaded programs, beside the model; and the targets of cargo-fuzz.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::{host, setup};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Let cargo-fuzz run this target instead: pipeline, or api
    #[arg(long)]
    target: Option<String>,
    /// Handed to the fuzzer: --executions N, --seconds N, --kernel, --seed N, --threads N; or to libFuzzer
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<()> {
    let build = ["build", "--profile", "fuzz", "--package", "mgre-tests", "--bin", "fuzz"];
    let kernel = arguments.args.iter().any(|arg| arg == "--kernel");
    if kernel {
        setup::run(root, setup::Purpose::Run)?;
    }
    host::run(host::cargo(root).args(build))?;
    let program = xtask::target_dir(root).join("fuzz/fuzz");
    let mut fuzz =
        if kernel { host::privileged(&program, &[])? } else { std::process::Command::new(&program) };
    let Some(target) = &arguments.target else {
        return host::run(fuzz.args(&arguments.args));
    };
    host::run(fuzz.args(["--unpack", target]))?;
    run_target(root, target, &arguments.args)
}

/// With a stable toolchain, and without a sanitizer: the code under test is safe Rust.
fn run_target(root: &Path, target: &str, args: &[String]) -> Result<()> {
    let tools = xtask::tools_dir(root).join("bin");
    let folders = [tools, home_bin()?].into_iter().chain(xtask::path_folders());
    let Some(cargo_fuzz) = xtask::find_program("cargo-fuzz", folders) else {
        bail!("cargo-fuzz is not installed; cargo install cargo-fuzz --root target/tools");
    };
    let folder = root.join("tests/fuzz");
    let mut command = std::process::Command::new(cargo_fuzz);
    command.current_dir(root).env("RUSTC_BOOTSTRAP", "1").args(["run", "--sanitizer", "none", "--fuzz-dir"]);
    host::run(command.arg(folder).arg(target).arg("--").args(args))
}

fn home_bin() -> Result<std::path::PathBuf> {
    Ok(Path::new(&std::env::var_os("HOME").context("there is no HOME")?).join(".cargo/bin"))
}
