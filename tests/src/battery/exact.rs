//! Frames that must come out as they went in: all bytes, once.

use std::{collections::BTreeSet, thread, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    frames::{self, Ends, Named},
    report::Verdict,
    station::Station,
};
use crate::{
    capture::{Capture, Sender},
    packet::{BROADCAST, marked},
    wait,
};

/// How long a frame may be under way.
const LIMIT: Duration = Duration::from_millis(1500);
/// How long a frame may be under way when another one came in its place.
const LATE: Duration = Duration::from_millis(100);
/// How long a frame that came once may take to come again.
const QUIET: Duration = Duration::from_millis(100);
/// After so many that did not come, the others are not tried.
const MOST_MISSING: usize = 12;
/// The shortest frame that Ethernet carries, without its check sequence.
const SHORTEST: usize = 60;
/// How many bytes of a wrong frame are shown.
const SHOWN: usize = 64;

/// What became of the frames that were sent.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    tried: usize,
    /// Which were left out because they are not mgre's fault.
    excused: usize,
    /// Name of a frame, and what is wrong with what came.
    faults: Vec<(String, String)>,
    not_tried: usize,
}

impl Outcome {
    /// Names of the frames that did not come as they were sent.
    pub fn faulty(&self) -> impl Iterator<Item = &str> {
        self.faults.iter().map(|(name, _)| name.as_str())
    }

    /// Passed if all came.
    pub fn verdict(&self) -> Verdict {
        let Self { tried, excused, faults, not_tried } = self;
        let without = if *excused == 0 {
            String::new()
        } else {
            format!(", without {excused} that do not get through without mgre either")
        };
        if faults.is_empty() {
            return Verdict::Pass(format!("{tried} kinds of frames{without}"));
        }
        let mut words: Vec<String> = faults.iter().map(|(name, what)| format!("{name} {what}")).collect();
        if *not_tried > 0 {
            words.push(format!("{not_tried} more were not tried"));
        }
        Verdict::Fail(format!("{} of {tried} kinds of frames{without}: {}", faults.len(), words.join("; ")))
    }
}

/// Sends each frame at one station; the other must get each once, with the same bytes. Frames whose names begin with
/// one of `left_out` are not sent, nor are the `excused`.
///
/// # Errors
/// Frames cannot be sent, or not be captured.
pub fn check(
    from: &Station,
    to: &Station,
    mtu: u32,
    left_out: &[String],
    excused: &BTreeSet<String>,
) -> Result<Outcome> {
    let ends = Ends { from: from.number, to: to.number };
    let mut list = frames::catalogue(ends, usize::try_from(mtu)?)?;
    list.retain(|frame| !left_out.iter().any(|name| frame.name.starts_with(name.as_str())));
    let all = list.len();
    list.retain(|frame| !excused.contains(&frame.name));
    let mut outcome = Outcome { excused: all - list.len(), ..Outcome::default() };
    let sender = Sender::new(from.netns, from.interface)?;
    introduce(from, to, &sender)?;

    let source = frames::mac(from.number);
    let capture =
        Capture::start_where(to.netns, to.interface, move |bytes| bytes.get(6..12) == Some(&source))?;
    for frame in &list {
        if outcome.faults.len() == MOST_MISSING {
            outcome.not_tried = list.len() - outcome.tried;
            break;
        }
        outcome.tried += 1;
        let before = capture.count(|_| true);
        if let Err(error) = sender.send(&frame.bytes) {
            outcome.faults.push((frame.name.clone(), format!("cannot be sent: {error:#}")));
            continue;
        }
        let has_come = |limit| capture.wait_for(&frame.name, limit, |seen| same(frame, &seen.bytes)).is_ok();
        let something = || Ok(capture.count(|_| true) > before);
        if wait::until(&frame.name, LIMIT, something).is_err() || !has_come(LATE) {
            let came: Vec<_> = capture.frames().split_off(before);
            let what = describe(frame, came.first().map(|seen| &seen.bytes[..]));
            outcome.faults.push((frame.name.clone(), what));
        }
    }
    thread::sleep(wait::patient(QUIET));
    let seen = capture.stop();
    for frame in &list[..outcome.tried] {
        let times = seen.iter().filter(|seen| same(frame, &seen.bytes)).count();
        if times > 1 {
            outcome.faults.push((frame.name.clone(), format!("came {times} times")));
        }
    }
    Ok(outcome)
}

/// Lets every switch on the way learn where both stations are, so that frames between them are known unicast.
fn introduce(from: &Station, to: &Station, sender: &Sender) -> Result<()> {
    let back = Sender::new(to.netns, to.interface)?;
    for (number, sender, other) in [(from.number, sender, to), (to.number, &back, from)] {
        let frame = marked(BROADCAST, frames::mac(number), &format!("here is {number}"));
        let capture = Capture::start(other.netns, other.interface)?;
        sender.send(&frame)?;
        capture.wait_for("an introduction", LIMIT, |seen| seen.bytes == frame).with_context(|| {
            format!("a broadcast frame of station {number} does not reach station {}", other.number)
        })?;
    }
    Ok(())
}

/// Whether a frame is what was sent. Padding is allowed: short frames have it on a wire (IEEE 802.3 4.2.3.3), and keep
/// it where a tag is added to them (IEEE 802.1Q G.2.3).
fn same(sent: &Named, got: &[u8]) -> bool {
    let sent = &sent.bytes;
    let is_tag = |bytes: &&[u8]| matches!(bytes, [0x81 | 0x88, 0x00 | 0xa8, ..]);
    let tags = sent.get(12..).unwrap_or_default().chunks(4).take_while(is_tag).count();
    let shortest = SHORTEST + 4 * tags;
    let Some((start, padding)) = got.split_at_checked(sent.len()) else { return false };
    start == sent && (padding.is_empty() || (got.len() <= shortest && padding.iter().all(|byte| *byte == 0)))
}

fn describe(frame: &Named, came: Option<&[u8]>) -> String {
    let Some(came) = came else { return "did not come".to_owned() };
    let sent = &frame.bytes;
    let first = sent.iter().zip(came).position(|(sent, came)| sent != came);
    let place = first.unwrap_or(sent.len().min(came.len()));
    let hex =
        |bytes: &[u8]| -> String { bytes.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect() };
    format!(
        "came with {} bytes in place of {}, another one from byte {place} on: sent {} got {}",
        came.len(),
        sent.len(),
        hex(sent),
        hex(came)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_frames_may_be_padded_and_long_ones_not() {
        let sent = |length| Named { name: "x".to_owned(), bytes: vec![1; length] };
        let got = |length, padding, value| [vec![1; length], vec![value; padding]].concat();
        assert!(same(&sent(42), &got(42, 0, 0)) && same(&sent(42), &got(42, 18, 0)));
        assert!(!same(&sent(42), &got(42, 18, 7)) && !same(&sent(42), &got(42, 19, 0)));
        let mut tagged = sent(46);
        tagged.bytes[12..16].copy_from_slice(&[0x81, 0, 0, 100]);
        let padded = |length: usize| [&tagged.bytes[..], &vec![0; length]].concat();
        assert!(same(&tagged, &padded(18)) && !same(&tagged, &padded(19)));
        assert!(!same(&sent(60), &got(60, 1, 0)) && !same(&sent(60), &got(59, 0, 0)));
    }
}
