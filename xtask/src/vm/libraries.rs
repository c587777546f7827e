//! Programs of this machine with the shared libraries that they need.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::cpio::Tree;

/// The libraries of a program, its loader among them; none where it is linked statically or is a script.
pub(super) fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut command = Command::new("ldd");
    let output = command.env("LC_ALL", "C").arg(program).output().context("cannot start ldd")?;
    // ldd fails for what is not a dynamic executable.
    let text = String::from_utf8_lossy(&output.stdout);
    let (found, missing) = parse(&text);
    if !missing.is_empty() {
        bail!("{} needs {}, not installed here", program.display(), missing.join(", "));
    }
    Ok(found)
}

fn parse(text: &str) -> (BTreeSet<PathBuf>, Vec<String>) {
    let mut found = BTreeSet::new();
    let mut missing = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        // `name => path (address)`, or `path (address)` for the loader; the vDSO has no path.
        let place = line.split_once("=>").map_or(line, |(_, place)| place.trim());
        if place.starts_with("not found") {
            missing.extend(line.split_whitespace().next().map(str::to_owned));
        } else if place.starts_with('/') {
            found.extend(place.split_whitespace().next().map(PathBuf::from));
        }
    }
    (found, missing)
}

/// Puts a program at a path of the tree, and its libraries where the loader looks for them, but for those that `base`
/// has.
pub(super) fn add(tree: &mut Tree, base: Option<&Tree>, path: &str, program: &Path) -> Result<()> {
    tree.copy(path, program)?;
    for library in libraries(program)? {
        let path = in_usr(&library.to_string_lossy());
        if !base.is_some_and(|base| base.contains(&path)) && !tree.contains(&path) {
            tree.copy(&path, &library)?;
        }
    }
    Ok(())
}

/// A path in a system whose `/bin`, `/sbin`, `/lib` and `/lib64` are links into `/usr`.
pub(super) fn in_usr(path: &str) -> String {
    let path = path.trim_start_matches('/');
    let merged = ["bin/", "sbin/", "lib/", "lib64/"].iter().any(|folder| path.starts_with(folder));
    if merged { format!("usr/{path}") } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007fff)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \tlibodd.so.1 => not found\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let (found, missing) = parse(text);
        let found: Vec<String> = found.iter().map(|path| in_usr(&path.to_string_lossy())).collect();
        assert_eq!(found, ["usr/lib/x86_64-linux-gnu/libc.so.6", "usr/lib64/ld-linux-x86-64.so.2"]);
        assert_eq!(missing, ["libodd.so.1"]);
        assert_eq!(parse("\tnot a dynamic executable\n"), (BTreeSet::new(), Vec::new()));
    }
}
