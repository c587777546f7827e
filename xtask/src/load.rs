//! Running mgre on an interface of this host, in the foreground.

use std::{
    io::{BufRead as _, BufReader},
    net::IpAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{host, setup};

const READY_TIMEOUT: Duration = Duration::from_secs(30);
const END_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The interface that faces the other endpoints
    interface: String,
    /// The address of this host from which GRE is sent
    #[arg(long)]
    local: IpAddr,
    /// How to attach to the interface: auto, native, generic or tc
    #[arg(long, default_value = "auto")]
    mode: String,
    /// A segment to make
    #[arg(long)]
    segment: Option<String>,
    /// The segment's GRE key; without it, the segment is keyless
    #[arg(long, requires = "segment")]
    key: Option<u32>,
    /// An interface to make a port of the segment; may be repeated
    #[arg(long = "port", value_name = "IFACE", requires = "segment")]
    ports: Vec<String>,
    /// The instance's name
    #[arg(long, default_value = "default")]
    instance: String,
    /// Where metrics are served
    #[arg(long, default_value = "127.0.0.1:9747")]
    metrics: String,
}

/// What can happen while the daemon runs.
enum Event {
    Ready,
    /// The daemon closed its standard output, which it does when it ends.
    Ended,
    /// Somebody wants this to end.
    Interrupt,
}

pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<()> {
    setup::run(root, setup::Purpose::Run)?;
    let mgre = Mgre { program: host::build_mgre(root)?, instance: arguments.instance.clone() };
    host::ask_for_password()?;

    let (events, received) = channel();
    let interrupts = events.clone();
    // Nobody listens any more once the end has begun; then there is nothing left to interrupt.
    ctrlc::set_handler(move || drop(interrupts.send(Event::Interrupt))).context("cannot catch Ctrl-C")?;

    let mut daemon = Daemon::start(&mgre, arguments, events)?;
    let outcome = wait_until_ready(&received)
        .and_then(|()| configure(&mgre, arguments))
        .and_then(|()| wait_for_the_end(&received));
    // Both whatever happened before: nothing may stay behind on the interface.
    let detached = mgre.detach();
    let ended = daemon.end();
    outcome.and(detached).and(ended)
}

fn wait_until_ready(events: &Receiver<Event>) -> Result<()> {
    match events.recv_timeout(READY_TIMEOUT) {
        Ok(Event::Ready) => Ok(()),
        Ok(Event::Interrupt) => bail!("interrupted before the daemon was ready"),
        Ok(Event::Ended) | Err(RecvTimeoutError::Disconnected) => {
            bail!("the daemon ended before it was ready")
        }
        Err(RecvTimeoutError::Timeout) => {
            bail!("the daemon was not ready after {} s", READY_TIMEOUT.as_secs())
        }
    }
}

fn configure(mgre: &Mgre, arguments: &Arguments) -> Result<()> {
    for step in steps(arguments) {
        mgre.run(&step)?;
    }
    mgre.run(&["status".to_owned()])?;
    println!("{}", hints(mgre, arguments));
    Ok(())
}

fn wait_for_the_end(events: &Receiver<Event>) -> Result<()> {
    loop {
        match events.recv() {
            Ok(Event::Interrupt) => return Ok(()),
            Ok(Event::Ready) => {}
            Ok(Event::Ended) | Err(_) => bail!("the daemon ended by itself"),
        }
    }
}

/// The `mgre` commands that make what was asked for, in their order.
fn steps(arguments: &Arguments) -> Vec<Vec<String>> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let local = arguments.local.to_string();
    let mut steps =
        vec![words(&["underlay", "add", &arguments.interface, "--local", &local, "--mode", &arguments.mode])];
    if let Some(segment) = &arguments.segment {
        let mut step = words(&["segment", "add", segment]);
        if let Some(key) = arguments.key {
            step.extend(["--key".to_owned(), key.to_string()]);
        }
        steps.push(step);
        steps.extend(arguments.ports.iter().map(|port| words(&["port", "add", segment, port])));
    }
    steps
}

/// What to type next.
fn hints(mgre: &Mgre, arguments: &Arguments) -> String {
    let sudo = if host::is_root() { "" } else { "sudo " };
    let mgre = format!("{sudo}{} --instance {}", mgre.program.display(), mgre.instance);
    let segment = arguments.segment.as_deref().unwrap_or("SEGMENT");
    let mut hints = String::from("\nFrom another terminal:\n");
    if arguments.segment.is_none() {
        hints += &format!("  {mgre} segment add SEGMENT --key N\n");
    }
    if arguments.ports.is_empty() {
        hints += &format!("  {mgre} port add {segment} IFACE\n");
    }
    hints += &format!("  {mgre} peer add NAME REMOTE --segment {segment}\n");
    hints += &format!("  {mgre} fdb show\n");
    if arguments.metrics != "off" {
        hints += &format!("  curl http://{}/metrics\n", arguments.metrics);
    }
    hints + "Ctrl-C here detaches everything and ends the daemon."
}

/// A built `mgre` and the instance that it is to speak to.
struct Mgre {
    program: PathBuf,
    instance: String,
}

impl Mgre {
    fn command(&self) -> Result<Command> {
        let mut command = host::privileged(&self.program, &[])?;
        command.args(["--instance", &self.instance]);
        Ok(command)
    }

    fn run(&self, words: &[String]) -> Result<()> {
        println!("load: mgre {}", words.join(" "));
        host::run(self.command()?.args(words))
    }

    fn detach(&self) -> Result<()> {
        println!("load: mgre detach");
        // In a process group of its own, so that an impatient second Ctrl-C does not stop it half way.
        host::run(self.command()?.arg("detach").process_group(0))
    }
}

struct Daemon {
    child: Child,
}

impl Daemon {
    fn start(mgre: &Mgre, arguments: &Arguments, events: Sender<Event>) -> Result<Self> {
        println!("load: mgre daemon --metrics {}", arguments.metrics);
        let mut command = mgre.command()?;
        command.args(["daemon", "--metrics", &arguments.metrics]);
        // In a process group of its own Ctrl-C does not reach it: it must still serve the detach.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", host::shown(&command)))?;
        let output = child.stdout.take().context("the daemon has no standard output")?;
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                println!("{line}");
                // A send fails only when this program ends and nobody is interested any more.
                if line.trim() == "ready" && events.send(Event::Ready).is_err() {
                    return;
                }
            }
            drop(events.send(Event::Ended));
        });
        Ok(Self { child })
    }

    fn end(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        self.signal("-TERM")?;
        let deadline = Instant::now() + END_TIMEOUT;
        while Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        self.signal("-KILL")?;
        self.child.wait()?;
        bail!("the daemon did not end within {} s and was killed", END_TIMEOUT.as_secs())
    }

    /// Through a command, since a user may not signal root's process.
    fn signal(&self, signal: &str) -> Result<()> {
        let kill = host::find_program("kill").context("no kill command here")?;
        // sudo passes SIGTERM on; nobody could pass SIGKILL on, so that goes to the whole group.
        let target =
            if signal == "-KILL" { format!("-{}", self.child.id()) } else { self.child.id().to_string() };
        host::run(host::privileged(&kill, &[])?.args([signal, "--", &target]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Wrapper {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(words: &str) -> Arguments {
        Wrapper::try_parse_from(words.split(' ')).map(|wrapper| wrapper.arguments).expect("valid")
    }

    #[test]
    fn steps_in_order() {
        let arguments = parse("load eth1 --local 192.0.2.1 --segment lan --key 7 --port tap0 --port tap1");
        let steps: Vec<String> = steps(&arguments).iter().map(|words| words.join(" ")).collect();
        assert_eq!(
            steps,
            [
                "underlay add eth1 --local 192.0.2.1 --mode auto",
                "segment add lan --key 7",
                "port add lan tap0",
                "port add lan tap1"
            ]
        );
    }

    #[test]
    fn a_segment_is_optional_but_its_parts_need_it() {
        assert_eq!(steps(&parse("load eth1 --local 2001:db8::1 --mode native")).len(), 1);
        assert!(Wrapper::try_parse_from(["load", "eth1", "--local", "192.0.2.1", "--port", "tap0"]).is_err());
        assert!(Wrapper::try_parse_from(["load", "eth1", "--local", "here"]).is_err());
    }

    #[test]
    fn hints_name_what_is_left_to_do() {
        let mgre = Mgre { program: "/w/mgre".into(), instance: "default".into() };
        let bare = hints(&mgre, &parse("load eth1 --local 192.0.2.1"));
        assert!(bare.contains("segment add SEGMENT --key N"), "{bare}");
        assert!(bare.contains("curl http://127.0.0.1:9747/metrics"), "{bare}");
        let full =
            hints(&mgre, &parse("load eth1 --local 192.0.2.1 --segment lan --port tap0 --metrics off"));
        assert!(!full.contains("port add") && !full.contains("curl"), "{full}");
        assert!(full.contains("/w/mgre --instance default peer add NAME REMOTE --segment lan"), "{full}");
    }
}
