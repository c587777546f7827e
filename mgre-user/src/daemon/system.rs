//! What the daemon needs of the system before it can start.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::sys::utsname::uname;

/// Helpers that programs call and old kernels lack: the kind of program, the helper, and the kernel that it came with.
const HELPERS: [(ProgramType, BpfHelper, &str, &str); 4] = [
    (ProgramType::Xdp, BpfHelper::BPF_FUNC_xdp_store_bytes, "bpf_xdp_store_bytes", "5.18"),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_loop, "bpf_loop", "5.17"),
    (
        ProgramType::SchedClassifier,
        BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
        "bpf_ktime_get_coarse_ns",
        "5.11",
    ),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_redirect_peer, "bpf_redirect_peer", "5.10"),
];

/// With fewer descriptors there may be too few for tables, programs, ports and connections.
const FEW_DESCRIPTORS: u64 = 1024;

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Checks privileges.
///
/// # Errors
/// What is missing.
pub(super) fn check_privileges() -> Result<()> {
    match lacking()? {
        [] => Ok(()),
        missing => bail!("not permitted: run as root, or with {}", missing.join(" and ")),
    }
}

/// The capabilities that the process needs and lacks.
///
/// # Errors
/// The kernel does not say.
pub(super) fn lacking() -> Result<&'static [&'static str]> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .context("cannot tell this process's capabilities")?;
    Ok(missing_capabilities(effective))
}

fn missing_capabilities(effective: u64) -> &'static [&'static str] {
    let has = |capability: u32| effective & 1 << capability != 0;
    let bpf = has(CAP_SYS_ADMIN) || has(CAP_BPF) && has(CAP_PERFMON);
    match (has(CAP_NET_ADMIN), bpf) {
        (true, true) => &[],
        (false, true) => &["CAP_NET_ADMIN"],
        (true, false) => &["CAP_BPF", "CAP_PERFMON"],
        (false, false) => &["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"],
    }
}

/// Lets the process have as many descriptors as it may. What it has by itself may be for `select(2)`, which is not
/// used here.
pub(super) fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if hard < FEW_DESCRIPTORS {
            tracing::warn!(
                "may have {hard} open files only (ulimit -Hn): not enough for many ports and clients"
            );
        }
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!("cannot have more open files: {error}");
    }
}

/// The running kernel's release.
///
/// # Errors
/// The kernel does not say.
pub(super) fn kernel_release() -> Result<String> {
    Ok(uname().context("cannot tell the kernel's release")?.release().to_string_lossy().into_owned())
}

/// Checks that the kernel has what the programs call, by asking it: some kernels have more than their number says.
///
/// # Errors
/// It has not.
pub(super) fn check_kernel(release: &str) -> Result<()> {
    let lacks = |(program, helper): (ProgramType, BpfHelper)| match is_helper_supported(program, helper) {
        Ok(there) => !there,
        // Loading the programs says why.
        Err(error) => {
            tracing::debug!(%error, "cannot ask the kernel for a helper");
            false
        }
    };
    let missing: Vec<_> = HELPERS.iter().filter(|(program, helper, ..)| lacks((*program, *helper))).collect();
    let names: Vec<_> = missing.iter().map(|(.., name, since)| format!("{name} (Linux {since})")).collect();
    ensure!(names.is_empty(), too_old(release, &names));
    Ok(())
}

fn too_old(release: &str, missing: &[String]) -> String {
    format!(
        "kernel {release} is too old: it has no {}; mgre needs Linux 5.18, and is tested on 6.1 and newer",
        missing.join(", ")
    )
}

/// Has the allocator give memory back to the system that one request needed and the next may not for hours:
/// a document of ten thousand peers, the text of all their numbers.
pub(super) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, 256 * 1024), (libc::M_TRIM_THRESHOLD, 1024 * 1024), (libc::M_ARENA_MAX, 2)]
    {
        // SAFETY: no memory is passed.
        if unsafe { libc::mallopt(parameter, value) } == 0 {
            tracing::debug!(parameter, "the allocator does not know this parameter");
        }
    }
}

/// Gives back what lies unused between what is used.
pub(super) fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no memory is passed, and none that is in use is touched.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes sure that a bpf file system is mounted.
///
/// # Errors
/// It is not, and cannot be.
pub(super) fn ensure_bpffs(directory: &Path) -> Result<()> {
    if !directory.exists() {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let there = statfs(directory).with_context(|| format!("cannot look at {}", directory.display()))?;
    if there.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    let at = directory.display();
    mount(Some("bpf"), directory, Some("bpf"), MsFlags::empty(), Some("mode=0700")).with_context(|| {
        format!("{at} is no bpf file system and cannot be made one: try mount -t bpf bpf {at}")
    })?;
    tracing::info!("mounted a bpf file system at {at}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_refused_by_name() {
        let text = too_old("5.15.0-100-generic", &["bpf_loop (Linux 5.17)".to_owned()]);
        assert!(text.contains("5.15.0-100-generic") && text.contains("no bpf_loop (Linux 5.17)"), "{text}");
        assert!(!text.contains('\n'));
    }

    #[test]
    fn missing_privileges_are_named() {
        assert!(missing_capabilities(u64::MAX).is_empty());
        assert_eq!(missing_capabilities(0), ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing_capabilities(1 << CAP_SYS_ADMIN), ["CAP_NET_ADMIN"]);
        assert_eq!(missing_capabilities(1 << CAP_NET_ADMIN | 1 << CAP_BPF), ["CAP_BPF", "CAP_PERFMON"]);
    }
}
