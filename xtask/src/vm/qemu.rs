//! qemu: the system's, or Debian's package, unpacked and not installed.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{files, libraries, unpacked};
use crate::host;

const PROGRAM: &str = "qemu-system-x86_64";
/// Older ones crash while they emulate a processor with all features.
const OLDEST: u32 = 8;
const PACKAGES: [&str; 4] = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];
/// What the emulator is linked with and runs by; not what it can be booted from.
const NOT_LIBRARIES: [&str; 3] = ["qemu-", "seabios", "ipxe-"];

/// An emulator that can be started.
#[derive(Clone, Debug)]
pub(super) struct Qemu {
    program: PathBuf,
    /// Where firmware is, other than where it was made to look.
    firmware: Vec<PathBuf>,
}

impl Qemu {
    /// The system's one if it will do, else the one in the cache, fetched if there is none.
    pub(super) fn get(cache: &Path) -> Result<Self> {
        if let Some(program) = host::find_program(PROGRAM) {
            let qemu = Self { program, firmware: Vec::new() };
            if qemu.version().is_some_and(|version| version >= OLDEST) {
                return Ok(qemu);
            }
        }
        let folder = cache.join("qemu");
        let share = folder.join("usr/share");
        let qemu = Self {
            program: folder.join("usr/bin").join(PROGRAM),
            firmware: vec![share.join("qemu"), share.join("seabios")],
        };
        if qemu.version().is_some() {
            return Ok(qemu);
        }
        let _lock = files::lock(&cache.join("lock"))?;
        if !qemu.program.is_file() {
            fetch(cache, &folder)?;
        }
        let version = qemu.version();
        if version.is_none_or(|version| version < OLDEST) {
            libraries::libraries(&qemu.program)?;
            bail!("{} does not run here", qemu.program.display());
        }
        Ok(qemu)
    }

    /// Its major version, if it runs.
    fn version(&self) -> Option<u32> {
        let output = Command::new(&self.program).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        parse_version(&text)
    }

    /// The emulator, to be given a machine. It ends with the thread that starts it.
    pub(super) fn command(&self) -> Command {
        let mut command = match host::find_program("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        for folder in &self.firmware {
            command.arg("-L").arg(folder);
        }
        command
    }
}

fn parse_version(text: &str) -> Option<u32> {
    let version = text.strip_prefix("QEMU emulator version ")?;
    version.split('.').next()?.parse().ok()
}

fn fetch(cache: &Path, folder: &Path) -> Result<()> {
    unpacked::fetch(cache, folder, &PACKAGES, &NOT_LIBRARIES, "qemu, which runs virtual machines")
        .with_context(|| {
            format!("no qemu of version {OLDEST} or later; install one, so that {PROGRAM} is on PATH")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(
            parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright\n"),
            Some(10)
        );
        assert_eq!(parse_version("qemu: error while loading shared libraries"), None);
    }
}
