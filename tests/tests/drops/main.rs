//! Each reason for dropping a frame, triggered by real ones, and read by each way of reading it.

mod broken;
mod case;
mod floods;
mod inner;
mod nvgre;
mod outer;
mod sending;

use std::collections::BTreeSet;

use mgre_common::reason::DropReason;

use case::Case;

/// All there are.
const ALL: [&[Case]; 6] =
    [outer::CASES, inner::CASES, floods::CASES, nvgre::CASES, sending::CASES, broken::CASES];

#[test]
fn every_reason_has_a_case() {
    let has: BTreeSet<&str> = ALL.iter().copied().flatten().map(|case| case.reason.name()).collect();
    let without: Vec<&str> =
        DropReason::ALL.iter().map(|reason| reason.name()).filter(|name| !has.contains(name)).collect();
    assert!(without.is_empty(), "no case for {without:?}");
}
