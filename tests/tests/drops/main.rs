//! Each reason for dropping a frame, triggered by real ones, and read by each way of reading it.

mod broken;
mod case;
mod inner;
mod nvgre;
mod outer;
mod sending;

use std::collections::BTreeSet;

use mgre_common::reason::DropReason;

use case::Case;

/// All there are.
const ALL: [&[Case]; 5] = [outer::CASES, inner::CASES, nvgre::CASES, sending::CASES, broken::CASES];

/// Reasons that nothing in the datapath gives yet.
const NOT_GIVEN: [DropReason; 2] = [DropReason::Loop, DropReason::StormLimit];

#[test]
fn every_reason_has_a_case() {
    let has: BTreeSet<&str> = ALL.iter().copied().flatten().map(|case| case.reason.name()).collect();
    let without: Vec<&str> = DropReason::ALL
        .iter()
        .filter(|reason| !NOT_GIVEN.contains(reason))
        .map(|reason| reason.name())
        .filter(|name| !has.contains(name))
        .collect();
    assert!(without.is_empty(), "no case for {without:?}");
}
