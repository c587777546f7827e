//! Running one command in a guest: its files, its machine, and its end.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use super::{
    cpio::Tree,
    files,
    kernel::Kernel,
    libraries,
    machine::{self, Ended, Machine},
    qemu::Qemu,
    tools::{self, Extras},
};
use crate::host;

/// Where a guest has mgre.
const MGRE: &str = "usr/bin/mgre";

/// What to run, and with what.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) machine: Machine,
    pub(super) extras: Extras,
    /// mgre itself, if there is one.
    pub(super) mgre: Option<PathBuf>,
    /// Programs with their libraries, by the names that they are to have on `PATH`.
    pub(super) programs: Vec<(String, PathBuf)>,
    /// Files and folders that are put into /job, by their names there.
    pub(super) files: Vec<(String, PathBuf)>,
    /// Paths below /proc/sys, and values.
    pub(super) sysctls: Vec<(String, String)>,
    /// Where what the command left in /out is put.
    pub(super) out: Option<PathBuf>,
    /// The command and its arguments.
    pub(super) command: Vec<String>,
}

impl Guest {
    /// Boots a kernel, runs the command to its end and hands on what it prints.
    pub(super) fn run(
        &self,
        cache: &Path,
        qemu: &Qemu,
        kernel: &Kernel,
        output: impl FnMut(&[u8]) + Send,
    ) -> Result<Ended> {
        let (tools, archive) = tools::archive(cache, self.extras)?;
        let folder = run_folder(cache)?;
        let mut initrd = File::create(folder.path().join("initrd"))?;
        for part in [archive, kernel.modules()] {
            let mut part = File::open(&part).with_context(|| format!("cannot read {}", part.display()))?;
            io::copy(&mut part, &mut initrd)?;
        }
        self.job(&tools)?.write(&mut initrd)?;
        drop(initrd);
        let ended = machine::boot(qemu, kernel, &self.machine, folder.path(), output)?;
        if let Some(out) = &self.out {
            machine::unpack_files(folder.path(), out)?;
        }
        Ok(ended)
    }

    /// What this guest alone has.
    fn job(&self, tools: &Tree) -> Result<Tree> {
        let mut tree = Tree::default();
        let mut command = String::new();
        if let Some(mgre) = &self.mgre {
            libraries::add(&mut tree, Some(tools), MGRE, mgre)?;
            command += &format!("export MGRE_BIN=/{MGRE}\n");
        }
        for (name, program) in &self.programs {
            libraries::add(&mut tree, Some(tools), &format!("usr/local/bin/{name}"), program)?;
        }
        for (name, path) in &self.files {
            if path.is_dir() {
                tree.copy_folder(&format!("job/{name}"), path)?;
            } else {
                tree.copy(&format!("job/{name}"), path)?;
            }
        }
        let words: Vec<String> = self.command.iter().map(|word| quoted(word)).collect();
        command += &format!("exec {}\n", words.join(" "));
        tree.bytes("vm/command", 0o755, command);
        let cards: u32 = self.machine.cards.iter().map(|cards| cards.count).sum();
        tree.bytes("vm/settings", 0o644, format!("VM_CARDS={cards}\n"));
        let sysctls: String = self.sysctls.iter().map(|(path, value)| format!("{path}={value}\n")).collect();
        tree.bytes("vm/sysctl", 0o644, sysctls);
        Ok(tree)
    }
}

/// A new folder for one run. Those of processes that are gone are removed.
fn run_folder(cache: &Path) -> Result<TempDir> {
    const PREFIX: &str = "run-";
    files::remove_orphans(cache, PREFIX)?;
    let prefix = format!("{PREFIX}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in(cache).context("cannot make a folder in target/vm")
}

/// A word that a shell takes for itself.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The name that a file has by itself.
pub(super) fn named(path: &Path) -> Result<(String, PathBuf)> {
    let path = fs::canonicalize(path).with_context(|| format!("there is no {}", path.display()))?;
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        bail!("{} has no name that could be used", path.display());
    };
    Ok((name.to_owned(), path))
}

/// A setting in the manner of sysctl(8), as a path below /proc/sys and a value. What stands between the key's parts is
/// what comes first, and the other one is of a name: `net/ipv4/conf/eth0.1/mtu`.
pub(super) fn sysctl(setting: &str) -> Result<(String, String)> {
    let (key, value) = setting.split_once('=').with_context(|| format!("{setting} is not KEY=VALUE"))?;
    let (key, value) = (key.trim(), value.trim());
    ensure!(!key.is_empty() && !setting.contains('\n'), "{setting} is not KEY=VALUE");
    let dots = key.find(['.', '/']).is_some_and(|at| key[at..].starts_with('.'));
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path = if dots { key.chars().map(swap).collect() } else { key.to_owned() };
    Ok((path, value.to_owned()))
}

/// A copy without symbols: they are most of a program, and a guest has it all in memory.
pub(super) fn strip(program: &Path, to: &Path) -> Result<PathBuf> {
    files::make(to, |partial| host::run(Command::new("strip").arg("-o").arg(partial).arg(program)))
        .context("strip is of binutils, as the linker")?;
    Ok(to.to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]
mod tests {
    use super::*;

    #[test]
    fn shells_take_words_as_they_are() {
        for word in ["", "a b", "it's", "$HOME `x` \"y\" \\ *"] {
            let script = format!("printf %s {}", quoted(word));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }

    #[test]
    fn settings_are_checked() {
        let path = |setting| sysctl(setting).map(|(path, _)| path).ok();
        assert_eq!(path("net.core.bpf_jit_harden=2").as_deref(), Some("net/core/bpf_jit_harden"));
        assert_eq!(path("net/ipv4/conf/eth0.1/mtu=2").as_deref(), Some("net/ipv4/conf/eth0.1/mtu"));
        assert_eq!(path("net.ipv4.conf.eth0/1.mtu = 2").as_deref(), Some("net/ipv4/conf/eth0.1/mtu"));
        assert_eq!(path("net.core"), None);
    }
}
