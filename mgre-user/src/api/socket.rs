//! The Unix socket of an instance, and the lock that says who has it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Who may talk to the daemon: root and the socket's group.
const SOCKET_MODE: u32 = 0o660;

/// How often is looked whether the socket is still there.
const LOOK: Duration = Duration::from_secs(2);

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon has the instance.
    #[error("instance {instance:?} is already running{}; give this one another name (mgre -i NAME daemon)", pid_text(.pid))]
    Running {
        /// The instance.
        instance: String,
        /// The other daemon's process, if it says.
        pid: Option<u32>,
    },
    /// Another daemon has the instance, and another directory for its socket.
    #[error("instance {instance:?} is already running with its state in {}: say where its socket is (--run-dir), or give this one another name or --state-dir", .state_dir.display())]
    StateInUse {
        /// The instance.
        instance: String,
        /// Where its state is.
        state_dir: PathBuf,
    },
    /// Something that is no socket stands in the way.
    #[error("{} exists and is no socket; it is not ours to remove", .0.display())]
    Foreign(PathBuf),
    /// The system refused.
    #[error("{what} {}: {error}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

fn pid_text(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    move |error| SocketError::Io { what, path: path.to_owned(), error }
}

/// Path of an instance's socket.
pub fn socket_path(run_dir: &Path, instance: &str) -> PathBuf {
    run_dir.join(format!("{instance}.sock"))
}

/// An instance's lock. As long as one lives, no other daemon can have the instance.
#[derive(Debug)]
pub struct InstanceLock {
    path: PathBuf,
    /// Let go first: who has this lock may have that one.
    state: Option<StateLock>,
    /// Held until drop.
    file: Flock<File>,
}

impl InstanceLock {
    /// Takes the lock, or fails at once.
    ///
    /// # Errors
    /// Another daemon has it, or the directory or file cannot be made.
    pub fn acquire(run_dir: &Path, instance: &str) -> Result<Self, SocketError> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(run_dir).map_err(failed("cannot make", run_dir))?;
        let path = run_dir.join(format!("{instance}.lock"));
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o644);
            options.custom_flags(nix::libc::O_NOFOLLOW);
            let file = options.open(&path).map_err(failed("cannot open", &path))?;
            let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    return Err(SocketError::Running {
                        instance: instance.to_owned(),
                        pid: read_pid(&mut file),
                    });
                }
                Err((_, errno)) => return Err(failed("cannot lock", &path)(errno.into())),
            };
            // The daemon that had it removes the file before it lets go, so what
            // was locked may not be what the path names any more.
            if !is_at(&file, &path) {
                continue;
            }
            write_pid(&mut file).map_err(failed("cannot write", &path))?;
            return Ok(Self { path, state: None, file });
        }
    }
}

impl InstanceLock {
    /// With another lock, for as long as this one.
    pub fn with_state(mut self, state: Option<StateLock>) -> Self {
        self.state = state;
        self
    }

    /// Whether others find it.
    fn is_there(&self) -> bool {
        is_at(&self.file, &self.path)
    }
}

impl Drop for InstanceLock {
    fn drop(&mut self) {
        if self.is_there() {
            remove(&self.path);
        }
    }
}

/// The lock on an instance's saved state. It holds for whoever names another directory for the socket, too.
#[derive(Debug)]
pub struct StateLock {
    path: PathBuf,
    /// Held until drop.
    _file: Flock<File>,
}

impl StateLock {
    /// Takes the lock, or fails at once. None where nothing can be written: frames are forwarded all the same.
    ///
    /// # Errors
    /// Another process has it.
    pub fn acquire(state_dir: &Path, instance: &str) -> Result<Option<Self>, SocketError> {
        // Not the name of an instance's lock, should both directories be one.
        let path = state_dir.join(format!(".{instance}.state-lock"));
        loop {
            // Not for writing, so that the file system can be made read-only meanwhile.
            let mut options = OpenOptions::new();
            options.read(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CREAT);
            let file = match options.open(&path) {
                Ok(file) => file,
                Err(error) => {
                    tracing::warn!("cannot lock {}: {error}", path.display());
                    return Ok(None);
                }
            };
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => {
                    let (instance, state_dir) = (instance.to_owned(), state_dir.to_owned());
                    return Err(SocketError::StateInUse { instance, state_dir });
                }
                Err((_, errno)) => return Err(failed("cannot lock", &path)(errno.into())),
            };
            if is_at(&file, &path) {
                return Ok(Some(Self { path, _file: file }));
            }
        }
    }
}

impl Drop for StateLock {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(path = %path.display(), %error, "cannot remove");
    }
}

/// The socket of an instance. Removed on drop, and the lock with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// What the file system knows it by.
    identity: Identity,
    run_dir: PathBuf,
    instance: String,
    looked: Interval,
    /// Why it cannot be made again.
    trouble: Option<String>,
    /// Let go after the socket is gone.
    lock: InstanceLock,
}

/// Device and inode.
type Identity = (u64, u64);

impl Socket {
    /// Listens on `RUN_DIR/INSTANCE.sock`. The socket appears with its mode set,
    /// in place of one that a dead daemon left.
    ///
    /// # Errors
    /// Something else is there, or the system refuses.
    pub fn bind(run_dir: &Path, instance: &str, lock: InstanceLock) -> Result<Self, SocketError> {
        let path = socket_path(run_dir, instance);
        let (listener, identity) = listen(run_dir, instance, &path)?;
        let mut looked = interval(LOOK);
        looked.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (run_dir, instance) = (run_dir.to_owned(), instance.to_owned());
        Ok(Self { listener, path, identity, run_dir, instance, looked, trouble: None, lock })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A connection. A socket that somebody removed is made again meanwhile.
    pub(super) async fn accept(&mut self) -> io::Result<UnixStream> {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => return accepted.map(|(stream, _)| stream),
                _ = self.looked.tick() => self.look(),
            }
        }
    }

    fn look(&mut self) {
        let problem = match identity(&self.path) {
            Ok(there) if there == self.identity => match self.keep_lock() {
                Ok(()) => return,
                Err(error) => format!("somebody removed this instance's lock: {error}"),
            },
            Ok(_) => format!("{} was replaced: clients cannot reach this daemon", self.path.display()),
            Err(_) => match self.make_again() {
                Ok(()) => {
                    tracing::warn!("somebody removed {}: made again", self.path.display());
                    self.trouble = None;
                    return;
                }
                Err(error) => format!("somebody removed {}: {error}; trying again", self.path.display()),
            },
        };
        if self.trouble.as_ref() != Some(&problem) {
            tracing::error!("{problem}");
            self.trouble = Some(problem);
        }
    }

    /// Takes the lock again, if somebody removed its file: another daemon could take it otherwise.
    fn keep_lock(&mut self) -> Result<(), SocketError> {
        if self.lock.is_there() {
            return Ok(());
        }
        let lock = InstanceLock::acquire(&self.run_dir, &self.instance)?;
        let state = self.lock.state.take();
        self.lock = lock.with_state(state);
        Ok(())
    }

    fn make_again(&mut self) -> Result<(), SocketError> {
        // The directory may have been removed, and the lock with it.
        self.keep_lock()?;
        (self.listener, self.identity) = listen(&self.run_dir, &self.instance, &self.path)?;
        Ok(())
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Listens, for whoever holds the lock.
fn listen(run_dir: &Path, instance: &str, path: &Path) -> Result<(UnixListener, Identity), SocketError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::Foreign(path.to_owned()));
        }
        _ => {}
    }
    // Who holds the lock may use the temporary name.
    let temporary = run_dir.join(format!(".{instance}.sock"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("cannot remove", &temporary)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&temporary).map_err(failed("cannot listen on", path))?;
    fs::set_permissions(&temporary, Permissions::from_mode(SOCKET_MODE))
        .map_err(failed("cannot set the mode of", path))?;
    let identity = identity(&temporary).map_err(failed("cannot look at", path))?;
    fs::rename(&temporary, path).map_err(failed("cannot listen on", path))?;
    Ok((listener, identity))
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|there| there == self.identity) {
            remove(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_daemon_for_each_instance() {
        let dir = tempfile::tempdir().expect("a directory");
        let run_dir = dir.path().join("run");
        let lock = InstanceLock::acquire(&run_dir, "a").expect("free");
        let error = InstanceLock::acquire(&run_dir, "a").expect_err("taken");
        assert!(matches!(error, SocketError::Running { pid: Some(pid), .. } if pid == std::process::id()));
        let other = InstanceLock::acquire(&run_dir, "b").expect("another instance");
        let socket = Socket::bind(&run_dir, "a", lock).expect("binds");
        let metadata = fs::symlink_metadata(socket.path()).expect("there");
        assert_eq!(metadata.mode() & 0o777, SOCKET_MODE);
        drop((socket, other));
        assert_eq!(fs::read_dir(&run_dir).expect("lists").count(), 0, "nothing is left behind");
    }

    #[test]
    fn a_state_has_one_daemon_wherever_its_socket_is() {
        let (state, run) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("another"));
        let first = StateLock::acquire(state.path(), "a").expect("free");
        let error = StateLock::acquire(state.path(), "a").expect_err("taken");
        assert!(error.to_string().contains("--run-dir"), "{error}");
        assert!(StateLock::acquire(state.path(), "b").expect("another instance").is_some());
        let lock = InstanceLock::acquire(run.path(), "a").expect("free").with_state(first);
        assert!(StateLock::acquire(state.path(), "a").is_err(), "held with the other lock");
        drop(lock);
        assert_eq!(fs::read_dir(state.path()).expect("lists").count(), 0, "nothing is left behind");
        assert!(StateLock::acquire(state.path(), "a").expect("free again").is_some());
        assert!(StateLock::acquire(&state.path().join("none"), "a").expect("goes without").is_none());
    }

    #[tokio::test]
    async fn a_dead_daemons_socket_is_replaced_but_no_other_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = socket_path(dir.path(), "a");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        let lock = InstanceLock::acquire(dir.path(), "a").expect("free");
        drop(Socket::bind(dir.path(), "a", lock).expect("replaces"));
        fs::write(&path, "mine").expect("writes");
        let lock = InstanceLock::acquire(dir.path(), "a").expect("free");
        assert!(matches!(Socket::bind(dir.path(), "a", lock), Err(SocketError::Foreign(_))));
        assert_eq!(fs::read_to_string(&path).expect("still there"), "mine");
    }
}
