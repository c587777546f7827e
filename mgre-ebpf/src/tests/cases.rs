//! The list of cases that the kernel is tested with too.

use std::collections::HashSet;

use crate::host::cases;

#[test]
fn everything_happens_as_expected_and_nothing_else() {
    let mut failed = 0;
    for case in cases::all() {
        let observed = case.run_on_host();
        if observed != case.expected {
            failed += 1;
            println!("{}:\n expected {:x?}\n observed {observed:x?}", case.name, case.expected);
        }
    }
    assert_eq!(failed, 0, "cases failed");
}

#[test]
fn cases_have_names_of_their_own() {
    let mut names = HashSet::new();
    for case in cases::all() {
        assert!(names.insert(case.name.clone()), "{}", case.name);
    }
    println!("{} cases", names.len());
}

/// An early hook finishes a frame as the last one would have, or leaves it as it was.
#[test]
fn an_early_hook_changes_nothing() {
    let (mut failed, mut finished) = (0, 0);
    // No card gives XDP a superframe, or a tag beside a frame.
    for case in cases::all().into_iter().filter(|case| case.segment_size == 0 && case.tag.is_none()) {
        let (observed, early) = case.run_early_on_host();
        finished += u32::from(early);
        if observed != case.expected {
            failed += 1;
            println!("{}:\n expected {:x?}\n observed {observed:x?}", case.name, case.expected);
        }
    }
    assert_eq!(failed, 0, "cases failed");
    assert!(finished > 100, "{finished}");
}
