//! The `mgre` daemon in a namespace, and its command line.

use std::{
    env,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        signal::{Signal, kill},
        statfs::{BPF_FS_MAGIC, statfs},
    },
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    netns::Netns,
    process::{self, Paused},
    skip, wait,
};

/// How long a daemon may take until it says `ready`. The verifier takes its time on a machine that is busy.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon may take until it has ended.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The `mgre` program: what `MGRE_BIN` names, else the one in the target folder that this program is in, else the one
/// on `PATH`.
///
/// # Errors
/// There is none.
pub fn program() -> Result<PathBuf> {
    if let Some(given) = env::var_os("MGRE_BIN") {
        let given =
            fs::canonicalize(&given).with_context(|| format!("MGRE_BIN names {}", given.display()))?;
        return Ok(given);
    }
    let this = env::current_exe()?;
    // target/PROFILE/demo or target/PROFILE/deps/TEST-HASH.
    let target = this.ancestors().skip(1).take(4);
    let beside = target.flat_map(|folder| [folder.join("mgre"), folder.join("release/mgre")]);
    beside
        .into_iter()
        .find(|file| file.is_file())
        .or_else(|| skip::find_program("mgre"))
        .context("there is no mgre program; cargo xtask build makes it")
}

/// How programs are to be attached at TC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tc {
    /// By TCX links.
    Tcx,
    /// By filters on a clsact qdisc.
    Clsact,
}

impl Tc {
    /// What `status` and `--tc-attach` call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// How a daemon is to be started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Its instance; `default` if empty.
    pub instance: String,
    /// Where it serves metrics over TCP, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// The configuration that it starts with.
    pub config: Option<PathBuf>,
    /// FDB entries that it has room for, if not as many as by itself.
    pub fdb_entries: Option<u32>,
    /// Adjacencies that it has room for, if not as many as by itself.
    pub adjacencies: Option<u32>,
    /// How it attaches programs; as `MGRE_TESTS_TC` says, or by its own choice, if not given.
    pub tc: Option<Tc>,
    /// Words of a command that becomes the daemon, such as `prlimit --nofile=64`.
    pub wrapper: Vec<String>,
    /// Another build of `mgre` than [`program`]'s, for the daemon and for the commands that talk to it.
    pub program: Option<PathBuf>,
}

/// What a command of `mgre` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// A daemon with folders and a BPF file system of its own. Stopped when dropped, with everything that it attached.
#[derive(Debug)]
pub struct Daemon {
    netns: PathBuf,
    options: Options,
    child: Option<Child>,
    folder: Option<TempDir>,
    path: PathBuf,
    show_log: bool,
}

impl Daemon {
    /// Starts a daemon and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready; what it said is in the error.
    pub fn start(netns: &Netns, options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("mgre-test-").tempdir()?;
        let path = folder.path().to_owned();
        Self::start_at(netns, options, path, Some(folder))
    }

    /// Starts a daemon in a folder that is not removed.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_in(netns: &Netns, options: Options, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        Self::start_at(netns, options, folder.to_owned(), None)
    }

    fn start_at(netns: &Netns, options: Options, path: PathBuf, folder: Option<TempDir>) -> Result<Self> {
        for name in ["run", "state", "bpf"] {
            fs::create_dir_all(path.join(name))?;
        }
        // Another instance may have it already.
        if statfs(&path.join("bpf"))?.filesystem_type() != BPF_FS_MAGIC {
            mount(Some("bpf"), &path.join("bpf"), Some("bpf"), MsFlags::empty(), Some("mode=0700"))
                .context("cannot mount a BPF file system")?;
        }
        let netns = netns.path();
        let mut daemon = Self { netns, options, child: None, folder, path, show_log: true };
        daemon.run()?;
        Ok(daemon)
    }

    /// Does not print the daemon's log when dropped. (In tests it is printed: the harness shows it where one fails.)
    pub fn hide_log(&mut self) {
        self.show_log = false;
    }

    /// Its folder: `run`, `state`, `bpf` and `log` are in it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it pins its maps and links.
    pub fn bpffs(&self) -> PathBuf {
        self.path.join("bpf")
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join("run").join(format!("{}.sock", self.instance()))
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Stops it where it stands, until what is given is dropped.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self) -> Result<Paused> {
        Paused::new(self.pid().context("the daemon does not run")?)
    }

    fn instance(&self) -> &str {
        if self.options.instance.is_empty() { "default" } else { &self.options.instance }
    }

    fn program(&self) -> Result<PathBuf> {
        self.options.program.clone().map_or_else(program, Ok)
    }

    /// The command that starts it.
    pub fn daemon_command(&self) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg("--").args(&self.options.wrapper);
        command.arg(self.program()?);
        command.args(["--instance", self.instance(), "--run-dir"]).arg(self.path.join("run")).arg("daemon");
        command.arg("--state-dir").arg(self.path.join("state")).arg("--bpffs").arg(self.bpffs());
        command.arg("--metrics");
        match self.options.metrics {
            Some(address) => command.arg(address.to_string()),
            None => command.arg("off"),
        };
        if let Some(config) = &self.options.config {
            command.arg("--config").arg(config);
        }
        if let Some(adjacencies) = self.options.adjacencies {
            command.arg("--adjacencies").arg(adjacencies.to_string());
        }
        if let Some(entries) = self.options.fdb_entries {
            command.arg("--fdb-entries").arg(entries.to_string());
        }
        let told = env::var("MGRE_TESTS_TC").ok();
        if let Some(tc) = self.options.tc.map(Tc::name).or(told.as_deref()) {
            command.args(["--tc-attach", tc]);
        }
        // nsenter becomes the daemon, so its id is the daemon's.
        command.env_remove("MGRE_INSTANCE").env_remove("MGRE_RUN_DIR").stdin(Stdio::null());
        Ok(command)
    }

    fn run(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.path.join("log"))?;
        let mut command = self.daemon_command()?;
        if self.folder.is_none() {
            // It may outlive this program, and is not for the terminal's Ctrl-C.
            command.process_group(0);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        self.child = Some(child);
        if let Err(error) = wait_ready(stdout) {
            bail!("the daemon does not become ready: {error:#}\n{}", self.log());
        }
        Ok(())
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path.join("log")).unwrap_or_default()
    }

    /// A command of `mgre` that talks to it.
    ///
    /// # Errors
    /// There is no `mgre`.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(self.program()?);
        command.args(["--instance", self.instance(), "--run-dir"]).arg(self.path.join("run")).args(arguments);
        command.env_remove("MGRE_INSTANCE").env_remove("MGRE_RUN_DIR").stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a command of `mgre`, whatever comes of it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn outcome(&self, arguments: &[&str]) -> Result<Outcome> {
        outcome(&mut self.command(arguments)?)
    }

    /// Runs a command of `mgre` and returns what it wrote to standard output.
    ///
    /// # Errors
    /// It failed; says what it wrote to standard error.
    pub fn mgre(&self, arguments: &[&str]) -> Result<String> {
        let outcome = self.outcome(arguments)?;
        if outcome.code != Some(0) {
            bail!("mgre {} failed ({:?}): {}", arguments.join(" "), outcome.code, outcome.stderr.trim());
        }
        Ok(outcome.stdout)
    }

    /// Runs a command of `mgre` with `--json`.
    ///
    /// # Errors
    /// It failed, or wrote no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [&["--json"], arguments].concat();
        let text = self.mgre(&arguments)?;
        serde_json::from_str(&text).with_context(|| format!("mgre {} wrote {text:?}", arguments.join(" ")))
    }

    /// Runs a command of `mgre` with `--json` that writes a list.
    ///
    /// # Errors
    /// It failed, or wrote no list.
    pub fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        match self.json(arguments)? {
            Value::Array(list) => Ok(list),
            other => bail!("mgre {} wrote no list: {other}", arguments.join(" ")),
        }
    }

    /// Sends SIGTERM and waits until it has ended.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGTERM)
    }

    /// Kills it, so that it can do nothing more.
    ///
    /// # Errors
    /// None, if it runs.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGKILL)
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        let Some(child) = &mut self.child else { bail!("the daemon does not run") };
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        self.wait()
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// It does not end; then it is killed.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let Some(mut child) = self.child.take() else { bail!("the daemon does not run") };
        let start = Instant::now();
        while start.elapsed() < wait::patient(STOP_LIMIT) {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        child.kill()?;
        child.wait()?;
        bail!("the daemon does not end within {:?}\n{}", wait::patient(STOP_LIMIT), self.log())
    }

    /// Starts it again, after it was stopped.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_again(&mut self) -> Result<()> {
        self.run()
    }

    /// The same, with room for so many FDB entries.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_again_with_room(&mut self, fdb_entries: u32) -> Result<()> {
        self.options.fdb_entries = Some(fdb_entries);
        self.run()
    }

    /// The same, with programs attached in another way.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_again_at(&mut self, tc: Tc) -> Result<()> {
        self.options.tc = Some(tc);
        self.run()
    }

    /// Leaves it running, with its folder.
    pub fn keep(mut self) {
        self.child = None;
        if let Some(folder) = self.folder.take() {
            // Never dropped, so it stays.
            let _path = folder.keep();
        }
        self.path = PathBuf::new();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        if self.child.is_some() {
            match self.stop() {
                Ok(status) if status.success() => {}
                Ok(status) => eprintln!("the daemon ended with {status} ({:?})", status.signal()),
                Err(error) => eprintln!("{error:#}"),
            }
        }
        if self.show_log {
            eprintln!("--- daemon in {} ---\n{}", self.netns.display(), self.log().trim_end());
        }
        if let Err(error) = umount2(&self.bpffs(), MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {error}", self.bpffs().display());
        }
    }
}

/// Waits for the line `ready`, and then goes on reading so that the daemon can go on writing.
fn wait_ready(stdout: ChildStdout) -> Result<()> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if line.trim() == "ready" {
                sender.send(()).ok();
            }
        }
    });
    match receiver.recv_timeout(wait::patient(READY_LIMIT)) {
        Ok(()) => Ok(()),
        Err(mpsc::RecvTimeoutError::Disconnected) => bail!("it ended"),
        Err(mpsc::RecvTimeoutError::Timeout) => bail!("nothing for {:?}", wait::patient(READY_LIMIT)),
    }
}

/// Runs a command, whatever comes of it.
///
/// # Errors
/// It cannot be started.
pub fn outcome(command: &mut Command) -> Result<Outcome> {
    let output = process::output(command, wait::patient(process::COMMAND_LIMIT))?;
    Ok(Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
