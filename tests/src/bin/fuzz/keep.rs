//! Chooses samples to be kept: for everything that can become of a frame, the shortest one.

use std::collections::BTreeMap;

use anyhow::Result;
use mgre_ebpf::host::cases::Entrance;
use mgre_tests::fuzz::generate::Generator;
use mgre_tests::fuzz::worlds::world;
use mgre_tests::fuzz::{Sample, code, corpus};
use mgre_tests::model::{Input, Model, Prediction};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

/// The longest sample that is kept, in bytes.
const MAX_LEN: usize = 600;
/// Networks whose frames are looked at.
const WORLDS: u64 = 40;

/// What became of a frame, and of what kind it was, in a line.
fn signature(input: &Input, prediction: &Prediction) -> String {
    let outcome = &prediction.outcome;
    let drops: Vec<_> =
        outcome.drops.keys().map(|(_, direction, reason)| (*direction, reason.name())).collect();
    let outputs: Vec<_> =
        outcome.outputs.iter().map(|output| (output.egress.side, output.mark != 0)).collect();
    let told = (outcome.too_big.len(), outcome.flooded.is_some());
    format!(
        "{}: {:?}, {drops:?}, {:?}, {told:?}, superframe {}",
        match input.entrance {
            Entrance::Port(_) => "port",
            Entrance::Underlay => "underlay",
            Entrance::Slow(0) => "slow interface",
            Entrance::Slow(_) => "finished",
        },
        outcome.end,
        outputs.first(),
        input.segment_size != 0,
    )
}

/// Looks at so many frames, and adds what is new to the corpus.
pub(crate) fn keep(frames: u64, seed: u64) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut kept: BTreeMap<String, Sample> = BTreeMap::new();
    for number in 0..WORLDS {
        let number = if number < WORLDS / 2 { 0 } else { rng.random() };
        let description = world(number);
        let (model, generator) = (Model::new(&description), Generator::new(&description));
        for _ in 0..frames / WORLDS {
            let input = generator.input(&mut rng);
            if input.bytes.len() < 14 {
                continue;
            }
            let prediction = model.predict(&input);
            let sample = Sample { world: number, input };
            let signature = signature(&sample.input, &prediction);
            let len = |sample: &Sample| code::encode(sample).len();
            match kept.get(&signature) {
                Some(before) if len(before) <= len(&sample) => {}
                _ => drop(kept.insert(signature, sample)),
            }
        }
    }
    let short = kept.into_iter().filter(|(_, sample)| code::encode(sample).len() <= MAX_LEN);
    corpus::add(&corpus::path("pipeline"), short)
}
