//! Files of the cache, which an interruption must not leave half made.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};

/// Makes a file or folder under another name, and gives it its own when it is whole.
pub(super) fn make<T>(path: &Path, make: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let folder = path.parent().context("a path without a folder")?;
    let name = path.file_name().context("a path without a name")?.to_string_lossy();
    let prefix = format!("{name}.partial-");
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    remove_orphans(folder, &prefix)?;
    let partial = folder.join(format!("{prefix}{}", std::process::id()));
    remove(&partial)?;
    let made = make(&partial).and_then(|value| {
        remove(path)?;
        fs::rename(&partial, path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(value)
    });
    if made.is_err() {
        remove(&partial)?;
    }
    made
}

/// Removes what processes that are gone have left in a folder: what has their id behind the prefix.
pub(super) fn remove_orphans(folder: &Path, prefix: &str) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?.flatten()
    {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(prefix)?.split('-').next());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            // Another process may do the same.
            remove(&entry.path()).ok();
        }
    }
    Ok(())
}

pub(super) fn write(path: &Path, contents: &[u8]) -> Result<()> {
    make(path, |partial| {
        fs::write(partial, contents).with_context(|| format!("cannot write {}", partial.display()))
    })
}

/// Removes a file, or a folder with what is in it, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A lock that others wait for, until it is dropped or the process ends.
pub(super) fn lock(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// How long ago a file was changed, if not in the future.
#[expect(clippy::disallowed_methods, reason = "a file's time is one of the wall clock")]
pub(super) fn age(changed: SystemTime) -> Option<Duration> {
    changed.elapsed().ok()
}

pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_half_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let failed = make(&path, |partial| {
            fs::write(partial, "half").unwrap();
            anyhow::bail!("interrupted") as Result<()>
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        fs::create_dir(folder.path().join("f.partial-0")).unwrap();
        write(&path, b"whole").unwrap();
        write(&path, b"whole again").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole again");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
