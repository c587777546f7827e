//! Samples that are kept: one a line, in hexadecimal digits ([`super::code`]); lines that begin with `#` say what for.

use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Sample;
use super::code::{decode, encode, from_hex, to_hex};

/// Where a target's is: in the package's folder, which may be elsewhere than where this was built.
pub fn path(target: &str) -> PathBuf {
    let folder = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&folder).join("fuzz/corpus").join(target).with_extension("hex")
}

/// Writes each of a target's samples to a file of its own, as cargo-fuzz wants them, in a folder beside it.
///
/// # Errors
/// It cannot be read, or they cannot be written.
pub fn unpack(target: &str) -> Result<()> {
    let folder = path(target).with_extension("");
    fs::create_dir_all(&folder)?;
    for (number, bytes) in read_bytes(&path(target))?.iter().enumerate() {
        fs::write(folder.join(format!("kept-{number}")), bytes)?;
    }
    Ok(())
}

/// Reads it.
///
/// # Errors
/// The file cannot be read, or a line is not hexadecimal.
pub fn read(path: &Path) -> Result<Vec<Sample>> {
    Ok(read_bytes(path)?.iter().map(|bytes| decode(bytes)).collect())
}

/// Reads any corpus of this form.
///
/// # Errors
/// As [`read`].
pub fn read_bytes(path: &Path) -> Result<Vec<Vec<u8>>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().map(str::trim).enumerate();
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(at, line)| {
            from_hex(line)
                .with_context(|| format!("{}, line {}: no hexadecimal digits", path.display(), at + 1))
        })
        .collect()
}

/// Adds samples that are not there yet, with a line that says what each is for.
///
/// # Errors
/// The file cannot be read or written.
pub fn add(path: &Path, samples: impl IntoIterator<Item = (String, Sample)>) -> Result<()> {
    let kept: HashSet<Vec<u8>> =
        if path.exists() { read_bytes(path)?.into_iter().collect() } else { HashSet::new() };
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path)?;
    for (what, sample) in samples {
        let bytes = encode(&sample);
        if !kept.contains(&bytes) {
            writeln!(file, "# {}\n{}", what.lines().next().unwrap_or_default(), to_hex(&bytes))?;
        }
    }
    Ok(())
}
