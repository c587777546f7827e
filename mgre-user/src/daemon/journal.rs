//! The journal's form: units that are written in one go, one a line.
//!
//! ```text
//! 1b851995 {"version":1,"changes":[{"state":{"peers":{"b":{...}}}},...]}
//! ```
//!
//! The number is the CRC-32 of the rest of the line. A unit is on the disk whole
//! before anybody is told so, and nothing is written after one that is not: so only
//! the last one can be torn.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::store::Saved;
use crate::model::Record;
use crate::model::state::STATE_VERSION;

/// Digits of a checksum.
const DIGITS: usize = 8;

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
    changes: &'a [Entry],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnedUnit {
    version: u32,
    changes: Vec<Entry>,
}

/// The line for some changes.
///
/// # Errors
/// None that these types can cause.
pub(super) fn unit(changes: &[Entry]) -> Result<Vec<u8>> {
    let mut line = vec![b'0'; DIGITS];
    line.push(b' ');
    serde_json::to_writer(&mut line, &Unit { version: STATE_VERSION, changes })?;
    let sum = format!("{:0DIGITS$x}", crc32fast::hash(&line[DIGITS + 1..]));
    line[..DIGITS].copy_from_slice(sum.as_bytes());
    line.push(b'\n');
    Ok(line)
}

/// Reads a journal: its changes, and how many bytes of it are whole units.
///
/// # Errors
/// A unit that is not the last one is damaged, or one is of another version.
pub(super) fn read(bytes: &[u8]) -> Result<(Vec<Entry>, usize)> {
    let (mut entries, mut whole) = (Vec::new(), 0);
    for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let last = whole + line.len() == bytes.len();
        match checked(line) {
            Some(json) => {
                let said = || format!("line {}", number + 1);
                let OwnedUnit { version, changes } = serde_json::from_slice(json).with_context(said)?;
                ensure!(version == STATE_VERSION, "line {} has format version {version}", number + 1);
                entries.extend(changes);
                whole += line.len();
            }
            None if last => break,
            None => bail!("line {} is damaged", number + 1),
        }
    }
    Ok((entries, whole))
}

/// What a line says, if it is whole.
fn checked(line: &[u8]) -> Option<&[u8]> {
    let (sum, json) = line.strip_suffix(b"\n")?.split_at_checked(DIGITS)?;
    let json = json.strip_prefix(b" ")?;
    let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
    (sum == crc32fast::hash(json)).then_some(json)
}
