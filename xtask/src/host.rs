//! Running commands on this machine.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// Folders that hold administrators' programs and that a user's `PATH` may lack.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// A program on `PATH` or in an administrator's folder.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let folders = xtask::path_folders().into_iter().chain(SYSTEM_FOLDERS.map(PathBuf::from));
    xtask::find_program(name, folders)
}

/// Whether this process may do everything itself.
pub(crate) fn is_root() -> bool {
    // The owner of a process's folder is its effective user.
    Path::new("/proc/self").metadata().is_ok_and(|metadata| metadata.uid() == 0)
}

/// A cargo command in the workspace's root.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// A command that runs as root: directly, or through sudo.
///
/// sudo replaces the environment: `PATH` and `variables` are handed through it.
pub(crate) fn privileged(program: &Path, variables: &[(&str, &OsStr)]) -> Result<Command> {
    let path = path_for_root()?;
    if is_root() {
        let mut command = Command::new(program);
        command.env("PATH", path).envs(variables.iter().copied());
        return Ok(command);
    }
    let sudo = find_program("sudo").with_context(|| {
        format!("{} must run as root and there is no sudo here; run this task as root", program.display())
    })?;
    let mut command = Command::new(sudo);
    command.arg("-E").arg("env").arg(assignment("PATH", &path));
    command.args(variables.iter().map(|(name, value)| assignment(name, value))).arg(program);
    Ok(command)
}

/// Makes sudo ask for a password now, where it will have to; a background process could not.
pub(crate) fn ask_for_password() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let sudo = find_program("sudo").context("this task must run as root and there is no sudo here")?;
    run(Command::new(sudo).arg("-v"))
}

fn path_for_root() -> Result<OsString> {
    let mut folders = xtask::path_folders();
    for folder in SYSTEM_FOLDERS.map(PathBuf::from) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    env::join_paths(folders).context("a folder with a colon in its name is on PATH")
}

fn assignment(name: &str, value: &OsStr) -> OsString {
    let mut assignment = OsString::from(name);
    assignment.push("=");
    assignment.push(value);
    assignment
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// A command as one would type it, more or less.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Builds `mgre` with optimizations and returns its path; `MGRE_BIN` names another one to use instead.
pub(crate) fn build_mgre(root: &Path) -> Result<PathBuf> {
    if let Some(given) = env::var_os("MGRE_BIN") {
        let given = root.join(given);
        if !given.is_file() {
            bail!("MGRE_BIN names {}, which is not a file", given.display());
        }
        println!("using MGRE_BIN={}", given.display());
        return Ok(given);
    }
    run(cargo(root).args(["build", "--release", "--package", "mgre-user", "--bin", "mgre"]))?;
    Ok(xtask::target_dir(root).join("release").join("mgre"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_without_the_programs_folder() {
        let mut command = Command::new("/usr/sbin/ip");
        command.args(["link", "show"]);
        assert_eq!(shown(&command), "ip link show");
    }

    #[test]
    fn roots_path_has_the_administrators_folders() {
        let path = path_for_root().expect("no colon");
        assert!(env::split_paths(&path).any(|folder| folder == Path::new("/usr/sbin")));
    }
}
