//! Why a kernel may refuse maps and programs, apart from what they do: from the error number and what surrounds the
//! process, to a cause and a remedy.
//!
//! Lockdown is none of them: in either of its modes the kernel takes programs for TC and XDP (it denies helpers that
//! read kernel memory, which ours do not call).

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

const SECCOMP: &str =
    "a system call filter (seccomp) denies bpf(2): allow it, or run mgre outside the container";

/// What a process may do with BPF depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Capabilities that are missing.
    pub missing_capabilities: Vec<&'static str>,
    /// Whether the process is in a user namespace of its own, as in a container without privileges.
    pub user_namespace: bool,
    /// Whether system calls are filtered (seccomp).
    pub filtered: bool,
    /// The security modules, by name.
    pub modules: Vec<String>,
    /// The control group with the least memory limit, and the limit in bytes.
    pub memory_limit: Option<(String, u64)>,
    /// How much memory may be locked, in bytes, if that is limited. Kernels before 5.11 count maps and programs.
    pub locked_limit: Option<u64>,
}

impl Surroundings {
    /// Reads them. What cannot be read is as if it were not there.
    pub fn read(missing_capabilities: Vec<&'static str>) -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let identity = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let whole = |map: &str| map.split_whitespace().eq(["0", "0", "4294967295"]);
        let locked = getrlimit(Resource::RLIMIT_MEMLOCK).ok().map(|(soft, _)| soft);
        let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
        Self {
            missing_capabilities,
            user_namespace: !identity.is_empty() && !whole(&identity),
            filtered: status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"])),
            modules: modules.trim().split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            memory_limit: memory_limit(),
            locked_limit: locked.filter(|limit| *limit != RLIM_INFINITY),
        }
    }
}

/// The least memory limit from the process's control group upwards.
fn memory_limit() -> Option<(String, u64)> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let own: PathBuf = root.join(own);
    own.ancestors()
        .take_while(|group| group.starts_with(root))
        .filter_map(|group| {
            let limit = fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok()?;
            Some((group.strip_prefix(root).ok()?.display().to_string(), limit))
        })
        .min_by_key(|(_, limit)| *limit)
}

/// The cause of an error number, and what to do. `words` is what the verifier said, if it did.
pub fn cause(errno: Errno, words: &str, around: &Surroundings) -> Option<String> {
    if words.contains("non-JITed") {
        return Some("its BPF compiler is off: sysctl -w net.core.bpf_jit_enable=1".to_owned());
    }
    if !words.is_empty() {
        return None;
    }
    Some(match errno {
        Errno::EPERM | Errno::EACCES => denied(around),
        Errno::ENOMEM => no_memory(around),
        Errno::ENOSYS => match around.filtered {
            true => SECCOMP.to_owned(),
            false => "it was built without BPF: it takes CONFIG_BPF_SYSCALL=y".to_owned(),
        },
        Errno::E2BIG => {
            "it takes no tables of this size, or is too old: --fdb-entries and --adjacencies make them smaller"
                .to_owned()
        }
        Errno::EMFILE => "the process may not open more files: raise the limit (ulimit -n, LimitNOFILE=)".to_owned(),
        Errno::ENFILE => "the system has too many open files: raise fs.file-max".to_owned(),
        // ENOTSUPP (524) of include/linux/errno.h, which is not for programs to see and has no name here.
        Errno::UnknownErrno => {
            "it cannot compile the program: look at net.core.bpf_jit_enable and net.core.bpf_jit_limit".to_owned()
        }
        _ => return None,
    })
}

fn denied(around: &Surroundings) -> String {
    if !around.missing_capabilities.is_empty() {
        return format!("not permitted: run as root, or with {}", around.missing_capabilities.join(" and "));
    }
    if around.user_namespace {
        return "not permitted in a user namespace: BPF takes its capabilities outside (run the container privileged)"
            .to_owned();
    }
    if around.filtered {
        return SECCOMP.to_owned();
    }
    if let Some(limit) = around.locked_limit {
        return format!(
            "not permitted: a security module ({}) may deny it (look at the audit log); kernels before 5.11 also limit \
             locked memory, to {} KiB here (ulimit -l unlimited, LimitMEMLOCK=infinity)",
            modules(around),
            limit / 1024
        );
    }
    format!("a security module denies it ({}): look at the audit log", modules(around))
}

fn modules(around: &Surroundings) -> String {
    if around.modules.is_empty() { "unknown".to_owned() } else { around.modules.join(", ") }
}

fn no_memory(around: &Surroundings) -> String {
    let smaller = "--fdb-entries and --adjacencies make tables smaller";
    match &around.memory_limit {
        Some((group, limit)) => format!(
            "not enough memory for its tables: control group /{group} may have {} MiB (MemoryMax=); {smaller}",
            limit >> 20
        ),
        None => format!("not enough memory for its tables; {smaller}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(errno: Errno, around: &Surroundings) -> String {
        let text = cause(errno, "", around).expect("a cause");
        assert!(!text.contains('\n'), "{text}");
        text
    }

    #[test]
    fn a_refusal_has_a_cause_and_a_remedy() {
        let plain = Surroundings { modules: vec!["lockdown".into(), "selinux".into()], ..Default::default() };
        let capabilities = Surroundings { missing_capabilities: vec!["CAP_BPF"], ..plain.clone() };
        assert!(said(Errno::EPERM, &capabilities).contains("CAP_BPF"));
        let container = Surroundings { user_namespace: true, ..plain.clone() };
        assert!(said(Errno::EPERM, &container).contains("user namespace"));
        let filtered = Surroundings { filtered: true, ..plain.clone() };
        assert!(said(Errno::EPERM, &filtered).contains("seccomp"));
        assert!(said(Errno::ENOSYS, &filtered).contains("seccomp"));
        assert!(said(Errno::ENOSYS, &plain).contains("CONFIG_BPF_SYSCALL"));
        let memlock = Surroundings { locked_limit: Some(64 << 10), ..plain.clone() };
        assert!(said(Errno::EPERM, &memlock).contains("64 KiB"));
        assert!(said(Errno::EACCES, &plain).contains("selinux"));
        let group = Surroundings { memory_limit: Some(("system.slice/x".into(), 16 << 20)), ..plain.clone() };
        let text = said(Errno::ENOMEM, &group);
        assert!(text.contains("/system.slice/x") && text.contains("16 MiB"), "{text}");
        assert!(said(Errno::ENOMEM, &plain).contains("--fdb-entries"));
        assert!(said(Errno::E2BIG, &plain).contains("--adjacencies"));
        assert!(said(Errno::EMFILE, &plain).contains("ulimit -n"));
        assert!(said(Errno::from_raw(524), &plain).contains("bpf_jit_limit"));
        assert_eq!(cause(Errno::EINVAL, "", &plain), None);
    }

    #[test]
    fn what_the_verifier_says_comes_first() {
        let around = Surroundings { missing_capabilities: vec!["CAP_BPF"], ..Default::default() };
        assert_eq!(cause(Errno::EACCES, "R1 invalid mem access 'scalar'", &around), None);
        let jit = cause(Errno::EINVAL, "callbacks are not allowed in non-JITed programs", &around);
        assert!(jit.is_some_and(|text| text.contains("bpf_jit_enable=1")));
    }
}
