//! Trees of files as cpio archives of the form that the kernel unpacks (newc; the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, BufWriter, Write},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;

/// What a path of an archive is.
#[derive(Clone, Debug)]
enum Entry {
    Folder,
    /// The contents of a file of this machine.
    Copy {
        source: PathBuf,
        mode: u32,
    },
    Bytes {
        contents: Vec<u8>,
        mode: u32,
    },
    Link(String),
}

/// A tree of files, all of them root's. Paths are relative to the root, and a folder comes before what is in it: the
/// kernel makes none by itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree(BTreeMap<String, Entry>);

impl Tree {
    fn put(&mut self, path: &str, entry: Entry) {
        let path = path.trim_matches('/');
        for (at, _) in path.match_indices('/') {
            self.0.entry(path[..at].to_owned()).or_insert(Entry::Folder);
        }
        self.0.insert(path.to_owned(), entry);
    }

    pub(super) fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path.trim_matches('/'))
    }

    pub(super) fn folder(&mut self, path: &str) {
        if !self.contains(path) {
            self.put(path, Entry::Folder);
        }
    }

    pub(super) fn bytes(&mut self, path: &str, mode: u32, contents: impl Into<Vec<u8>>) {
        self.put(path, Entry::Bytes { contents: contents.into(), mode });
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.put(path, Entry::Link(target.to_owned()));
    }

    /// A file, with what a link leads to in place of the link.
    pub(super) fn copy(&mut self, path: &str, source: &Path) -> Result<()> {
        let metadata = fs::metadata(source).with_context(|| format!("cannot read {}", source.display()))?;
        if !metadata.is_file() {
            bail!("{} is not a file", source.display());
        }
        self.put(
            path,
            Entry::Copy { source: source.to_owned(), mode: metadata.permissions().mode() & 0o777 },
        );
        Ok(())
    }

    /// A folder with everything in it; links stay links.
    pub(super) fn copy_folder(&mut self, path: &str, source: &Path) -> Result<()> {
        self.folder(path);
        for entry in fs::read_dir(source).with_context(|| format!("cannot read {}", source.display()))? {
            let entry = entry?;
            let name = entry.file_name().into_string();
            let Ok(name) = name else { bail!("{} is not UTF-8", entry.path().display()) };
            let inner = format!("{path}/{name}");
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.copy_folder(&inner, &entry.path())?;
            } else if kind.is_symlink() {
                let target = fs::read_link(entry.path())?;
                self.link(&inner, &target.to_string_lossy());
            } else if kind.is_file() {
                self.copy(&inner, &entry.path())?;
            }
        }
        Ok(())
    }

    /// A number that changes when the tree or a file that it copies does.
    pub(super) fn fingerprint(&self) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        for (path, entry) in &self.0 {
            path.hash(&mut hasher);
            match entry {
                Entry::Folder => 0.hash(&mut hasher),
                Entry::Copy { source, mode } => {
                    let metadata =
                        fs::metadata(source).with_context(|| format!("cannot read {}", source.display()))?;
                    let modified = (metadata.mtime(), metadata.mtime_nsec());
                    (source, mode, metadata.len(), modified).hash(&mut hasher);
                }
                Entry::Bytes { contents, mode } => (contents, mode).hash(&mut hasher),
                Entry::Link(target) => target.hash(&mut hasher),
            }
        }
        Ok(hasher.finish())
    }

    /// Writes the archive. Several of them, one behind the other, are one to the kernel.
    pub(super) fn write(&self, out: impl Write) -> Result<()> {
        let mut archive = Archive { out: BufWriter::new(out), inode: 0 };
        for (path, entry) in &self.0 {
            match entry {
                Entry::Folder => archive.header(path, FOLDER, 0)?,
                Entry::Copy { source, mode } => archive
                    .copy(path, *mode, source)
                    .with_context(|| format!("cannot copy {}", source.display()))?,
                Entry::Bytes { contents, mode } => archive.body(path, FILE | mode, contents)?,
                Entry::Link(target) => archive.body(path, LINK, target.as_bytes())?,
            }
        }
        archive.header("TRAILER!!!", 0, 0)?;
        archive.out.flush()?;
        Ok(())
    }
}

struct Archive<W: Write> {
    out: BufWriter<W>,
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn header(&mut self, path: &str, mode: u32, size: u64) -> Result<()> {
        let size = u32::try_from(size).with_context(|| format!("{path} is too large for an archive"))?;
        self.inode += 1;
        let links = 1 + u32::from(mode == FOLDER);
        let name_size = u32::try_from(path.len() + 1)?;
        // Inode, mode, owner, group, links, time, size, device, device of the node, length of the name, checksum.
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        write!(self.out, "{path}\0")?;
        self.pad(6 + 8 * fields.len() + path.len() + 1)
    }

    fn body(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.header(path, mode, contents.len() as u64)?;
        self.out.write_all(contents)?;
        self.pad(contents.len())
    }

    fn copy(&mut self, path: &str, mode: u32, source: &Path) -> Result<()> {
        let mut file = File::open(source)?;
        let size = file.metadata()?.len();
        self.header(path, FILE | mode, size)?;
        let copied = io::copy(&mut file, &mut self.out)?;
        if copied != size {
            bail!("the file changes");
        }
        self.pad(usize::try_from(size)?)
    }

    /// Zeros up to the next multiple of four.
    fn pad(&mut self, length: usize) -> Result<()> {
        Ok(self.out.write_all(&[0; 3][..length.wrapping_neg() % 4])?)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]
mod tests {
    use super::*;

    fn written(tree: &Tree) -> Vec<u8> {
        let mut out = Vec::new();
        tree.write(&mut out).unwrap();
        out
    }

    #[test]
    fn bytes_of_a_small_archive() {
        let mut tree = Tree::default();
        tree.bytes("etc/a", 0o644, "12345");
        tree.link("l", "etc");
        let archive = written(&tree);
        let text = String::from_utf8(archive.clone()).unwrap();
        let heads: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(heads.len(), 4, "etc, etc/a, l, the trailer");
        assert!(heads.iter().all(|at| at % 4 == 0), "{heads:?}");
        assert_eq!(archive.len() % 4, 0);

        // A header has 110 bytes. The second one: mode, size and length of the name, then the name, then the contents.
        let file = &text[heads[1]..heads[2]];
        assert_eq!(&file[14..22], "000081a4");
        assert_eq!(&file[54..62], "00000005");
        assert_eq!(&file[94..102], "00000006");
        assert_eq!(&file[110..], concat!("etc/a\0", "12345\0\0\0"));
        assert_eq!(&text[heads[0]..][14..22], "000041ed");
        let link = &text[heads[2]..heads[3]];
        assert_eq!((&link[14..22], &link[110..]), ("0000a1ff", "l\0etc\0"));
        assert!(text[heads[3]..].contains("TRAILER!!!\0"));
    }

    #[test]
    fn folders_come_first_and_once() {
        let mut tree = Tree::default();
        tree.bytes("/usr/bin/x", 0o755, "");
        tree.folder("usr/bin");
        tree.bytes("usr/y", 0o755, "");
        let names: Vec<&str> = tree.0.keys().map(String::as_str).collect();
        assert_eq!(names, ["usr", "usr/bin", "usr/bin/x", "usr/y"]);
    }

    #[test]
    fn a_change_changes_the_fingerprint() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("f");
        fs::write(&source, "1").unwrap();
        let mut tree = Tree::default();
        tree.copy_folder("job", folder.path()).unwrap();
        let before = tree.fingerprint().unwrap();
        assert_eq!(before, tree.fingerprint().unwrap());
        fs::write(&source, "12").unwrap();
        assert_ne!(before, tree.fingerprint().unwrap());
        tree.link("a", "b");
        assert_ne!(before, tree.fingerprint().unwrap());
    }
}
