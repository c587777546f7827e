//! What the daemon needs of the system before it can start.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::sys::utsname::uname;

/// The oldest kernel: TCX came with 6.6 (commit e420bed02507).
const OLDEST_KERNEL: (u32, u32) = (6, 6);

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
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .context("cannot tell this process's capabilities")?;
    match missing_capabilities(effective) {
        [] => Ok(()),
        missing => bail!("not permitted: run as root, or with {}", missing.join(" and ")),
    }
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

/// Checks that the kernel is new enough.
///
/// # Errors
/// It is not.
pub(super) fn check_kernel(release: &str) -> Result<()> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => bail!("cannot tell how new kernel {release} is"),
    };
    let (major, minor) = OLDEST_KERNEL;
    ensure!(
        version >= OLDEST_KERNEL,
        "kernel {release} is too old: mgre needs Linux {major}.{minor} or newer"
    );
    Ok(())
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
        for good in ["6.6.0", "6.18.44-custom", "7.3.1+deb13-cloud-amd64", "10.0"] {
            check_kernel(good).expect(good);
        }
        for old in ["6.5.13", "5.15.0-100-generic", "4.19"] {
            let error = check_kernel(old).expect_err(old).to_string();
            assert!(error.contains(old) && error.contains("6.6"), "{error}");
        }
        assert!(check_kernel("strange").is_err());
    }

    #[test]
    fn missing_privileges_are_named() {
        assert!(missing_capabilities(u64::MAX).is_empty());
        assert_eq!(missing_capabilities(0), ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing_capabilities(1 << CAP_SYS_ADMIN), ["CAP_NET_ADMIN"]);
        assert_eq!(missing_capabilities(1 << CAP_NET_ADMIN | 1 << CAP_BPF), ["CAP_BPF", "CAP_PERFMON"]);
    }
}
