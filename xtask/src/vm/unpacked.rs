//! Debian's packages, unpacked and not installed. What their programs are linked with is installed.

use std::{fs, path::Path, process::Command};

use anyhow::Result;

use super::{apt::Apt, files};
use crate::setup;

/// Fetches packages and unpacks them into a folder. Dependencies whose names begin with one of `not_libraries` are not
/// needed to run what is wanted of them.
pub(super) fn fetch(
    cache: &Path,
    folder: &Path,
    names: &[&str],
    not_libraries: &[&str],
    purpose: &'static str,
) -> Result<()> {
    let apt = Apt::open(cache.join("apt"))?;
    if !apt.has_lists() {
        apt.update()?;
    }
    let packages = names.iter().map(|name| apt.newest_for_host(name)).collect::<Result<Vec<_>>>()?;
    let mut missing = Vec::new();
    for package in &packages {
        for choices in apt.dependencies(package)? {
            let first = choices.first().map(String::as_str).unwrap_or_default();
            if not_libraries.iter().any(|prefix| first.starts_with(prefix))
                || choices.iter().any(|name| installed(name))
            {
                continue;
            }
            missing.push(first.to_owned());
        }
    }
    missing.sort_unstable();
    missing.dedup();
    setup::install_libraries(&missing, purpose)?;
    files::make(folder, |partial| {
        fs::create_dir_all(partial)?;
        apt.unpack(&packages, partial)
    })
}

fn installed(package: &str) -> bool {
    let mut command = Command::new("dpkg-query");
    command.args(["-W", "-f", "${db:Status-Status}", package]);
    command.output().is_ok_and(|output| output.stdout == b"installed")
}
