//! The fuzzer, for a few seconds: what it kept, and a fixed number of new frames, on the host and in the kernel. Longer
//! runs: `cargo xtask fuzz`.

#![expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]

use std::thread;
use std::time::Duration;

use mgre_tests::fuzz::run::{Budget, check_on_host, on_host};
use mgre_tests::fuzz::{corpus, kernel, parsers};
use mgre_tests::model::flaw::Flaw;
use mgre_tests::skip::skip;

/// Where the random numbers start.
const SEED: u64 = 20;

/// A number of executions, however long they take.
fn executions(executions: u64) -> Budget {
    Budget { executions, time: Duration::from_secs(600) }
}

#[test]
fn what_was_kept_comes_out_right_on_the_host() {
    let samples = corpus::read(&corpus::path("pipeline")).unwrap();
    assert!(samples.len() > 100, "{}", samples.len());
    for sample in samples {
        check_on_host(&sample, None).unwrap_or_else(|what| panic!("{sample:x?}\n{what}"));
    }
}

#[test]
fn new_frames_come_out_right_on_the_host() {
    let statistics =
        on_host(SEED, executions(100_000), None).unwrap_or_else(|difference| panic!("{difference}"));
    println!("{statistics}");
    // It is no test if most frames are refused early.
    assert!(statistics.reasons.len() > 18, "{:?}", statistics.reasons);
    for end in ["into a tunnel", "to a port", "flooded", "to be finished", "(too big, told)"] {
        assert!(statistics.ends[end] * 500 > statistics.frames, "{end}: {:?}", statistics.ends);
    }
    assert!(statistics.early * 50 > statistics.frames);
}

/// Each rule that the model gets wrong is seen.
#[test]
fn a_rule_that_is_wrong_is_noticed() {
    std::panic::set_hook(Box::new(|_| ()));
    let unnoticed: Vec<_> =
        Flaw::ALL.into_iter().filter(|flaw| on_host(SEED, executions(60_000), Some(*flaw)).is_ok()).collect();
    drop(std::panic::take_hook());
    assert_eq!(unnoticed, []);
}

/// Runs something in a thread of its own, whose network namespace goes with it, if programs can be loaded here.
fn with_programs(test: impl FnOnce() + Send + 'static) {
    if let Some(missing) = kernel::missing() {
        skip(&missing);
        return;
    }
    if let Err(panic) = thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn what_was_kept_comes_out_right_in_the_kernel() {
    with_programs(|| {
        let samples = corpus::read(&corpus::path("pipeline")).unwrap();
        let statistics = kernel::replay(&samples).unwrap_or_else(|difference| panic!("{difference}"));
        assert!(statistics.executions > 200, "{statistics}");
    });
}

#[test]
fn new_frames_come_out_right_in_the_kernel() {
    with_programs(|| {
        let statistics = kernel::in_kernel(SEED, executions(60_000), None);
        let statistics = statistics.unwrap_or_else(|difference| panic!("{difference}"));
        println!("{statistics}");
        assert!(statistics.ends["flooded"] * 50 > statistics.frames && statistics.copies_seen.0 > 1000);
    });
}

#[test]
fn a_rule_that_is_wrong_is_noticed_in_the_kernel() {
    with_programs(|| {
        let flaw = Some(Flaw::CongestionForgotten);
        assert!(kernel::in_kernel(SEED, executions(60_000), flaw).is_err());
    });
}

#[test]
fn no_text_upsets_a_parser() {
    for text in corpus::read_bytes(&corpus::path("api")).unwrap() {
        parsers::check(&text);
        // Nor does a part of it.
        for len in 0..text.len() {
            parsers::check(&text[..len]);
        }
    }
}
