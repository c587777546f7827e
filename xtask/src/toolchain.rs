//! Which Rust toolchain builds the eBPF crate.
//!
//! The eBPF targets have no prebuilt `core`, so it takes a rustc that comes with the library's source and accepts
//! unstable flags, and a `bpf-linker` whose LLVM is no older than that rustc's. Two sources are looked at, in this
//! order:
//!
//! 1. a nightly of rustup with the `rust-src` component, with `bpf-linker` on `PATH` or in the project's tools;
//! 2. the system's `/usr/bin/rustc` with the source at `/usr/lib/rustlib/src/rust` (Debian: `rustc-web` and
//!    `rust-web-src`), with a `bpf-linker` built against the same LLVM in the project's tools.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

/// The bpf-linker release that the project is built with.
pub const BPF_LINKER_VERSION: &str = "0.13.0";
/// The major version of the LLVM that the system's rustc and bpf-linker share.
pub const LLVM_VERSION: u32 = 22;

/// The library's source below a sysroot; without it `-Z build-std` has nothing to build.
const LIBRARY_SOURCE: &str = "lib/rustlib/src/rust/library/core/Cargo.toml";
const SYSTEM_SYSROOT: &str = "/usr";

/// How to build the eBPF crate: every program by its full path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// Where rustc came from.
    pub origin: Origin,
    /// The rustc that has the library's source.
    pub rustc: PathBuf,
    /// A cargo to drive it; not always of the same toolchain.
    pub cargo: OsString,
    /// `cargo-clippy` with a `clippy-driver` of the same release as rustc beside it, where there is one.
    pub cargo_clippy: Option<PathBuf>,
    /// `bpf-linker`.
    pub linker: PathBuf,
}

/// Where a toolchain came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The rustup toolchain of this name.
    Rustup(String),
    /// The system's packages.
    System,
}

impl Toolchain {
    /// The files whose change makes the eBPF object stale.
    #[must_use]
    pub fn inputs(&self) -> [&Path; 2] {
        [&self.rustc, &self.linker]
    }
}

/// One thing that the build lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The piece.
    pub piece: Piece,
    /// What it is needed for.
    pub purpose: &'static str,
}

/// The pieces of the system's toolchain, each of which can be missing by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The compiler.
    Rustc,
    /// The library's source.
    LibrarySource,
    /// bpf-linker.
    BpfLinker,
}

impl Piece {
    /// The package's name: Debian's, or the crate's for bpf-linker.
    #[must_use]
    pub const fn package(self) -> &'static str {
        match self {
            Self::Rustc => "rustc-web",
            Self::LibrarySource => "rust-web-src",
            Self::BpfLinker => "bpf-linker",
        }
    }

    /// What to type to install it, in the workspace's root.
    #[must_use]
    pub fn command(self) -> String {
        match self {
            Self::Rustc | Self::LibrarySource => {
                format!("apt-get install --no-install-recommends {}", self.package())
            }
            Self::BpfLinker => format!(
                "LLVM_PREFIX={} cargo {} --root target/tools",
                llvm_prefix(),
                bpf_linker_install_args().join(" ")
            ),
        }
    }
}

/// Where Debian's LLVM packages install the LLVM that bpf-linker is built against.
#[must_use]
pub fn llvm_prefix() -> String {
    format!("/usr/lib/llvm-{LLVM_VERSION}")
}

/// cargo's arguments to install bpf-linker; the caller adds `--root` and sets `LLVM_PREFIX`.
#[must_use]
pub fn bpf_linker_install_args() -> Vec<String> {
    vec![
        "install".into(),
        format!("bpf-linker@{BPF_LINKER_VERSION}"),
        "--locked".into(),
        "--no-default-features".into(),
        "--features".into(),
        format!("llvm-{LLVM_VERSION}"),
    ]
}

/// What keeps the eBPF crate from being built, never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing(pub Vec<Need>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the eBPF toolchain is not complete")?;
        for need in &self.0 {
            write!(f, "; {}, {}: {}", need.piece.package(), need.purpose, need.piece.command())?;
        }
        Ok(())
    }
}

impl std::error::Error for Missing {}

/// Looks for a toolchain on this machine.
///
/// # Errors
///
/// What is missing, where there is none.
pub fn find(workspace_root: &Path) -> Result<Toolchain, Missing> {
    choose(probe(workspace_root))
}

/// What was found on a machine, before anything is decided.
#[derive(Clone, Debug, Default)]
struct Probe {
    rustup: Vec<Rust>,
    system: Rust,
    cargo: OsString,
    linker_on_path: Option<PathBuf>,
    linker_in_tools: Option<PathBuf>,
}

/// One installed Rust.
#[derive(Clone, Debug, Default)]
struct Rust {
    /// rustup's name for it; empty for the system's.
    name: String,
    sysroot: PathBuf,
    /// Major and minor; none where rustc does not run.
    version: Option<(u32, u32)>,
    has_source: bool,
    has_clippy: bool,
}

impl Rust {
    fn usable(&self) -> bool {
        self.has_source && self.version.is_some_and(new_enough)
    }

    fn toolchain(&self, origin: Origin, cargo: OsString, linker: PathBuf) -> Toolchain {
        let bin = self.sysroot.join("bin");
        Toolchain {
            origin,
            rustc: bin.join("rustc"),
            cargo,
            cargo_clippy: self.has_clippy.then(|| bin.join("cargo-clippy")),
            linker,
        }
    }
}

fn choose(probe: Probe) -> Result<Toolchain, Missing> {
    let any_linker = probe.linker_on_path.as_ref().or(probe.linker_in_tools.as_ref());
    if let Some((rust, linker)) = probe.rustup.iter().find(|rust| rust.usable()).zip(any_linker) {
        let cargo = rust.sysroot.join("bin/cargo").into_os_string();
        return Ok(rust.toolchain(Origin::Rustup(rust.name.clone()), cargo, linker.clone()));
    }

    let mut needs = Vec::new();
    if !probe.system.version.is_some_and(new_enough) {
        needs.push(Need { piece: Piece::Rustc, purpose: "the compiler for the eBPF crate" });
    }
    if !probe.system.has_source {
        needs.push(Need {
            piece: Piece::LibrarySource,
            purpose: "the source of core, built for the eBPF target",
        });
    }
    // One from PATH may carry an older LLVM than the system's rustc, which ends in unreadable bitcode.
    match probe.linker_in_tools {
        Some(linker) if needs.is_empty() => Ok(probe.system.toolchain(Origin::System, probe.cargo, linker)),
        Some(_) => Err(Missing(needs)),
        None => {
            needs.push(Need { piece: Piece::BpfLinker, purpose: "the linker of eBPF objects" });
            Err(Missing(needs))
        }
    }
}

fn probe(workspace_root: &Path) -> Probe {
    Probe {
        rustup: rustup_nightlies(),
        system: inspect(String::new(), Path::new(SYSTEM_SYSROOT).to_path_buf()),
        // cargo tells its children, build scripts included, which cargo it is.
        cargo: std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
        linker_on_path: crate::find_program("bpf-linker", crate::path_folders()),
        linker_in_tools: crate::find_program("bpf-linker", [crate::tools_dir(workspace_root).join("bin")]),
    }
}

fn rustup_nightlies() -> Vec<Rust> {
    // Not everybody has rustup; no answer means no toolchains.
    let Ok(output) = Command::new("rustup").args(["toolchain", "list", "-v"]).output() else {
        return Vec::new();
    };
    parse_toolchain_list(&String::from_utf8_lossy(&output.stdout))
        .into_iter()
        .filter(|(name, _)| name.starts_with("nightly"))
        .map(|(name, sysroot)| inspect(name, sysroot))
        .collect()
}

fn inspect(name: String, sysroot: PathBuf) -> Rust {
    let has_source = sysroot.join(LIBRARY_SOURCE).is_file();
    // rustup's toolchains without the source are the common case: do not start their rustc.
    let version = if has_source || name.is_empty() { version_of(&sysroot.join("bin/rustc")) } else { None };
    let bin = [sysroot.join("bin")];
    let has_clippy =
        ["cargo-clippy", "clippy-driver"].iter().all(|tool| crate::find_program(tool, &bin).is_some());
    Rust { name, sysroot, version, has_source, has_clippy }
}

fn version_of(rustc: &Path) -> Option<(u32, u32)> {
    let output = Command::new(rustc).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// `rustc 1.96.0 (ac68faa20 2026-05-25)` gives (1, 96).
fn parse_version(output: &str) -> Option<(u32, u32)> {
    let mut parts = output.strip_prefix("rustc ")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn new_enough(version: (u32, u32)) -> bool {
    let mut oldest = env!("CARGO_PKG_RUST_VERSION").split('.').map_while(|part| part.parse().ok());
    oldest.next().zip(oldest.next()).is_none_or(|oldest| version >= oldest)
}

/// Names and sysroots from `rustup toolchain list -v`: a name, perhaps remarks in brackets, and a path.
fn parse_toolchain_list(output: &str) -> Vec<(String, PathBuf)> {
    output
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.trim().split_once(char::is_whitespace)?;
            let rest = rest.trim_start();
            let path = match rest.strip_prefix('(') {
                Some(remarks) => remarks.split_once(')')?.1.trim_start(),
                None => rest,
            };
            path.starts_with('/').then(|| (name.to_owned(), PathBuf::from(path)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rust(name: &str, sysroot: &str, version: (u32, u32), has_source: bool) -> Rust {
        Rust {
            name: name.into(),
            sysroot: sysroot.into(),
            version: Some(version),
            has_source,
            has_clippy: true,
        }
    }

    fn pieces(missing: &Missing) -> Vec<Piece> {
        missing.0.iter().map(|need| need.piece).collect()
    }

    #[test]
    fn toolchain_list_with_and_without_remarks() {
        let list = "stable-x86_64-unknown-linux-gnu (active, default) /home/a b/.rustup/toolchains/stable\n\
                    nightly-2026-05-01-x86_64-unknown-linux-gnu\t/opt/n\n\
                    no toolchain here\n";
        assert_eq!(
            parse_toolchain_list(list),
            [
                ("stable-x86_64-unknown-linux-gnu".into(), "/home/a b/.rustup/toolchains/stable".into()),
                ("nightly-2026-05-01-x86_64-unknown-linux-gnu".into(), "/opt/n".into()),
            ]
        );
        assert!(parse_toolchain_list("no installed toolchains\n").is_empty());
    }

    #[test]
    fn versions() {
        assert_eq!(parse_version("rustc 1.97.0-nightly (f2d3ce0bd 2026-04-21)\n"), Some((1, 97)));
        assert_eq!(parse_version("cargo 1.95.0"), None);
        assert_eq!(parse_version(""), None);
        assert!(!new_enough((1, 63)));
        assert!(new_enough((1, 95)) && new_enough((2, 0)));
    }

    #[test]
    fn a_nightly_with_source_comes_first() {
        let chosen = choose(Probe {
            rustup: vec![
                rust("nightly-old", "/old", (1, 80), true),
                rust("nightly-bare", "/bare", (1, 97), false),
                rust("nightly", "/n", (1, 97), true),
            ],
            system: rust("", "/usr", (1, 96), true),
            cargo: "cargo".into(),
            linker_on_path: Some("/home/u/bin/bpf-linker".into()),
            linker_in_tools: Some("/w/target/tools/bin/bpf-linker".into()),
        })
        .expect("complete");
        assert_eq!(chosen.origin, Origin::Rustup("nightly".into()));
        assert_eq!(chosen.rustc, Path::new("/n/bin/rustc"));
        assert_eq!(chosen.cargo, "/n/bin/cargo");
        assert_eq!(chosen.linker, Path::new("/home/u/bin/bpf-linker"));
    }

    #[test]
    fn the_system_takes_only_the_linker_of_the_project() {
        let mut probe = Probe {
            rustup: vec![rust("nightly", "/n", (1, 97), false)],
            system: rust("", "/usr", (1, 96), true),
            cargo: "/c/cargo".into(),
            linker_on_path: Some("/home/u/bin/bpf-linker".into()),
            linker_in_tools: None,
        };
        let missing = choose(probe.clone()).expect_err("no linker of its own");
        assert_eq!(pieces(&missing), [Piece::BpfLinker]);

        probe.linker_in_tools = Some("/w/target/tools/bin/bpf-linker".into());
        let chosen = choose(probe).expect("complete");
        assert_eq!(chosen.origin, Origin::System);
        assert_eq!(chosen.cargo, "/c/cargo");
        assert_eq!(chosen.cargo_clippy.as_deref(), Some(Path::new("/usr/bin/cargo-clippy")));
        assert_eq!(chosen.linker, Path::new("/w/target/tools/bin/bpf-linker"));
    }

    #[test]
    fn an_old_system_compiler_is_as_good_as_none() {
        let missing = choose(Probe { system: rust("", "/usr", (1, 63), false), ..Probe::default() })
            .expect_err("nothing fits");
        assert_eq!(pieces(&missing), [Piece::Rustc, Piece::LibrarySource, Piece::BpfLinker]);
        let text = missing.to_string();
        assert!(text.contains("apt-get install --no-install-recommends rustc-web"), "{text}");
        assert!(text.contains("cargo install bpf-linker@0.13.0 --locked"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}
