//! TCP streams whose bytes are compared, and numbered datagrams.

use std::{
    io::{Read as _, Write as _},
    mem::{self, size_of},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    ptr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};

use super::{report::Verdict, station::Station};
use crate::wait;

/// How long a stream may take in all.
const LIMIT: Duration = Duration::from_secs(25);
/// However slow the machine is: streams are short.
const MOST: Duration = Duration::from_secs(100);
/// How long a connection may take: a few times what it takes to send what opens it again.
const CONNECT: Duration = Duration::from_secs(3);
/// How long one system call may take.
const CALL: Duration = Duration::from_secs(10);
const CHUNK: usize = 1 << 16;
/// Room for datagrams that wait to be read.
const RECEIVE_BUFFER: usize = 32 << 20;
/// How long the last datagrams may be under way.
const DRAIN: Duration = Duration::from_millis(500);

/// Sends so many bytes over TCP from one station to an address of the other; each must arrive as it was sent.
///
/// # Errors
/// There is no connection, it breaks, or takes too long.
pub fn tcp(from: &Station, to: &Station, address: IpAddr, bytes: usize) -> Result<Verdict> {
    let listener = to.netns.enter(|| TcpListener::bind(SocketAddr::new(address, 0)))??;
    let destination = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    let deadline = start + wait::patient(LIMIT).min(MOST);
    let sending = AtomicBool::new(true);
    let (sent, received) = thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&listener, bytes, &sending, deadline));
        let sent = send(from, destination, bytes, deadline);
        sending.store(false, Ordering::Relaxed);
        (sent, receiver.join().map_err(|_| anyhow!("the receiver panicked")).and_then(|result| result))
    });
    let seconds = start.elapsed().as_secs_f64();
    match (sent, received) {
        (Ok(again), Ok(())) => {
            let rate = bytes as f64 * 8.0 / seconds / 1e6;
            Ok(Verdict::Pass(format!("{bytes} bytes, {rate:.0} Mbit/s, {again} segments sent again")))
        }
        // Who sends sees an error first where nothing gets through at all.
        (Err(error), Ok(()) | Err(_)) => Err(error.context(format!("after {seconds:.1} s"))),
        (Ok(_), Err(error)) => Err(error.context(format!("after {seconds:.1} s"))),
    }
}

fn source() -> SmallRng {
    SmallRng::seed_from_u64(3)
}

/// Sends, and says how many segments had to be sent again.
fn send(from: &Station, destination: SocketAddr, bytes: usize, deadline: Instant) -> Result<u32> {
    let limit = wait::patient(CALL).min(MOST);
    let connect = || TcpStream::connect_timeout(&destination, wait::patient(CONNECT).min(MOST));
    let mut stream =
        from.netns.enter(connect)?.with_context(|| format!("cannot connect to {destination}"))?;
    stream.set_write_timeout(Some(limit))?;
    let mut random = source();
    let mut chunk = vec![0; CHUNK];
    let mut rest = bytes;
    while rest > 0 {
        ensure!(Instant::now() < deadline, "{rest} of {bytes} bytes are not sent in time");
        let part = &mut chunk[..rest.min(CHUNK)];
        random.fill_bytes(part);
        stream.write_all(part).with_context(|| format!("with {rest} of {bytes} bytes to be sent"))?;
        rest -= part.len();
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // The other end closes when it has everything.
    stream.set_read_timeout(Some(limit))?;
    let closed = stream.read(&mut [0]).context("the receiver does not close")?;
    ensure!(closed == 0, "the receiver sent something");
    retransmissions(&stream)
}

/// Takes a stream, if one comes while somebody is sending.
fn receive(listener: &TcpListener, bytes: usize, sending: &AtomicBool, deadline: Instant) -> Result<()> {
    let mut stream = loop {
        let sending = sending.load(Ordering::Relaxed);
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                ensure!(sending && Instant::now() < deadline, "nobody connects");
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(wait::patient(CALL).min(MOST)))?;
    let mut random = source();
    let (mut chunk, mut wanted) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut read = 0;
    while read < bytes {
        ensure!(Instant::now() < deadline, "{read} of {bytes} bytes arrived in time");
        let part = &mut chunk[..(bytes - read).min(CHUNK)];
        stream.read_exact(part).with_context(|| format!("after {read} bytes"))?;
        let wanted = &mut wanted[..part.len()];
        random.fill_bytes(wanted);
        if let Some(place) = part.iter().zip(wanted).position(|(got, wanted)| got != wanted) {
            bail!("byte {} is another one", read + place);
        }
        read += part.len();
    }
    ensure!(stream.read(&mut [0])? == 0, "more arrives than was sent");
    Ok(())
}

fn retransmissions(stream: &TcpStream) -> Result<u32> {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the pointer and the length are those of one structure, and the kernel writes no more than that.
    let got = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            ptr::from_mut(&mut info).cast(),
            &raw mut length,
        )
    };
    if got < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(info.tcpi_total_retrans)
}

/// Numbered datagrams from one station to the other, at a steady rate, while something is done.
///
/// Returns what was done, how many were sent, and those that did not arrive.
///
/// # Errors
/// Sockets cannot be made, or what is done meanwhile fails.
pub fn numbered<T>(
    from: &Station,
    to: &Station,
    interval: Duration,
    during: impl FnOnce() -> Result<T>,
) -> Result<(T, u32, Vec<u32>)> {
    let receiver = to.netns.enter(|| UdpSocket::bind(SocketAddr::new(to.ipv4().into(), 0)))??;
    setsockopt(&receiver, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    receiver.set_read_timeout(Some(Duration::from_millis(20)))?;
    let sender = from.netns.enter(|| UdpSocket::bind(SocketAddr::new(from.ipv4().into(), 0)))??;
    sender.connect(receiver.local_addr()?)?;
    let (sent, sending, receiving) = (AtomicU32::new(0), AtomicBool::new(true), AtomicBool::new(true));
    thread::scope(|scope| {
        let reader = scope.spawn(|| read_numbers(&receiver, &receiving));
        let writer = scope.spawn(|| {
            let start = Instant::now();
            while sending.load(Ordering::Relaxed) {
                let number = sent.load(Ordering::Relaxed);
                // One that the kernel does not take is one that does not arrive.
                sender.send(&number.to_be_bytes()).ok();
                sent.store(number + 1, Ordering::Relaxed);
                // What the clock missed is not made up for: a burst is another traffic.
                let next = interval * (number + 1);
                thread::sleep(next.saturating_sub(start.elapsed()).max(interval / 2));
            }
        });
        let done = during();
        sending.store(false, Ordering::Relaxed);
        let wrote = writer.join().map_err(|_| anyhow!("the sender panicked"));
        thread::sleep(wait::patient(DRAIN));
        receiving.store(false, Ordering::Relaxed);
        let read = reader.join().map_err(|_| anyhow!("the receiver panicked"))??;
        wrote?;
        let sent = sent.load(Ordering::Relaxed);
        let seen = |number: &u32| read.get(*number as usize).copied().unwrap_or(false);
        Ok((done?, sent, (0..sent).filter(|number| !seen(number)).collect()))
    })
}

/// Which numbers arrived.
fn read_numbers(socket: &UdpSocket, receiving: &AtomicBool) -> Result<Vec<bool>> {
    let mut seen = Vec::new();
    let mut number = [0; 4];
    loop {
        let ending = !receiving.load(Ordering::Relaxed);
        match socket.recv(&mut number) {
            Ok(4) => {
                let number = u32::from_be_bytes(number) as usize;
                if seen.len() <= number {
                    seen.resize(number + 1, false);
                }
                seen[number] = true;
            }
            Ok(length) => bail!("a datagram of {length} bytes"),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if ending {
                    return Ok(seen);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}
