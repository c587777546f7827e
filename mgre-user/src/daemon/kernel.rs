//! What this kernel does without, and what that means.

use std::fs;
use std::path::Path;

use crate::api::messages::KernelView;

/// Flags of `bpf_skb_adjust_room` for taking headers off (include/uapi/linux/bpf.h).
const DECAP_L3: u32 = 1 << 7 | 1 << 8;
const DECAP_L4_GRE: u32 = 1 << 9;

/// What was found out about the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kernel {
    /// Its release.
    pub(super) release: String,
    /// Whether it has TCX.
    pub(super) tcx: bool,
    /// Flags that it knows for taking headers off.
    pub(super) strip_flags: u32,
    /// Whether it tells what interfaces can do with XDP.
    pub(super) tells_features: bool,
    /// Whether it waits for programs when asked to (`membarrier(2)`).
    pub(super) waits_for_programs: bool,
}

impl Kernel {
    /// For `status`.
    pub(super) fn view(&self) -> KernelView {
        let notes = notes(setting("bpf_jit_enable"), setting("bpf_jit_harden"));
        KernelView { release: self.release.clone(), missing: self.missing(), notes }
    }

    /// A line for each thing that newer kernels have, and mgre would use.
    fn missing(&self) -> Vec<String> {
        let lines = [
            (
                self.tcx,
                "TCX (Linux 6.6): programs are filters on a clsact qdisc; making one interrupts what an interface \
                 sends for some milliseconds",
            ),
            (
                self.tells_features,
                "netdev netlink family (Linux 6.3): nothing says which drivers run XDP programs, so interfaces get TC \
                 alone unless asked for (--mode native), and XDP redirects to none",
            ),
            (
                self.strip_flags & DECAP_L3 == DECAP_L3,
                "BPF_F_ADJ_ROOM_DECAP_L3 (Linux 6.2): the kernel is not told which IP version was inside a tunnel",
            ),
            (
                self.strip_flags & DECAP_L4_GRE != 0,
                "BPF_F_ADJ_ROOM_DECAP_L4_GRE (after Linux 6.18): a GSO packet of IPv6 that leaves one tunnel for another \
                 in this host is cut on the way, which is slower",
            ),
            (
                version(&self.release) >= Some((5, 16)),
                "NTF_EXT_MANAGED (Linux 5.16): next hops are asked for now and then, not kept by the kernel",
            ),
            (
                self.waits_for_programs,
                "membarrier on this kernel (nohz_full): a changed next hop waits 50 ms for running programs",
            ),
        ];
        lines.into_iter().filter(|(there, _)| !there).map(|(_, line)| line.to_owned()).collect()
    }

    /// Logs what an operator may want to change.
    pub(super) fn warn(&self) {
        for note in self.view().notes {
            tracing::warn!("{note}");
        }
        for line in self.missing() {
            tracing::debug!("this kernel has no {line}");
        }
    }
}

/// What settings of the kernel cost, or will.
fn notes(jit: Option<u32>, harden: Option<u32>) -> Vec<String> {
    let mut notes = Vec::new();
    if jit == Some(0) {
        notes.push(
            "net.core.bpf_jit_enable is 0: the next daemon cannot start, since its programs must be compiled"
                .to_owned(),
        );
    }
    if harden.is_some_and(|level| level >= 2) {
        notes.push(
            "net.core.bpf_jit_harden is 2: programs are compiled with blinded constants, which is slower"
                .to_owned(),
        );
    }
    notes
}

fn setting(name: &str) -> Option<u32> {
    fs::read_to_string(Path::new("/proc/sys/net/core").join(name)).ok()?.trim().parse().ok()
}

/// Major and minor number of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether `membarrier(2)` waits for programs (`MEMBARRIER_CMD_GLOBAL`).
pub(super) fn waits_for_programs() -> bool {
    const QUERY: libc::c_int = 0;
    const GLOBAL: libc::c_long = 1;
    // SAFETY: no memory is passed.
    let known = unsafe { libc::syscall(libc::SYS_membarrier, QUERY, 0, 0) };
    known >= 0 && known & GLOBAL != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Kernel {
        Kernel {
            release: "7.3.4+deb13-cloud-amd64".into(),
            tcx: true,
            strip_flags: DECAP_L3 | DECAP_L4_GRE,
            tells_features: true,
            waits_for_programs: true,
        }
    }

    #[test]
    fn a_new_kernel_lacks_nothing() {
        assert!(all().missing().is_empty(), "{:?}", all().missing());
    }

    #[test]
    fn what_an_old_one_lacks_is_a_line_each() {
        let old =
            Kernel { release: "6.1.0-56-cloud-amd64".into(), waits_for_programs: true, ..Kernel::default() };
        let missing = old.missing();
        let starts: Vec<_> = missing.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(starts, ["TCX", "netdev", "BPF_F_ADJ_ROOM_DECAP_L3", "BPF_F_ADJ_ROOM_DECAP_L4_GRE"]);
        assert!(missing.iter().all(|line| !line.contains('\n')));
        let half = Kernel { strip_flags: 1 << 7 | DECAP_L4_GRE, ..all() };
        assert_eq!(half.missing().len(), 1);
    }

    #[test]
    fn settings_that_cost_are_noted() {
        assert!(notes(Some(1), Some(1)).is_empty() && notes(None, None).is_empty());
        assert_eq!(notes(Some(0), Some(2)).len(), 2);
    }
}
