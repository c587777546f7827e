//! ping and iperf3.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

use crate::{netns::Netns, process, wait};

/// How many echo requests went out and how many replies came back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pings {
    /// Requests.
    pub sent: u32,
    /// Replies.
    pub received: u32,
    /// The least time from a request to its reply.
    pub round_trip_ms: Option<f64>,
}

impl Pings {
    /// Whether there were requests and each had its reply.
    pub fn all_came_back(self) -> bool {
        self.sent > 0 && self.sent == self.received
    }
}

/// Runs `ping` with these arguments, the address last.
///
/// # Errors
/// `ping` does not understand them.
pub fn ping(netns: &Netns, arguments: &[&str]) -> Result<Pings> {
    let mut command = netns.command("ping");
    let output = process::output(command.arg("-n").args(arguments), wait::patient(process::COMMAND_LIMIT))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_ping(&text).with_context(|| {
        format!("ping {}: {text}{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr))
    })
}

fn parse_ping(text: &str) -> Result<Pings> {
    let line = text.lines().find(|line| line.contains("packets transmitted")).context("no summary")?;
    let number = |part: &str| part.split_whitespace().next().and_then(|word| word.parse().ok());
    let mut parts = line.split(", ");
    // rtt min/avg/max/mdev = 0.033/0.038/0.044/0.004 ms
    let times = text.lines().find_map(|line| line.strip_prefix("rtt ")?.split(" = ").nth(1));
    let round_trip_ms = times.and_then(|times| times.split('/').next()?.parse().ok());
    match (parts.next().and_then(number), parts.next().and_then(number)) {
        (Some(sent), Some(received)) => Ok(Pings { sent, received, round_trip_ms }),
        _ => bail!("cannot read {line:?}"),
    }
}

/// For so many seconds of a usual machine `ping` waits for a reply that may not come.
fn seconds(seconds: f64) -> String {
    wait::quiet(Duration::from_secs_f64(seconds)).as_secs_f64().to_string()
}

/// Whether echo requests have a reply. Asks again where the first had none: a host asks for an address that it does not
/// know once a second, so that the reply to one request says as much about the clock as about the path.
///
/// # Errors
/// `ping` cannot be run.
pub fn reaches(netns: &Netns, address: &str) -> Result<bool> {
    let start = Instant::now();
    while start.elapsed() < wait::patient(wait::SOON) {
        if ping(netns, &["-c", "1", "-W", &seconds(1.0), address])?.all_came_back() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether an echo request has no reply within a second of a usual machine.
///
/// # Errors
/// `ping` cannot be run.
pub fn cut_off(netns: &Netns, address: &str) -> Result<bool> {
    Ok(ping(netns, &["-c", "1", "-W", &seconds(1.0), address])?.received == 0)
}

/// Whether an echo request of so many bytes, that nobody may cut, has a reply. The one who sends it must know the
/// other's address: no other request is sent.
///
/// # Errors
/// `ping` cannot be run.
pub fn fits(netns: &Netns, address: &str, packet_len: u32) -> Result<bool> {
    let headers = if address.contains(':') { 40 + 8 } else { 20 + 8 };
    let data = (packet_len - headers).to_string();
    Ok(ping(netns, &["-M", "do", "-c", "1", "-W", &seconds(1.5), "-s", &data, address])?.all_came_back())
}

/// Sends echo requests until one has a reply, and says how long that took.
///
/// # Errors
/// None has within `limit`.
pub fn wait_reachable(netns: &Netns, address: &str, limit: Duration) -> Result<Duration> {
    wait::until(&format!("{address} answers {}", netns.name()), limit, || {
        Ok(ping(netns, &["-c", "1", "-W", &seconds(0.3), address])?.all_came_back())
    })
}

/// A `ping` that runs beside the test. Killed when dropped.
#[derive(Debug)]
pub struct Background {
    child: Child,
    /// The sequence numbers of the replies.
    replies: Arc<Mutex<BTreeSet<u32>>>,
    reader: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts `ping` with these arguments, the address last.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ping(netns: &Netns, arguments: &[&str]) -> Result<Self> {
        let mut command = netns.command("ping");
        command.arg("-n").args(arguments).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("cannot start ping")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let replies = Arc::new(Mutex::new(BTreeSet::new()));
        let reader = thread::spawn({
            let replies = Arc::clone(&replies);
            move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    replies.lock().unwrap_or_else(PoisonError::into_inner).extend(reply_number(&line));
                }
            }
        });
        Ok(Self { child, replies, reader: Some(reader) })
    }

    fn last(&self) -> u32 {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner).last().copied().unwrap_or(0)
    }

    /// Waits for one more reply, then interrupts it and returns what came of the requests up to that one. (What is
    /// under way when it is interrupted is not lost.)
    ///
    /// # Errors
    /// There is no reply any more, or it has ended.
    pub fn interrupt(mut self) -> Result<Pings> {
        let before = self.last();
        wait::until("one more reply", wait::SOON, || Ok(self.last() > before))?;
        let process = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGINT)?;
        self.child.wait()?;
        if let Some(reader) = self.reader.take() {
            reader.join().map_err(|_| anyhow!("the thread that reads ping panicked"))?;
        }
        let replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = replies.last().copied().unwrap_or(0);
        Ok(Pings { sent, received: u32::try_from(replies.len())?, round_trip_ms: None })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// `64 bytes from 10.77.0.2: icmp_seq=7 ttl=64 time=0.05 ms`: 7.
fn reply_number(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once("bytes from")?.1.split_once("icmp_seq=")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Kills a process that may have ended already, and waits for it.
fn end(child: &mut Child) {
    if let Ok(None) = child.try_wait() {
        child.kill().and_then(|()| child.wait()).map_or_else(|error| eprintln!("{error}"), |_| ());
    }
}

/// What `iperf3` measured.
#[derive(Clone, Debug)]
pub struct Iperf {
    /// Bits per second that arrived.
    pub bits_per_second: f64,
    /// Bytes that arrived.
    pub bytes: f64,
    /// Datagrams lost, in per cent; of UDP alone.
    pub lost_percent: f64,
    /// Everything it wrote.
    pub report: Value,
}

/// Runs `iperf3` from one namespace to an address of another, with these arguments beside.
///
/// # Errors
/// It fails, or takes far longer than it should.
pub fn iperf3(from: &Netns, to: &Netns, address: &str, seconds: u32, arguments: &[&str]) -> Result<Iperf> {
    let mut server = to.command("iperf3");
    server.args(["--server", "--one-off", "--forceflush", "--bind", address]);
    let mut server =
        server.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("cannot start iperf3")?;
    let result = wait_listening(&mut server).and_then(|()| client(from, address, seconds, arguments));
    end(&mut server);
    result
}

/// Runs `iperf3` until a run moves at least so many bits a second, three times at most. A machine that does something
/// else for a while is no path that does not work, and that one is as slow the third time.
///
/// # Errors
/// No run does, or the last one fails.
pub fn iperf3_at_least(
    bits_per_second: f64,
    (from, to): (&Netns, &Netns),
    address: &str,
    seconds: u32,
    arguments: &[&str],
) -> Result<Iperf> {
    let bits_per_second = wait::rate(bits_per_second);
    let run = || {
        let iperf = iperf3(from, to, address, seconds, arguments)?;
        if iperf.bits_per_second < bits_per_second {
            bail!(
                "{:.0} bit/s to {address}, and {bits_per_second:.0} at least were to be",
                iperf.bits_per_second
            );
        }
        Ok(iperf)
    };
    run().or_else(|_| run()).or_else(|_| run())
}

fn wait_listening(server: &mut Child) -> Result<()> {
    let stdout = server.stdout.take().context("no standard output")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if line.contains("listening") {
                sender.send(()).ok();
            }
        }
    });
    receiver.recv_timeout(wait::patient(wait::SOON)).context("iperf3 does not listen")
}

fn client(from: &Netns, address: &str, seconds: u32, arguments: &[&str]) -> Result<Iperf> {
    let seconds_text = seconds.to_string();
    let limit = wait::patient(Duration::from_secs(15)) + Duration::from_secs(seconds.into());
    let limit = limit.as_secs().to_string();
    let connect_limit = wait::patient(Duration::from_secs(5)).as_millis().to_string();
    let mut command = from.command("timeout");
    command.args([&limit, "iperf3", "--json", "--connect-timeout", &connect_limit, "--time", &seconds_text]);
    command.args(["--client", address]).args(arguments);
    let output = command.output().context("cannot start iperf3")?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("iperf3: {}", String::from_utf8_lossy(&output.stderr)))?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let end = &report["end"];
    let received = if end["sum_received"].is_object() { &end["sum_received"] } else { &end["sum"] };
    let number = |name: &str| received[name].as_f64().with_context(|| format!("iperf3 gives no {name}"));
    Ok(Iperf {
        bits_per_second: number("bits_per_second")?,
        bytes: number("bytes")?,
        lost_percent: end["sum"]["lost_percent"].as_f64().unwrap_or(0.0),
        report: report.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ping_summaries() {
        let text = "3 packets transmitted, 2 received, 33.3333% packet loss, time 402ms\n\
                    rtt min/avg/max/mdev = 0.033/0.038/0.044/0.004 ms\n";
        let pings = parse_ping(text).expect("reads");
        assert_eq!(pings, Pings { sent: 3, received: 2, round_trip_ms: Some(0.033) });
        let text = "1 packets transmitted, 0 received, +1 errors, 100% packet loss, time 0ms";
        assert_eq!(parse_ping(text).expect("reads"), Pings { sent: 1, received: 0, round_trip_ms: None });
        assert!(parse_ping("connect: Network is unreachable").is_err());
    }

    #[test]
    fn replies_have_numbers() {
        assert_eq!(reply_number("64 bytes from 10.77.0.2: icmp_seq=17 ttl=64 time=0.05 ms"), Some(17));
        assert_eq!(reply_number("From 10.77.0.1 icmp_seq=3 Destination Host Unreachable"), None);
        assert_eq!(reply_number("PING 10.77.0.2 (10.77.0.2) 56(84) bytes of data."), None);
    }
}
