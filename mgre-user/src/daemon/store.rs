//! The saved state: what was asked for, in a file that is always whole.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::model::State;

/// What is saved.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    /// The wanted state.
    pub(super) state: State,
    /// Interfaces that the daemon made promiscuous, and is to make ordinary again.
    #[serde(default)]
    pub(super) promiscuous: BTreeSet<String>,
}

/// The state file of an instance.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
}

impl Store {
    /// In a directory, which is made if it is not there.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub(super) fn open(directory: &Path, instance: &str) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self { path: directory.join(format!("{instance}.json")) })
    }

    /// What was saved; nothing if nothing was.
    ///
    /// # Errors
    /// The file cannot be read, or is of another version or damaged. It is left as it is.
    pub(super) fn load(&self) -> Result<Saved> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Saved::default()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", self.path.display()));
            }
        };
        serde_json::from_str(&text).with_context(|| {
            format!("cannot understand {}: mend it, or move it away to start empty", self.path.display())
        })
    }

    /// Saves at once.
    ///
    /// # Errors
    /// It cannot be written; the old file is as it was.
    pub(super) fn save(&self, saved: &Saved) -> Result<()> {
        self.stage(saved)?.commit()
    }

    /// Writes a new file, whole and on the disk, beside the old one. What can fail for
    /// want of room fails here, before anything else is changed.
    ///
    /// # Errors
    /// It cannot be written; the old file is as it was.
    pub(super) fn stage(&self, saved: &Saved) -> Result<Staged<'_>> {
        let staged = Staged { path: &self.path, new: self.path.with_extension("json.new") };
        staged.write(saved).with_context(|| format!("cannot save {}", self.path.display()))?;
        Ok(staged)
    }

    /// Puts the file aside: the next daemon starts empty, and nothing is lost.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub(super) fn retire(&self) -> Result<()> {
        match fs::rename(&self.path, self.path.with_extension("detached.json")) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot rename {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// A state that is written and not in force. Dropped, it is as if it had never been.
#[derive(Debug)]
pub(super) struct Staged<'a> {
    path: &'a Path,
    new: PathBuf,
}

impl Staged<'_> {
    fn write(&self, saved: &Saved) -> Result<()> {
        let mut file = File::create(&self.new)?;
        file.write_all(serde_json::to_string_pretty(saved)?.as_bytes())?;
        Ok(file.sync_all()?)
    }

    /// Puts it in the old file's place.
    ///
    /// # Errors
    /// It cannot be renamed; the old file is as it was.
    pub(super) fn commit(self) -> Result<()> {
        let renamed = || -> Result<()> {
            fs::rename(&self.new, self.path)?;
            if let Some(directory) = self.path.parent() {
                File::open(directory)?.sync_all()?;
            }
            Ok(())
        };
        renamed().with_context(|| format!("cannot save {}", self.path.display()))
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        // Not there after a commit.
        if let Err(error) = fs::remove_file(&self.new)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(%error, "cannot remove {}", self.new.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_and_loaded_and_never_half_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), "x").expect("opens");
        assert_eq!(store.load().expect("nothing there").state, State::default());
        let mut saved = Saved::default();
        saved.promiscuous.insert("lan0".to_owned());
        store.save(&saved).expect("saves");
        assert_eq!(store.load().expect("loads").promiscuous, saved.promiscuous);
        // A directory in the new file's place: the save fails, the old file stays.
        fs::create_dir(directory.path().join("x.json.new")).expect("made");
        assert!(store.save(&Saved::default()).is_err());
        assert_eq!(store.load().expect("loads").promiscuous, saved.promiscuous);
        fs::remove_dir(directory.path().join("x.json.new")).expect("removed");
        // Staged and dropped: nothing of it is left.
        drop(store.stage(&Saved::default()).expect("stages"));
        assert!(!directory.path().join("x.json.new").exists());
        assert_eq!(store.load().expect("loads").promiscuous, saved.promiscuous);
    }

    #[test]
    fn a_damaged_file_is_named_and_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), "x").expect("opens");
        fs::write(directory.path().join("x.json"), "{").expect("written");
        let error = store.load().expect_err("damaged");
        assert!(error.to_string().contains("x.json"), "{error}");
        assert!(directory.path().join("x.json").exists());
    }
}
