//! Which of the project's tests run on other kernels: all that have to do with the kernel, or a few that each say much.

/// Of `mgre-user`, what needs a kernel. Of `mgre-tests`, everything does.
const OF_MGRE_USER: [&str; 3] = ["program", "netlink", "slow"];

/// What is not run, and why; of a program all, or one test.
const LEFT_OUT: [(&str, Option<&str>, &str); 6] = [
    ("scale", None, "as many of everything as there may be: takes hours where processors are emulated"),
    ("resources", None, "what memory and processor time it takes, which an emulated processor does not tell"),
    ("fuzzing", Some("what_was_kept_comes_out_right_on_the_host"), "runs without the kernel"),
    ("fuzzing", Some("new_frames_come_out_right_on_the_host"), "runs without the kernel"),
    ("fuzzing", Some("a_rule_that_is_wrong_is_noticed"), "runs without the kernel"),
    ("fuzzing", Some("no_text_upsets_a_parser"), "runs without the kernel"),
];

/// The few: the programs' cases, floods, superframes and tags in test runs; and, with daemons, clsact, both
/// families of the underlay, XDP, and TCP with offloads.
const SLICE: [(&str, Option<&str>); 13] = [
    ("program", Some("cases::the_kernel_does_what_the_host_does")),
    ("program", Some("cases::the_kernels_early_hook_does_what_the_hosts_does")),
    ("program", Some("flood::every_peer_gets_a_header_of_its_own_kind")),
    ("program", Some("flood::the_largest_segment_is_flooded_whole")),
    ("program", Some("live::superframes_are_cut_behind_the_tunnel")),
    ("program", Some("live::tags_go_through_the_tunnel")),
    ("program", Some("live::a_lapsed_lease_lets_the_kernel_find_the_next_hop")),
    ("netlink", Some("monitor::a_veth_that_becomes_a_target_for_xdp_is_told_of")),
    ("netlink", Some("neighbors::a_kept_neighbour_is_resolved_and_stays")),
    ("lifecycle", Some("clsact::detach_leaves_nothing")),
    ("ipv6", Some("a_segment_may_have_peers_of_both_families")),
    ("xdp", Some("known_unicast_takes_the_short_way_and_is_counted_once")),
    ("transport", Some("tcp_both_ways_with_offloads_and_without")),
];

/// Whether tests of a program of this package may be wanted at all.
pub(super) fn is_about_kernels(package_folder: &str, program: &str) -> bool {
    package_folder != "mgre-user" || OF_MGRE_USER.contains(&program)
}

/// Why a test is not run, if it is not.
pub(super) fn left_out(program: &str, test: &str) -> Option<&'static str> {
    let found = LEFT_OUT.iter().find(|(of, name, _)| *of == program && name.is_none_or(|name| name == test));
    found.map(|(.., why)| *why)
}

/// Whether a test is one of the few.
pub(super) fn in_slice(program: &str, test: &str) -> bool {
    SLICE.iter().any(|(of, name)| *of == program && name.is_none_or(|name| name == test))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// The source of a test program.
    fn source(program: &str) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folders = [root.join("tests/tests"), root.join("mgre-user/tests")];
        let mut text = String::new();
        for folder in folders {
            text += &fs::read_to_string(folder.join(program).with_extension("rs")).unwrap_or_default();
            for file in fs::read_dir(folder.join(program)).into_iter().flatten().flatten() {
                text += &fs::read_to_string(file.path()).unwrap_or_default();
            }
        }
        text
    }

    #[test]
    fn what_is_named_is_there() {
        let left_out = LEFT_OUT.iter().map(|(program, test, _)| (*program, *test));
        for (program, test) in left_out.chain(SLICE) {
            let source = source(program);
            assert!(!source.is_empty(), "{program}");
            let name = test.map(|test| test.rsplit("::").next().unwrap_or(test));
            assert!(name.is_none_or(|name| source.contains(&format!("fn {name}("))), "{program}: {test:?}");
        }
    }
}
