//! The journal's form: units that are written in one go, one a line.
//!
//! ```text
//! 1b851995 000001a4 {"version":2,"generation":3,"changes":[{"state":{"peers":{"b":{...}}}},...]}
//! ```
//!
//! The first number is the CRC-32 of that of the line before and of the rest of the line, so that no line can be
//! changed, removed or moved with others after it; the second is the length of the JSON. The generation is that of the
//! snapshot that the journal goes on from.
//!
//! A unit is on the disk whole before anybody is told so, and nothing is written after one that is not: so only the
//! last one can be torn. One that is torn is short, or ends in blocks that were never written; one that has all its
//! bytes was answered for, and if they are wrong, it is damaged.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::store::Saved;
use crate::model::Record;
use crate::model::state::{STATE_VERSION, is_readable};

/// Digits of a checksum, and of a length.
const DIGITS: usize = 8;
/// So many zeros in a row were never written.
const ZEROS: usize = 16;

/// One change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// What the wanted state has become.
    #[serde(default, skip_serializing_if = "Record::is_empty")]
    pub(super) state: Record,
    /// What [`Saved::promiscuous`] has become, if it changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) promiscuous: Option<BTreeSet<String>>,
}

impl Entry {
    /// Whether it says nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.state.is_empty() && self.promiscuous.is_none()
    }

    /// Makes what was saved what this says.
    pub(super) fn replay(self, saved: &mut Saved) {
        saved.state.replay(self.state);
        if let Some(promiscuous) = self.promiscuous {
            saved.promiscuous = promiscuous;
        }
    }
}

#[derive(Serialize)]
struct Unit<'a> {
    version: u32,
    generation: u64,
    changes: &'a [Entry],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnedUnit {
    version: u32,
    #[serde(default)]
    generation: u64,
    changes: Vec<Entry>,
}

/// Where a chain of lines begins.
pub(super) const START: u32 = 0;

/// The line for some changes after one with the checksum `before`, and its own checksum.
///
/// # Errors
/// None that these types can cause.
pub(super) fn unit(before: u32, generation: u64, changes: &[Entry]) -> Result<(Vec<u8>, u32)> {
    let json = serde_json::to_string(&Unit { version: STATE_VERSION, generation, changes })?;
    let rest = format!("{:0DIGITS$x} {json}", json.len());
    let sum = chained(before, rest.as_bytes());
    Ok((format!("{sum:0DIGITS$x} {rest}\n").into_bytes(), sum))
}

/// A journal that was read.
#[derive(Debug)]
pub(super) struct Journal {
    /// Its changes.
    pub(super) entries: Vec<Entry>,
    /// Of the snapshot that it goes on from; none if it is empty, or does not say (nor is chained).
    pub(super) generation: Option<u64>,
    /// How many of its bytes are whole units.
    pub(super) whole: usize,
    /// The checksum of the last one.
    pub(super) sum: u32,
}

/// Reads a journal.
///
/// # Errors
/// A unit is damaged, or of another version, or does not go with the others.
pub(super) fn read(bytes: &[u8]) -> Result<Journal> {
    let mut journal = Journal { entries: Vec::new(), generation: None, whole: 0, sum: START };
    // Older versions wrote lines without a length, each with a checksum of its own.
    let old = bytes.get(DIGITS + 1) == Some(&b'{');
    for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let last = journal.whole + line.len() == bytes.len();
        let found =
            if old { checked_alone(line).map(|json| (json, START)) } else { checked(journal.sum, line) };
        let Some((json, sum)) = found else {
            ensure!(last && (old || is_torn(line)), "line {} is damaged", number + 1);
            break;
        };
        let said = || format!("line {}", number + 1);
        let OwnedUnit { version, generation, changes } = serde_json::from_slice(json).with_context(said)?;
        ensure!(is_readable(version), "line {} has format version {version}", number + 1);
        ensure!(
            journal.generation.is_none_or(|before| before == generation),
            "line {} is of another journal",
            number + 1
        );
        journal.generation = (!old).then_some(generation);
        journal.entries.extend(changes);
        journal.whole += line.len();
        journal.sum = sum;
    }
    Ok(journal)
}

fn chained(before: u32, rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&before.to_be_bytes());
    hasher.update(rest);
    hasher.finalize()
}

fn hex(digits: &[u8]) -> Option<u32> {
    let digits = digits.iter().all(u8::is_ascii_hexdigit).then_some(digits)?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// A line's checksum and what is after it.
fn split(line: &[u8]) -> Option<(u32, &[u8])> {
    let (sum, rest) = line.split_at_checked(DIGITS)?;
    Some((hex(sum)?, rest.strip_prefix(b" ")?))
}

/// What a line says, and its checksum, if it is whole and comes after one with the checksum `before`.
fn checked(before: u32, line: &[u8]) -> Option<(&[u8], u32)> {
    let (sum, rest) = split(line.strip_suffix(b"\n")?)?;
    let (_, json) = split(rest)?;
    (sum == chained(before, rest)).then_some((json, sum))
}

/// What a line of an older version says, if it is whole.
fn checked_alone(line: &[u8]) -> Option<&[u8]> {
    let (sum, json) = split(line.strip_suffix(b"\n")?)?;
    (sum == crc32fast::hash(json)).then_some(json)
}

/// Whether not all bytes of the last line were written.
fn is_torn(line: &[u8]) -> bool {
    // Blocks that were given to the file before anything was written to them are zeros. JSON has none.
    if line.ends_with(&[0]) || line.windows(ZEROS).any(|bytes| bytes == [0; ZEROS]) {
        return true;
    }
    let length =
        split(line).and_then(|(_, rest)| split(rest)).map(|(length, json)| (length as usize, json.len()));
    // With its end changed, a line has all its bytes still.
    !line.ends_with(b"\n") && length.is_none_or(|(length, there)| there <= length)
}
