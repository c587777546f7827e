//! What the kernel says of mgre's programs.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    bpf::{Program, ProgramInfo},
    contestant::Contestant,
};

/// The programs of mgre's first daemon, each once.
///
/// # Errors
/// There are none, or the kernel refuses.
pub fn list(contestant: &Contestant) -> Result<Vec<ProgramInfo>> {
    let daemon = contestant.daemons().first().context("no daemon")?;
    let mut programs = BTreeMap::new();
    for pin in links(&daemon.bpffs())? {
        let info = Program::of_pinned_link(&pin)?.info()?;
        programs.insert(info.name(), info);
    }
    Ok(programs.into_values().collect())
}

/// The pins in folders named `links`.
fn links(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(links(&path)?);
        } else if folder.ends_with("links") {
            found.push(path);
        }
    }
    Ok(found)
}

/// A table.
pub fn text(programs: &[ProgramInfo]) -> String {
    let mut text = format!(
        "mgre's programs\n  {:<15} {:>21} {:>11} {:>14}\n",
        "", "verified instructions", "eBPF bytes", "machine bytes"
    );
    for program in programs {
        text += &format!(
            "  {:<15} {:>21} {:>11} {:>14}\n",
            program.name(),
            program.verified_instructions,
            program.translated_len,
            program.jited_len
        );
    }
    text
}

/// The same for programs.
pub fn json(programs: &[ProgramInfo]) -> Value {
    let rows = programs.iter().map(|program| {
        json!({
            "name": program.name(),
            "verified_instructions": program.verified_instructions,
            "ebpf_bytes": program.translated_len,
            "machine_bytes": program.jited_len,
        })
    });
    rows.collect()
}
