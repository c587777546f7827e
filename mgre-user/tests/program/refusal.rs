//! What is said of a program that the kernel refuses.

use std::time::{Duration, Instant};

use mgre_user::datapath::load::{Capacity, load};
use mgre_user::datapath::refusal::{Refused, explain};
use mgre_user::object::object;

use crate::kernel::in_namespace;

const CAPACITY: Capacity = Capacity { fdb_entries: 16, adjacencies: 16 };

/// The object with an instruction that no verifier takes: it reads by a register that was never written.
fn broken() -> &'static [u8] {
    // r6 = r1, as programs begin; r6 = *(u64 *)(r0 + 0).
    const COPY: [u8; 8] = [0xbf, 0x16, 0, 0, 0, 0, 0, 0];
    const READ: [u8; 8] = [0x79, 0x06, 0, 0, 0, 0, 0, 0];
    let whole = object().unwrap();
    let mut aligned = vec![0_u64; whole.len().div_ceil(8)];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut aligned);
    bytes[..whole.len()].copy_from_slice(whole);
    let places: Vec<_> = (0..whole.len()).step_by(8).filter(|at| bytes[*at..].starts_with(&COPY)).collect();
    assert!(!places.is_empty(), "no program begins as expected");
    for at in places {
        bytes[at..at + 8].copy_from_slice(&READ);
    }
    &bytemuck::cast_slice::<u64, u8>(Vec::leak(aligned))[..whole.len()]
}

#[test]
fn a_refused_program_is_explained_in_three_lines() {
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("verifier.log");
        let object = broken();
        let started = Instant::now();
        let error = load(object, CAPACITY).err().expect("it is refused");
        assert!(error.downcast_ref::<Refused>().is_some(), "{error:#}");
        let text = format!("{:#}", explain(error, object, CAPACITY, "9.9.9-test", Vec::new(), &log));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].contains("9.9.9-test") && lines[0].contains("the program mgre_"), "{text}");
        assert!(lines[1].starts_with("at instruction ") && lines[1].contains("!read_ok"), "{text}");
        assert!(lines[2].contains(&log.display().to_string()), "{text}");
        let kept = std::fs::read_to_string(&log).unwrap();
        assert!(kept.contains("!read_ok") && kept.len() <= 64 * 1024, "{} bytes", kept.len());
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    });
}

#[test]
fn an_error_of_another_kind_stays() {
    let error = anyhow::anyhow!("cannot open /dev/urandom");
    let log = std::path::Path::new("/nonexistent");
    let same = explain(error, object().unwrap_or(&[]), CAPACITY, "9.9.9-test", Vec::new(), log);
    assert_eq!(same.to_string(), "cannot open /dev/urandom");
}
