//! Any bytes as what is written to the daemon.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mgre_tests::fuzz::parsers::check;

fuzz_target!(|bytes: &[u8]| check(bytes));
