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
