//! Open vSwitch with GRE, where it is installed.
//!
//! Its kernel datapath needs a module and the kernel's GRE; the userspace one needs neither. That takes frames from
//! packet sockets, so it runs on whatever CPU is free, and what comes faster than it reads is lost.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{
    assemble,
    bpf::{Hook, Kind, Link, Program},
};
use crate::{netns::Netns, skip, wait};

/// Where packages put the database's layout.
const SCHEMAS: [&str; 2] =
    ["/usr/share/openvswitch/vswitch.ovsschema", "/usr/local/share/openvswitch/vswitch.ovsschema"];
const PROGRAMS: [&str; 5] = ["ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-appctl"];
const READY_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// The kernel's uptime from which on Open vSwitch counts CPUs: before that it starts no threads for packets that its
/// kernel datapath does not know what to do with, and those are lost.
const SETTLED: f64 = 11.0;
/// Its tunnel.
const TUNNEL: &str = "gre0";
/// The bridge with the underlay's interface and address, and that with the port and the tunnel.
const OUTSIDE: &str = "br-phy";
const INSIDE: &str = "br-int";

/// What of it is not installed, if anything.
pub fn missing() -> Option<String> {
    if let Some(program) = PROGRAMS.iter().find(|program| skip::find_program(program).is_none()) {
        return Some(format!("{program} is not installed"));
    }
    schema().is_none().then(|| "its database schema is not installed".to_owned())
}

/// Its version, if it is installed.
pub fn version() -> Option<String> {
    let output = Command::new("ovs-vswitchd").arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
}

/// Which of its datapaths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datapath {
    /// The kernel's.
    Kernel,
    /// Its own.
    Userspace,
}

impl Datapath {
    /// What of it is missing here, if anything.
    pub fn missing(self) -> Option<String> {
        let module = Path::new("/sys/module/openvswitch");
        missing().or_else(|| {
            if self == Self::Userspace {
                // Its bridges are tap devices.
                let device = Path::new("/dev/net/tun");
                if !device.exists() {
                    Command::new("modprobe").arg("tun").output().ok();
                }
                return (!device.exists()).then(|| "the kernel has no tun module".to_owned());
            }
            if module.exists() {
                return None;
            }
            let loaded = Command::new("modprobe").args(["-a", "openvswitch", "vport-gre"]).output();
            let why = match loaded {
                Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                Err(error) => error.to_string(),
            };
            (!module.exists()).then(|| format!("the kernel has no openvswitch module: {why}"))
        })
    }
}

fn schema() -> Option<PathBuf> {
    SCHEMAS.iter().map(PathBuf::from).find(|file| file.is_file())
}

/// A switch of its own in a namespace. Ends when dropped.
#[derive(Debug)]
pub struct Ovs {
    // In the order in which they end.
    processes: Vec<Child>,
    _links: Vec<Link>,
    folder: TempDir,
    netns: PathBuf,
}

impl Ovs {
    /// Starts one with its own datapath and lan0 as a port, and a GRE tunnel with key 7 through wan0, whose address it
    /// takes over.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(netns: &Netns, local: Ipv4Addr, remote: Ipv4Addr) -> Result<Self> {
        Self::start_with(netns, Datapath::Userspace, local, remote, &["options:key=7"])
    }

    /// The same, with a datapath, and the tunnel's options. With the kernel's datapath, wan0 keeps its address.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_with(
        netns: &Netns,
        datapath: Datapath,
        local: Ipv4Addr,
        remote: Ipv4Addr,
        options: &[&str],
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("mgre-ovs-").tempdir()?;
        let mut this = Self { processes: Vec::new(), _links: Vec::new(), folder, netns: netns.path() };
        this.start_processes(datapath)?;
        this.make_bridges(datapath, local, remote, options)?;
        netns.ip(&format!("link set {INSIDE} up"))?;
        if datapath == Datapath::Kernel {
            return Ok(this);
        }
        netns
            .ip(&format!("addr flush dev wan0\naddr add {local}/24 dev {OUTSIDE}\nlink set {OUTSIDE} up"))?;
        for interface in ["wan0", "lan0"] {
            // Packet sockets come first. The kernel itself is to do nothing about these frames; it would answer GRE.
            match drop_everything(netns, interface) {
                Ok(link) => this._links.push(link),
                // A kernel without TCX.
                Err(_) => {
                    netns.run(&["tc", "qdisc", "add", "dev", interface, "clsact"])?;
                    let filter =
                        ["tc", "filter", "add", "dev", interface, "ingress", "matchall", "action", "drop"];
                    netns.run(&filter)?;
                }
            }
        }
        Ok(this)
    }

    fn start_processes(&mut self, datapath: Datapath) -> Result<()> {
        let schema = schema().context("there is no database schema")?;
        let database = self.file("conf.db");
        crate::netns::run(Command::new("ovsdb-tool").arg("create").arg(&database).arg(schema))?;
        let mut server = self.command("ovsdb-server");
        server.arg(&database).arg(format!("--remote=punix:{}", self.file("db.sock").display()));
        self.spawn(server, "ovsdb-server")?;
        wait::until("ovsdb-server serves", READY_LIMIT, || Ok(self.file("db.sock").exists()))?;
        self.vsctl(&["--no-wait", "init"])?;
        let mut switch = self.command("ovs-vswitchd");
        match datapath {
            Datapath::Userspace => {
                switch.arg("--disable-system");
            }
            Datapath::Kernel => {
                wait::until("the machine is up long enough", Duration::from_secs(60), || {
                    Ok(uptime()? > SETTLED)
                })?;
            }
        }
        switch.arg(self.database());
        self.spawn(switch, "ovs-vswitchd")?;
        wait::until("ovs-vswitchd serves", READY_LIMIT, || Ok(self.control("ovs-vswitchd").exists()))?;
        Ok(())
    }

    fn make_bridges(
        &self,
        datapath: Datapath,
        local: Ipv4Addr,
        remote: Ipv4Addr,
        options: &[&str],
    ) -> Result<()> {
        let (local, remote) = (format!("options:local_ip={local}"), format!("options:remote_ip={remote}"));
        let kind = match datapath {
            Datapath::Userspace => "datapath_type=netdev",
            Datapath::Kernel => "datapath_type=system",
        };
        if datapath == Datapath::Userspace {
            self.vsctl(&[
                "add-br", OUTSIDE, "--", "set", "bridge", OUTSIDE, kind, "--", "add-port", OUTSIDE, "wan0",
            ])?;
        }
        self.vsctl(&[
            "add-br", INSIDE, "--", "set", "bridge", INSIDE, kind, "--", "add-port", INSIDE, "lan0",
        ])?;
        let tunnel =
            ["add-port", INSIDE, TUNNEL, "--", "set", "interface", TUNNEL, "type=gre", &local, &remote];
        self.vsctl(&[&tunnel[..], options].concat())
    }

    /// Its tunnel's counters, and what its datapath does with whom, for who wants to know why something fails.
    pub fn counters(&self) -> String {
        let mut text = String::new();
        for words in [&["dpctl/show", "-s"][..], &["dpctl/dump-flows"], &["fdb/show", INSIDE]] {
            let mut command = Command::new("ovs-appctl");
            command.arg("--target").arg(self.control("ovs-vswitchd")).args(words);
            text += &crate::netns::run(&mut command).unwrap_or_else(|error| format!("{error:#}\n"));
        }
        text
    }

    /// Whether it has learned these addresses, in the usual notation.
    ///
    /// # Errors
    /// It does not answer.
    pub fn knows(&self, macs: &[String]) -> Result<bool> {
        let mut command = Command::new("ovs-appctl");
        command.arg("--target").arg(self.control("ovs-vswitchd")).args(["fdb/show", INSIDE]);
        let table = crate::netns::run(&mut command)?;
        Ok(macs.iter().all(|mac| table.contains(mac.as_str())))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn control(&self, program: &str) -> PathBuf {
        self.file(&format!("{program}.ctl"))
    }

    fn database(&self) -> String {
        format!("unix:{}", self.file("db.sock").display())
    }

    /// A command in the namespace, with files of its own.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg("--").arg(program);
        command.arg(format!("--unixctl={}", self.control(program).display())).arg("-vsyslog:off");
        command.env("OVS_RUNDIR", self.folder.path()).env("OVS_LOGDIR", self.folder.path());
        command
    }

    fn spawn(&mut self, mut command: Command, name: &str) -> Result<()> {
        let log = fs::File::create(self.file(&format!("{name}.log")))?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        // The switch before its database.
        self.processes.insert(0, child.with_context(|| format!("cannot start {name}"))?);
        Ok(())
    }

    fn vsctl(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("ovs-vsctl");
        command.arg(format!("--db={}", self.database())).arg("--timeout=10").args(arguments);
        crate::netns::run(&mut command).map(|_| ()).with_context(|| self.log())
    }

    fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.file(name)).unwrap_or_default();
        read("ovs-vswitchd.log").lines().filter(|line| line.contains("|ERR|")).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        for process in &mut self.processes {
            if let Err(error) = end(process) {
                eprintln!("Open vSwitch: {error:#}");
            }
        }
    }
}

fn drop_everything(netns: &Netns, interface: &str) -> Result<Link> {
    netns.enter(|| {
        Program::load(Kind::Classifier, &assemble::drop_all())?.attach(Hook::TcxIngress, interface)
    })?
}

/// Seconds since the kernel started.
fn uptime() -> Result<f64> {
    let text = fs::read_to_string("/proc/uptime")?;
    Ok(text.split_whitespace().next().context("/proc/uptime is empty")?.parse()?)
}

/// Asks a process to end, and makes it.
fn end(process: &mut Child) -> Result<()> {
    // It may have ended by itself, as on Ctrl-C.
    if process.try_wait()?.is_none() {
        kill(Pid::from_raw(i32::try_from(process.id())?), Signal::SIGTERM)?;
        if wait::until("it ends", STOP_LIMIT, || Ok(process.try_wait()?.is_some())).is_err() {
            process.kill()?;
        }
    }
    process.wait()?;
    Ok(())
}
