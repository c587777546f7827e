//! Installing what is missing.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use xtask::toolchain::{self, LLVM_VERSION, Missing, Origin, Piece, Toolchain};

use crate::host;

/// What the machine is to be made ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To build mgre and run it, the demo and the tests.
    Run,
    /// To build mgre and check its code.
    Check,
    /// To run virtual machines.
    Machines,
    /// All of that.
    Everything,
}

/// A program that the demo and the tests call.
struct Tool {
    program: &'static str,
    package: &'static str,
    purpose: &'static str,
}

const TOOLS: [Tool; 8] = [
    Tool { program: "ip", package: "iproute2", purpose: "namespaces and links" },
    Tool { program: "tc", package: "iproute2", purpose: "what is attached to TC hooks" },
    Tool { program: "ping", package: "iputils-ping", purpose: "reachability" },
    Tool { program: "iperf3", package: "iperf3", purpose: "throughput" },
    Tool { program: "tcpdump", package: "tcpdump", purpose: "packets on the wire" },
    Tool { program: "ethtool", package: "ethtool", purpose: "offload settings" },
    Tool { program: "bpftool", package: "bpftool", purpose: "loaded programs and maps" },
    Tool { program: "curl", package: "curl", purpose: "metrics and the API" },
];

/// What makes and boots virtual machines. qemu and kernels are not installed: `cargo xtask vm` unpacks them in the
/// target folder.
const MACHINE_TOOLS: [Tool; 5] = [
    Tool { program: "busybox", package: "busybox-static", purpose: "the user space of virtual machines" },
    Tool { program: "depmod", package: "kmod", purpose: "modules of kernels of virtual machines" },
    Tool { program: "xz", package: "xz-utils", purpose: "to decompress kernels and modules" },
    Tool { program: "zstd", package: "zstd", purpose: "to decompress kernels" },
    Tool { program: "lz4", package: "lz4", purpose: "to decompress kernels" },
];

/// A package to install.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Package {
    name: String,
    purpose: &'static str,
}

impl Package {
    fn new(name: impl Into<String>, purpose: &'static str) -> Self {
        Self { name: name.into(), purpose }
    }
}

/// What there is to do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// From the system's package manager, each once.
    packages: Vec<Package>,
    bpf_linker: bool,
    /// The rustup toolchain that lacks clippy.
    clippy_for: Option<String>,
}

impl Plan {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn add(&mut self, package: Package) {
        if !self.packages.iter().any(|known| known.name == package.name) {
            self.packages.push(package);
        }
    }
}

/// Installs what is missing, and says so before each step.
pub(crate) fn run(root: &Path, purpose: Purpose) -> Result<()> {
    let plan = plan(purpose, &toolchain::find(root), |program| host::find_program(program).is_some());
    if plan.is_empty() {
        // A virtual machine's output is that of its command.
        if purpose != Purpose::Machines {
            println!("setup: nothing is missing");
        }
        return Ok(());
    }
    if !plan.packages.is_empty() {
        install_packages(&plan.packages)?;
    }
    if plan.bpf_linker {
        install_bpf_linker(root)?;
    }
    if let Some(name) = &plan.clippy_for {
        println!("setup: adding clippy to rustup's {name}");
        host::run(Command::new("rustup").args(["component", "add", "clippy", "--toolchain", name]))?;
    }
    if purpose == Purpose::Machines {
        println!("setup: done");
        return Ok(());
    }
    let toolchain = toolchain::find(root);
    if let Err(missing) = &toolchain {
        bail!(
            "{missing}; if that is installed, it is older than Rust {}, which Debian has in its security suite",
            env!("CARGO_PKG_RUST_VERSION")
        );
    }
    println!("setup: done");
    Ok(())
}

fn plan(purpose: Purpose, toolchain: &Result<Toolchain, Missing>, has: impl Fn(&str) -> bool) -> Plan {
    let mut plan = Plan::default();
    if matches!(purpose, Purpose::Machines | Purpose::Everything) {
        for tool in MACHINE_TOOLS.iter().filter(|tool| !has(tool.program)) {
            plan.add(Package::new(tool.package, tool.purpose));
        }
    }
    if purpose == Purpose::Machines {
        return plan;
    }
    if !has("cc") {
        plan.add(Package::new("gcc", "the linker of host programs"));
        plan.add(Package::new("libc6-dev", "the C library that host programs link"));
    }
    if let Err(Missing(needs)) = toolchain {
        for need in needs {
            match need.piece {
                Piece::Rustc | Piece::LibrarySource => {
                    plan.add(Package::new(need.piece.package(), need.purpose))
                }
                Piece::BpfLinker => {
                    plan.bpf_linker = true;
                    let llvm_config = format!("{}/bin/llvm-config", toolchain::llvm_prefix());
                    if !has(&llvm_config) {
                        plan.add(Package::new(format!("llvm-{LLVM_VERSION}-dev"), "the LLVM in bpf-linker"));
                    }
                    if !has("c++") {
                        plan.add(Package::new("g++", "the C++ library that LLVM links"));
                    }
                }
            }
        }
    }
    if purpose != Purpose::Check {
        for tool in TOOLS.iter().filter(|tool| !has(tool.program)) {
            plan.add(Package::new(tool.package, tool.purpose));
        }
    }
    if purpose != Purpose::Run {
        match toolchain {
            Ok(Toolchain { cargo_clippy: Some(_), .. }) => {}
            Ok(Toolchain { origin: Origin::Rustup(name), .. }) => plan.clippy_for = Some(name.clone()),
            Err(_) if has("/usr/bin/clippy-driver") => {}
            Ok(_) | Err(_) => plan.add(Package::new("rust-web-clippy", "clippy over the eBPF crate")),
        }
    }
    plan
}

/// Installs libraries that a program needs which is not installed itself.
pub(crate) fn install_libraries(names: &[String], purpose: &'static str) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    install_packages(&names.iter().map(|name| Package::new(name, purpose)).collect::<Vec<_>>())
}

fn install_packages(packages: &[Package]) -> Result<()> {
    let listed = packages
        .iter()
        .map(|package| format!("{} ({})", package.name, package.purpose))
        .collect::<Vec<_>>()
        .join(", ");
    let Some(apt_get) = host::find_program("apt-get") else {
        bail!(
            "no apt-get here, so install these by the system's own means, under its own names: {listed}; instead of \
             the rustc-web packages, `rustup toolchain install nightly --component rust-src,clippy` and a bpf-linker \
             for that nightly's LLVM on PATH will do"
        );
    };
    let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let install = ["install", "-y", "--no-install-recommends", "--no-remove"];
    let typed = format!("apt-get {} {}", install.join(" "), names.join(" "));
    let as_root = || {
        host::privileged(&apt_get, &[("DEBIAN_FRONTEND", "noninteractive".as_ref())])
            .with_context(|| format!("missing: {listed}; as root, type: apt-get update && {typed}"))
    };

    println!("setup: apt-get update");
    host::run(as_root()?.arg("update").arg("-q")).with_context(|| format!("missing: {listed}"))?;
    for package in packages {
        if !apt_has(&package.name) {
            bail!(
                "apt has no package {} here, needed for: {}; for the eBPF toolchain, `rustup toolchain install \
                 nightly --component rust-src,clippy` and a bpf-linker for its LLVM on PATH will do instead",
                package.name,
                package.purpose
            );
        }
    }
    println!("setup: {typed}");
    println!("setup: for {listed}");
    // --no-remove: Debian's plain rustc, for one, conflicts; whether to give it up is for a person to decide.
    host::run(as_root()?.args(install).args(names)).with_context(|| {
        format!("missing: {listed}; to see why, as root, type: {}", typed.replace(" -y", ""))
    })
}

fn apt_has(package: &str) -> bool {
    // Without apt-cache, apt-get install itself will complain.
    Command::new("apt-cache")
        .args(["policy", package])
        .output()
        .map_or(true, |output| has_candidate(&String::from_utf8_lossy(&output.stdout)))
}

/// Whether `apt-cache policy` found a version to install; of an unknown package it prints nothing.
fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate:"))
        .any(|candidate| candidate.trim() != "(none)")
}

fn install_bpf_linker(root: &Path) -> Result<()> {
    println!(
        "setup: building bpf-linker, the linker of eBPF objects, about a minute: {}",
        Piece::BpfLinker.command()
    );
    let mut cargo = host::cargo(root);
    cargo.env("LLVM_PREFIX", toolchain::llvm_prefix()).args(toolchain::bpf_linker_install_args());
    host::run(cargo.arg("--root").arg(xtask::tools_dir(root)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use xtask::toolchain::Need;

    fn names(plan: &Plan) -> Vec<&str> {
        plan.packages.iter().map(|package| package.name.as_str()).collect()
    }

    fn complete(clippy: bool, origin: Origin) -> Result<Toolchain, Missing> {
        Ok(Toolchain {
            origin,
            rustc: "/usr/bin/rustc".into(),
            cargo: "cargo".into(),
            cargo_clippy: clippy.then(|| "/usr/bin/cargo-clippy".into()),
            linker: "/w/target/tools/bin/bpf-linker".into(),
        })
    }

    fn nothing_found() -> Result<Toolchain, Missing> {
        let need = |piece| Need { piece, purpose: "test" };
        Err(Missing(vec![need(Piece::Rustc), need(Piece::LibrarySource), need(Piece::BpfLinker)]))
    }

    #[test]
    fn complete_machine_needs_nothing() {
        assert!(plan(Purpose::Everything, &complete(true, Origin::System), |_| true).is_empty());
        assert!(plan(Purpose::Run, &complete(false, Origin::System), |_| true).is_empty());
    }

    #[test]
    fn virtual_machines_need_no_toolchain() {
        let plan = plan(Purpose::Machines, &nothing_found(), |tool| tool != "lz4");
        assert_eq!(names(&plan), ["lz4"]);
        assert!(!plan.bpf_linker);
    }

    #[test]
    fn each_package_once() {
        let plan = plan(Purpose::Run, &complete(false, Origin::System), |tool| {
            !["ip", "tc", "curl"].contains(&tool)
        });
        assert_eq!(names(&plan), ["iproute2", "curl"]);
        assert!(!plan.bpf_linker);
    }

    #[test]
    fn empty_machine_needs_everything() {
        let plan = plan(Purpose::Everything, &nothing_found(), |_| false);
        assert_eq!(
            names(&plan),
            [
                "busybox-static",
                "kmod",
                "xz-utils",
                "zstd",
                "lz4",
                "gcc",
                "libc6-dev",
                "rustc-web",
                "rust-web-src",
                "llvm-22-dev",
                "g++",
                "iproute2",
                "iputils-ping",
                "iperf3",
                "tcpdump",
                "ethtool",
                "bpftool",
                "curl",
                "rust-web-clippy"
            ]
        );
        assert!(plan.bpf_linker);
    }

    #[test]
    fn clippy_comes_from_where_rustc_came_from() {
        let nightly = Origin::Rustup("nightly".into());
        let of_rustup = plan(Purpose::Check, &complete(false, nightly), |_| false);
        assert_eq!(of_rustup.clippy_for.as_deref(), Some("nightly"));
        assert_eq!(names(&of_rustup), ["gcc", "libc6-dev"]);
        let of_system = plan(Purpose::Check, &complete(false, Origin::System), |_| true);
        assert_eq!(names(&of_system), ["rust-web-clippy"]);
    }

    #[test]
    fn candidates() {
        assert!(has_candidate("curl:\n  Installed: (none)\n  Candidate: 7.88.1-10\n"));
        assert!(!has_candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!has_candidate(""));
    }
}
