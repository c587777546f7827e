//! The last addresses of names on the disk, beside the saved state, so that a restart needs no name server.
//!
//! It is not part of the state: nobody asked for it, and without it everything comes back by itself once names
//! resolve. So a file that cannot be read is as good as none.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Names and their addresses, those in use first.
pub type Names = Vec<(String, Vec<IpAddr>)>;

/// The file of an instance.
#[derive(Clone, Debug)]
pub struct Cache {
    path: PathBuf,
}

impl Cache {
    /// In the directory of the saved state.
    pub fn new(directory: &Path, instance: &str) -> Self {
        Self { path: directory.join(format!("{instance}.names.json")) }
    }

    /// What was saved; nothing if nothing was, or it cannot be understood.
    pub fn load(&self) -> Names {
        let text = match fs::read(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Names::new(),
            other => other,
        };
        let names = text.and_then(|text| Ok(serde_json::from_slice::<BTreeMap<String, Vec<IpAddr>>>(&text)?));
        match names {
            Ok(names) => names.into_iter().collect(),
            Err(error) => {
                let path = self.path.display();
                tracing::warn!("{path}: {error}: peers given by name wait until their names resolve");
                Names::new()
            }
        }
    }

    /// Replaces what was saved, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, names: Names) -> io::Result<()> {
        let new = self.path.with_extension("json.new");
        // Of a daemon that ended while it wrote.
        remove(&new)?;
        let names: BTreeMap<_, _> = names.into_iter().collect();
        let written =
            OpenOptions::new().write(true).create_new(true).open(&new).and_then(|mut file: File| {
                file.write_all(&serde_json::to_vec_pretty(&names)?)?;
                file.sync_all()?;
                fs::rename(&new, &self.path)
            });
        if written.is_err() {
            // What is left would be removed by the next.
            remove(&new).ok();
        }
        written
    }

    /// Removes it.
    ///
    /// # Errors
    /// It is there, and cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        remove(&self.path)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
