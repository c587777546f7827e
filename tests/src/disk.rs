//! Small file systems that can be full, or not be written to.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What takes up the room.
const BALLAST: &str = "ballast";

/// A file system in memory with little room, unmounted when dropped.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts one with room for so many bytes at a folder, which is made.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mount(path: &Path, bytes: u32) -> Result<Self> {
        fs::create_dir_all(path)?;
        let options = format!("size={bytes},mode=0700");
        mount(Some("mgre-test"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("cannot mount a file system at {}", path.display()))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Uses up what room is left.
    ///
    /// # Errors
    /// Anything but that it is full.
    pub fn fill(&self) -> Result<()> {
        let mut file = File::create(self.path.join(BALLAST))?;
        let block = [0xff; 512];
        loop {
            match file.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// It was not filled.
    pub fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.path.join(BALLAST))?)
    }

    /// Allows writing, or forbids it.
    ///
    /// # Errors
    /// A file is open for writing.
    pub fn set_writable(&self, writable: bool) -> Result<()> {
        let read_only = if writable { MsFlags::empty() } else { MsFlags::MS_RDONLY };
        mount(None::<&str>, &self.path, None::<&str>, MsFlags::MS_REMOUNT | read_only, None::<&str>)
            .with_context(|| format!("cannot remount {}", self.path.display()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.path, MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {error}", self.path.display());
        }
    }
}
