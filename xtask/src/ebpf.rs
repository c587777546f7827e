//! Building the eBPF object.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::toolchain::Toolchain;

/// Flags for every crate of the object, `core` included.
const RUSTFLAGS: &[&str] = &[
    // BTF is made from the debug information.
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
];

/// The objects that the crate makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// The programs that mgre loads.
    Mgre,
    /// Programs that the benchmark measures.
    Bench,
}

impl Object {
    const fn binary(self) -> &'static str {
        match self {
            Self::Mgre => "mgre-ebpf",
            Self::Bench => "mgre-bench",
        }
    }
}

/// Builds an object with the release profile and returns its path.
///
/// `target_dir` must not be the one of a cargo that waits for this: cargo locks it. When nothing changed, cargo
/// notices, and this takes a fraction of a second. Warnings and errors go to stderr.
///
/// # Errors
///
/// When cargo cannot be started, or the crate does not compile or link.
pub fn build(
    toolchain: &Toolchain,
    workspace_root: &Path,
    target_dir: &Path,
    object: Object,
) -> Result<PathBuf> {
    let mut command = command(toolchain, &toolchain.cargo, workspace_root)?;
    command.arg("build").args(arguments()).args(["--bin", object.binary()]);
    command.arg("--target-dir").arg(target_dir);
    run(command, "building")?;
    let object = target_dir.join(target()).join("release").join(object.binary());
    if !object.is_file() {
        bail!("cargo built the eBPF crate but left no object at {}", object.display());
    }
    Ok(object)
}

/// Runs clippy over the eBPF crate and the workspace crates it uses, as they are compiled for the eBPF target.
///
/// # Errors
///
/// When the toolchain has no clippy of rustc's own release, and when clippy finds something.
pub fn clippy(toolchain: &Toolchain, workspace_root: &Path, target_dir: &Path) -> Result<()> {
    // A clippy-driver is a rustc: another release's could not read the library's source.
    let cargo_clippy = toolchain.cargo_clippy.as_ref().with_context(|| {
        format!("no clippy belongs to {}; run cargo xtask setup", toolchain.rustc.display())
    })?;
    let mut command = command(toolchain, cargo_clippy.as_os_str(), workspace_root)?;
    command.env("CARGO", &toolchain.cargo).arg("clippy").args(arguments()).arg("--bins");
    command.arg("--target-dir").arg(target_dir).args(["--", "-D", "warnings"]);
    run(command, "clippy over")
}

/// The eBPF target of the byte order for which mgre itself is built.
#[must_use]
pub fn target() -> &'static str {
    // In a build script the variable tells about the outer build's target.
    let big_endian = match env::var("CARGO_CFG_TARGET_ENDIAN") {
        Ok(endian) => endian == "big",
        Err(_) => cfg!(target_endian = "big"),
    };
    if big_endian { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
}

fn arguments() -> [&'static str; 9] {
    [
        "--package",
        "mgre-ebpf",
        "--features",
        "programs",
        "--release",
        "--locked",
        "--target",
        target(),
        "-Zbuild-std=core",
    ]
}

fn command(toolchain: &Toolchain, program: &OsStr, workspace_root: &Path) -> Result<Command> {
    let mut command = Command::new(program);
    for (key, _) in env::vars_os() {
        if key.to_str().is_some_and(is_of_outer_build) {
            command.env_remove(key);
        }
    }
    command
        .current_dir(workspace_root)
        .env("PATH", path_with(&toolchain.linker)?)
        .env("RUSTC", &toolchain.rustc)
        // A release compiler takes -Z flags only so.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"));
    Ok(command)
}

fn path_with(linker: &Path) -> Result<OsString> {
    let folder = linker.parent().map(Path::to_path_buf);
    env::join_paths(folder.into_iter().chain(crate::path_folders()))
        .context("a folder with a colon in its name is on PATH")
}

fn run(mut command: Command, what: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!("{what} the eBPF crate failed ({status}); the errors are above");
    }
    Ok(())
}

/// Whether a variable speaks about the build that runs us: its compiler, wrappers, flags, profile and target are
/// wrong for the nested build. What concerns the user's registry, network, terminal and cargo's job slots stays.
fn is_of_outer_build(key: &str) -> bool {
    const EXACT: &[&str] = &[
        "CARGO",
        "CLIPPY_ARGS",
        "DEBUG",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTC",
        "RUSTC_BOOTSTRAP",
        "RUSTC_LINKER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTDOC",
        "RUSTDOCFLAGS",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "TARGET",
    ];
    const KEPT: &[&str] =
        &["HOME", "HTTP_", "INCREMENTAL", "MAKEFLAGS", "NET_", "REGISTR", "SOURCE_", "TERM_"];

    match key.strip_prefix("CARGO_") {
        Some(rest) => !KEPT.iter().any(|kept| rest.starts_with(kept)),
        None => EXACT.contains(&key) || key.starts_with("DEP_"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_build_is_forgotten() {
        for key in [
            "CARGO",
            "CARGO_BUILD_TARGET",
            "CARGO_CFG_TARGET_ARCH",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_FEATURE_CLI",
            "CARGO_MANIFEST_DIR",
            "CARGO_PKG_NAME",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER",
            "CARGO_TARGET_DIR",
            "DEP_Z_ROOT",
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(is_of_outer_build(key), "{key}");
        }
    }

    #[test]
    fn the_users_settings_stay() {
        for key in [
            "CARGO_HOME",
            "CARGO_HTTP_PROXY",
            "CARGO_MAKEFLAGS",
            "CARGO_NET_OFFLINE",
            "CARGO_REGISTRIES_LOCAL_INDEX",
            "CARGO_TERM_COLOR",
            "HOME",
            "PATH",
            "RUSTUP_HOME",
            "RUST_BACKTRACE",
        ] {
            assert!(!is_of_outer_build(key), "{key}");
        }
    }

    #[test]
    fn linker_is_found_first() {
        let path = path_with(Path::new("/w/target/tools/bin/bpf-linker")).expect("no colon");
        assert_eq!(env::split_paths(&path).next().as_deref(), Some(Path::new("/w/target/tools/bin")));
    }
}
