//! The snapshot's form: JSON whose first member is the checksum of everything after it.
//!
//! ```text
//! {
//!   "checksum": "1b851995",
//!   "generation": 3,
//!   "state": { ...
//! ```
//!
//! It is the CRC-32 of what follows its line. A snapshot without one is believed: older versions wrote none, and an
//! operator who mended the file takes it out.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::store::Saved;
use crate::model::State;
use crate::model::state::{OLDEST_STATE_VERSION, STATE_VERSION, is_readable};

const HEAD: &str = "{\n  \"checksum\": \"";
const TAIL: &str = "\",\n";

#[derive(Serialize)]
struct Snapshot<'a> {
    generation: u64,
    state: &'a State,
    promiscuous: &'a BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnedSnapshot {
    checksum: Option<String>,
    #[serde(default)]
    generation: u64,
    state: State,
    #[serde(default)]
    promiscuous: BTreeSet<String>,
}

/// The text of a snapshot. Each has a higher generation than the one before.
///
/// # Errors
/// None that these types can cause.
pub(super) fn text(generation: u64, whole: &Saved) -> Result<String> {
    let Saved { state, promiscuous } = whole;
    let text = serde_json::to_string_pretty(&Snapshot { generation, state, promiscuous })?;
    let rest = text.strip_prefix("{\n").context("JSON of another form")?;
    Ok(format!("{HEAD}{:08x}{TAIL}{rest}", crc32fast::hash(rest.as_bytes())))
}

/// What a snapshot says, and its generation.
///
/// # Errors
/// It is of another version, whatever else it says, or damaged.
pub(super) fn parse(text: &[u8]) -> Result<(u64, Saved)> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    #[derive(Deserialize)]
    struct Outline {
        state: Version,
    }
    let Outline { state: Version { version } } = serde_json::from_slice(text)?;
    ensure!(
        is_readable(version),
        "it has format version {version}, this program reads {OLDEST_STATE_VERSION} to {STATE_VERSION}"
    );
    let OwnedSnapshot { checksum, generation, state, promiscuous } = serde_json::from_slice(text)?;
    ensure!(
        checksum.is_none() || is_whole(text),
        "it is not what was saved, by its checksum: if it was changed on purpose, take the line with \"checksum\" out"
    );
    Ok((generation, Saved { state, promiscuous }))
}

fn is_whole(text: &[u8]) -> bool {
    let parts = || {
        let (sum, rest) = text.strip_prefix(HEAD.as_bytes())?.split_at_checked(8)?;
        let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
        Some((sum, rest.strip_prefix(TAIL.as_bytes())?))
    };
    parts().is_some_and(|(sum, rest)| sum == crc32fast::hash(rest))
}
