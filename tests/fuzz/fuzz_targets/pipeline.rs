//! Any bytes as a frame in a network, through the pipeline on the host and the model.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mgre_tests::fuzz::code::decode;
use mgre_tests::fuzz::run::check_on_host;

fuzz_target!(|bytes: &[u8]| {
    if let Err(what) = check_on_host(&decode(bytes), None) {
        panic!("{what}");
    }
});
