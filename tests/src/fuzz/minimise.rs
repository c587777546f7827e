//! The smallest sample that still shows a difference.

use super::Sample;
use crate::model::Moment;

/// Makes a sample smaller as long as it still fails.
pub fn minimise(sample: &Sample, mut fails: impl FnMut(&Sample) -> bool) -> Sample {
    let mut best = sample.clone();
    let mut keep = |best: &mut Sample, change: &dyn Fn(&mut Sample)| {
        let mut smaller = best.clone();
        change(&mut smaller);
        if smaller != *best && fails(&smaller) {
            *best = smaller;
        }
    };
    keep(&mut best, &|sample| sample.input.moment = Moment::default());
    keep(&mut best, &|sample| sample.input.tag = None);
    keep(&mut best, &|sample| sample.input.segment_size = 0);
    // From the end, in ever smaller pieces.
    let mut piece = best.input.bytes.len() / 2;
    while piece > 0 {
        let len = best.input.bytes.len();
        keep(&mut best, &|sample| sample.input.bytes.truncate(len.saturating_sub(piece)));
        if best.input.bytes.len() == len {
            piece /= 2;
        }
    }
    for at in (0..best.input.bytes.len()).take(200) {
        keep(&mut best, &|sample| sample.input.bytes[at] = 0);
    }
    best
}
