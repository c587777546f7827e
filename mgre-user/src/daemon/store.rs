//! The saved state: a snapshot of everything, and beside it a journal of what has
//! changed since. The snapshot is replaced as a whole when the journal outgrows it.
//!
//! To replay a record twice changes nothing. So it does no harm that a crash between
//! a new snapshot and the journal's end leaves a journal that the snapshot has in it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};

use super::journal::{self, Entry};
use crate::model::State;
use crate::model::state::STATE_VERSION;

/// A journal of fewer bytes is never too long.
const JOURNAL_LEAST: u64 = 256 * 1024;

/// What is saved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    /// The wanted state.
    pub(super) state: State,
    /// Interfaces that the daemon made promiscuous, and is to make ordinary again.
    #[serde(default)]
    pub(super) promiscuous: BTreeSet<String>,
}

/// The state files of an instance.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    journal: PathBuf,
    /// Length of the snapshot in bytes; none if there is none to go on from.
    snapshot: Option<u64>,
    /// Length of the journal in bytes, as this store left it.
    length: u64,
    /// Where the last unit begins; none if a snapshot was the last thing written.
    last: Option<u64>,
}

impl Store {
    /// In a directory, which is made if it is not there.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub(super) fn open(directory: &Path, instance: &str) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        // Frames are forwarded all the same.
        if let Err(error) = access(directory, AccessFlags::W_OK) {
            tracing::warn!("cannot write to {}: {error}; changes will be refused", directory.display());
        }
        let path = directory.join(format!("{instance}.json"));
        let journal = directory.join(format!("{instance}.journal"));
        Ok(Self { path, journal, snapshot: None, length: 0, last: None })
    }

    /// What was saved; nothing if nothing was.
    ///
    /// # Errors
    /// A file cannot be read, or is of another version or damaged. It is left as it is.
    pub(super) fn load(&mut self) -> Result<Saved> {
        let mut saved = match read(&self.path)? {
            Some(text) => {
                self.snapshot = Some(text.len() as u64);
                parse(&text).with_context(|| mend(&self.path))?
            }
            None => Saved::default(),
        };
        let Some(bytes) = read(&self.journal)? else { return Ok(saved) };
        ensure!(
            self.snapshot.is_some() || bytes.is_empty(),
            "there is {}, but not what it goes on from, {}: bring that back, or move both away to start empty",
            self.journal.display(),
            self.path.display(),
        );
        let (entries, whole) = journal::read(&bytes).with_context(|| mend(&self.journal))?;
        self.length = whole as u64;
        for entry in entries {
            entry.replay(&mut saved);
        }
        if whole < bytes.len() {
            tracing::warn!(
                "{} ends in the middle of a record, which nobody was told is saved: dropped",
                self.journal.display()
            );
            // Its length is not what it says, so that it is not gone on with.
        }
        Ok(saved)
    }

    /// Saves changes: when this returns they are on the disk. `whole` is what is saved after them.
    ///
    /// # Errors
    /// They cannot be written; what was saved is as it was.
    pub(super) fn save(&mut self, entries: &[Entry], whole: &Saved) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        if self.snapshot.is_none() {
            return self.snapshot(whole);
        }
        match self.append(entries) {
            Ok(true) => Ok(()),
            // Somebody else was at it.
            Ok(false) => self.snapshot(whole),
            Err(error) => Err(error).with_context(|| format!("cannot save {}", self.journal.display())),
        }
    }

    /// Takes back what was saved last, but for these entries, after which all is `whole`.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn amend(&mut self, entries: &[Entry], whole: &Saved) -> Result<()> {
        if let Some(start) = self.last.take()
            && self.truncate(start).is_ok()
        {
            return self.save(entries, whole);
        }
        self.snapshot(whole)
    }

    /// Writes a snapshot if the journal is so long that it is worth it.
    ///
    /// # Errors
    /// It cannot be written; all is saved as it was.
    pub(super) fn tidy(&mut self, whole: &Saved) -> Result<()> {
        if self.is_untidy() { self.snapshot(whole) } else { Ok(()) }
    }

    /// Whether the journal is so long.
    pub(super) fn is_untidy(&self) -> bool {
        self.length > self.snapshot.unwrap_or(0).max(JOURNAL_LEAST)
    }

    /// Writes everything into the snapshot, if the journal has anything.
    ///
    /// # Errors
    /// It cannot be written; all is saved as it was.
    pub(super) fn close(&mut self, whole: &Saved) -> Result<()> {
        if self.length == 0 && !self.journal.exists() { Ok(()) } else { self.snapshot(whole) }
    }

    /// Puts the files aside: the next daemon starts empty, and nothing is lost.
    ///
    /// # Errors
    /// One cannot be renamed.
    pub(super) fn retire(&mut self, whole: &Saved) -> Result<()> {
        if let Err(error) = self.close(whole) {
            tracing::warn!("{error:#}");
        }
        for (path, aside) in [(&self.path, "detached.json"), (&self.journal, "detached.journal")] {
            match fs::rename(path, path.with_extension(aside)) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot rename {}", path.display()));
                }
                _ => {}
            }
        }
        (self.snapshot, self.length, self.last) = (None, 0, None);
        Ok(())
    }

    /// Adds a unit to the journal. False if the journal is not as this store left it.
    fn append(&mut self, entries: &[Entry]) -> Result<bool> {
        let start = self.length;
        let file = match OpenOptions::new().write(true).create(start == 0).open(&self.journal) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        if file.metadata()?.len() != start {
            return Ok(false);
        }
        let unit = journal::unit(entries)?;
        let written = file.write_all_at(&unit, start).and_then(|()| file.sync_data());
        let written = if start == 0 { written.and_then(|()| self.sync_directory()) } else { written };
        if let Err(error) = written {
            // Where that fails too, the length gives it away.
            if let Err(error) = self.truncate(start) {
                tracing::warn!(%error, "cannot shorten {}", self.journal.display());
            }
            return Err(error.into());
        }
        self.length = start + unit.len() as u64;
        self.last = Some(start);
        Ok(true)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(&self.journal)?;
        file.set_len(length)?;
        file.sync_data()?;
        self.length = length;
        Ok(())
    }

    /// Writes a new snapshot beside the old one, puts it in its place, and ends the journal.
    fn snapshot(&mut self, whole: &Saved) -> Result<()> {
        let new = self.path.with_extension("json.new");
        let written = write(&new, whole).and_then(|length| {
            fs::rename(&new, &self.path)?;
            self.sync_directory()?;
            Ok(length)
        });
        if written.is_err() {
            // Not there if it could not be made.
            fs::remove_file(&new).ok();
        }
        let length = written.with_context(|| format!("cannot save {}", self.path.display()))?;
        (self.snapshot, self.length, self.last) = (Some(length), 0, None);
        match fs::remove_file(&self.journal) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                // It has nothing that the snapshot does not have, but cannot be gone on with.
                tracing::warn!(%error, "cannot remove {}", self.journal.display());
            }
            _ => {}
        }
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }
}

/// What is in a file; none if there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// What a snapshot says.
///
/// # Errors
/// It is of another version, whatever else it says, or damaged.
fn parse(text: &[u8]) -> Result<Saved> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    #[derive(Deserialize)]
    struct Outline {
        state: Version,
    }
    let Outline { state: Version { version } } = serde_json::from_slice(text)?;
    ensure!(version == STATE_VERSION, "it has format version {version}, this program reads {STATE_VERSION}");
    Ok(serde_json::from_slice(text)?)
}

fn mend(path: &Path) -> String {
    format!("cannot understand {}: mend it, or move it away to do without what it holds", path.display())
}

/// Writes a snapshot to the disk; its length.
fn write(path: &Path, whole: &Saved) -> io::Result<u64> {
    let mut file = BufWriter::new(File::create(path)?);
    serde_json::to_writer_pretty(&mut file, whole)?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
