//! The saved state: a snapshot of everything, and beside it a journal of what has
//! changed since. The snapshot is replaced as a whole when the journal outgrows it.
//!
//! A crash between a new snapshot and the journal's end leaves a journal that the snapshot has in it: the
//! generation that each of its lines names says so. What is saved has the keys of segments in it, so nobody else may
//! read it.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::libc::{ELOOP, O_NOFOLLOW};
use nix::unistd::{AccessFlags, access};

use super::journal::{self, Entry};
use super::snapshot;
use crate::model::State;

/// A journal of fewer bytes is never too long.
const JOURNAL_LEAST: u64 = 256 * 1024;
/// Who may read and write what is saved: its owner.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// What is saved.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Saved {
    /// The wanted state.
    pub(super) state: State,
    /// Interfaces that the daemon made promiscuous, and is to make ordinary again.
    pub(super) promiscuous: BTreeSet<String>,
}

/// The state files of an instance.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    journal: PathBuf,
    /// Length of the snapshot in bytes; none if there is none to go on from.
    snapshot: Option<u64>,
    /// The generation of the last snapshot.
    generation: u64,
    /// The journal's end, as this store left it.
    end: End,
    /// Where it was before the last unit; none if a snapshot was the last thing written.
    last: Option<End>,
}

/// How far a journal goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct End {
    /// Its length in bytes.
    length: u64,
    /// The checksum of its last line, which the next one goes on from.
    sum: u32,
}

impl Store {
    /// In a directory, which is made if it is not there.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub(super) fn open(directory: &Path, instance: &str) -> Result<Self> {
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        // Frames are forwarded all the same.
        if let Err(error) = access(directory, AccessFlags::W_OK) {
            tracing::warn!("cannot write to {}: {error}; changes will be refused", directory.display());
        }
        let path = directory.join(format!("{instance}.json"));
        let journal = directory.join(format!("{instance}.journal"));
        // Older versions let everybody read them.
        let aside = [path.with_extension("detached.json"), journal.with_extension("detached.journal")];
        for path in [&path, &journal].into_iter().chain(&aside) {
            if fs::symlink_metadata(path)
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o077 != 0)
                && let Err(error) = fs::set_permissions(path, Permissions::from_mode(FILE_MODE))
            {
                tracing::warn!("others may read {}: {error}", path.display());
            }
        }
        Ok(Self { path, journal, snapshot: None, generation: 0, end: End::default(), last: None })
    }

    /// What was saved; nothing if nothing was.
    ///
    /// # Errors
    /// A file cannot be read, or is of another version or damaged. It is left as it is.
    pub(super) fn load(&mut self) -> Result<Saved> {
        let mut saved = match read(&self.path)? {
            Some(text) => {
                let (generation, saved) = snapshot::parse(&text).with_context(|| mend(&self.path))?;
                (self.snapshot, self.generation) = (Some(text.len() as u64), generation);
                saved
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
        let journal = journal::read(&bytes).with_context(|| mend(&self.journal))?;
        ensure!(
            journal.generation.is_none_or(|generation| generation <= self.generation),
            "{} goes on from a newer snapshot than {}: bring that back, or move the journal away to do without it",
            self.journal.display(),
            self.path.display(),
        );
        let superseded = journal.generation.is_some_and(|generation| generation < self.generation);
        if journal.generation.is_none() || superseded {
            // Not gone on with: the next change makes a snapshot.
            self.snapshot = self.snapshot.filter(|_| bytes.is_empty());
        }
        if superseded {
            return Ok(saved);
        }
        self.end = End { length: journal.whole as u64, sum: journal.sum };
        for entry in journal.entries {
            entry.replay(&mut saved);
        }
        if journal.whole < bytes.len() {
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
        if let Some(end) = self.last.take()
            && self.truncate(end).is_ok()
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
        self.end.length > self.snapshot.unwrap_or(0).max(JOURNAL_LEAST)
    }

    /// Writes everything into the snapshot, if the journal has anything.
    ///
    /// # Errors
    /// It cannot be written; all is saved as it was.
    pub(super) fn close(&mut self, whole: &Saved) -> Result<()> {
        if self.end.length == 0 && !self.journal.exists() { Ok(()) } else { self.snapshot(whole) }
    }

    /// Puts the files aside: the next daemon starts empty, and nothing is lost.
    ///
    /// # Errors
    /// One cannot be renamed. Then they are where they were.
    pub(super) fn retire(&mut self, whole: &Saved) -> Result<()> {
        if let Err(error) = self.close(whole) {
            tracing::warn!("{error:#}");
        }
        self.put_aside().map(drop)
    }

    /// Makes everything saved again after all.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn restore(&mut self, whole: &Saved) -> Result<()> {
        self.snapshot(whole)
    }

    /// Puts aside what is there, as it is. Says whether anything was.
    ///
    /// # Errors
    /// As [`Store::retire`].
    pub(super) fn put_aside(&mut self) -> Result<bool> {
        let (mut moved, mut stale): (Vec<(&Path, PathBuf)>, Vec<PathBuf>) = Default::default();
        for (path, aside) in [(&self.path, "detached.json"), (&self.journal, "detached.journal")] {
            let aside = path.with_extension(aside);
            match fs::rename(path, &aside) {
                Ok(()) => moved.push((path, aside)),
                Err(error) if error.kind() == ErrorKind::NotFound => stale.push(aside),
                Err(error) => {
                    for (path, aside) in moved {
                        fs::rename(aside, path).ok();
                    }
                    return Err(error).with_context(|| format!("cannot rename {}", path.display()));
                }
            }
        }
        let any = !moved.is_empty();
        if any {
            // One of an earlier time does not belong to the other file. With nothing moved, they are all there is.
            for aside in stale {
                fs::remove_file(aside).ok();
            }
        }
        (self.snapshot, self.end, self.last) = (None, End::default(), None);
        Ok(any)
    }

    /// Adds a unit to the journal. False if the journal is not as this store left it.
    fn append(&mut self, entries: &[Entry]) -> Result<bool> {
        let start = self.end.length;
        let file = match file_options().create(start == 0).open(&self.journal) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            // A link that leads elsewhere: a snapshot takes its place.
            Err(error) if error.raw_os_error() == Some(ELOOP) => return Ok(false),
            other => other?,
        };
        if file.metadata()?.len() != start {
            return Ok(false);
        }
        let (unit, sum) = journal::unit(self.end.sum, self.generation, entries)?;
        let written = file.write_all_at(&unit, start).and_then(|()| file.sync_data());
        let written = if start == 0 { written.and_then(|()| self.sync_directory()) } else { written };
        if let Err(error) = written {
            // Where that fails too, the length gives it away.
            if let Err(error) = self.truncate(self.end) {
                tracing::warn!(%error, "cannot shorten {}", self.journal.display());
            }
            return Err(error.into());
        }
        self.last = Some(self.end);
        self.end = End { length: start + unit.len() as u64, sum };
        Ok(true)
    }

    fn truncate(&mut self, end: End) -> io::Result<()> {
        let file = file_options().open(&self.journal)?;
        file.set_len(end.length)?;
        file.sync_data()?;
        self.end = end;
        Ok(())
    }

    /// Writes a new snapshot beside the old one, puts it in its place, and ends the journal.
    fn snapshot(&mut self, whole: &Saved) -> Result<()> {
        let new = self.path.with_extension("json.new");
        let generation = self.generation + 1;
        let text = snapshot::text(generation, whole)?;
        let written = write(&new, text.as_bytes()).and_then(|()| {
            fs::rename(&new, &self.path)?;
            self.sync_directory()
        });
        if written.is_err() {
            // Not there if it could not be made.
            fs::remove_file(&new).ok();
        }
        written.with_context(|| format!("cannot save {}", self.path.display()))?;
        (self.snapshot, self.generation) = (Some(text.len() as u64), generation);
        (self.end, self.last) = (End::default(), None);
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

fn mend(path: &Path) -> String {
    format!("cannot understand {}: mend it, or move it away to do without what it holds", path.display())
}

/// A file that is written where it is, by its owner alone.
fn file_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(FILE_MODE).custom_flags(O_NOFOLLOW);
    options
}

/// Puts a file in the place of one that is there, for its owner alone.
///
/// # Errors
/// It cannot be written; what was there is as it was.
pub(super) fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    write(&new, text)?;
    fs::rename(&new, path)
}

/// Writes to the disk, to a file of its own.
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    // One that a daemon left which was killed, or a link that leads elsewhere.
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = file_options().create_new(true).open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
