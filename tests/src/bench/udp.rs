//! Small datagrams between sockets: how many a second the receiving program gets.
//!
//! The sender and its way through the kernel have one CPU, the receiver another, where there are two. Both hand over
//! many datagrams with each system call, so that what is measured is the way and not the calls.

use std::{
    io::{IoSlice, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, setsockopt, sockopt::RcvBufForce},
};

use super::{
    contestant::{Contestant, host_ip},
    cpu, machine,
    race::Sample,
    stop,
};

/// What each datagram carries.
pub const PAYLOAD_LEN: usize = 64;
/// Datagrams of a system call.
const BATCH: usize = 64;
/// What may wait for the receiver: more than comes while the scheduler does something else.
const RECEIVE_BUFFER: usize = 8 << 20;
/// How long the receiver waits before it looks whether it is over, and the last datagrams may be under way.
const DRAIN: Duration = Duration::from_millis(50);
const WARM_UP: Duration = Duration::from_millis(100);

/// One round.
///
/// # Errors
/// Nothing arrived, or a socket fails.
pub fn measure(contestant: &Contestant, time: Duration) -> Result<Sample> {
    let flooded = contestant.teach()?;
    let receiver = contestant.host(2).enter(|| UdpSocket::bind(SocketAddr::from((host_ip(2), 0))))??;
    setsockopt(&receiver, RcvBufForce, &RECEIVE_BUFFER).context("cannot have a large receive buffer")?;
    receiver.set_read_timeout(Some(DRAIN))?;
    let address = receiver.local_addr()?;
    let sender = contestant.host(1).enter(|| -> Result<UdpSocket> {
        let socket = UdpSocket::bind(SocketAddr::from((host_ip(1), 0)))?;
        socket.connect(address)?;
        Ok(socket)
    })??;
    let (received, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let sample = thread::scope(|scope| {
        let receive = scope.spawn(|| receive(&receiver, &received, &over));
        let sample = scope.spawn(|| run(&sender, &received, time)).join();
        over.store(true, Ordering::Relaxed);
        receive.join().map_err(|_| anyhow!("the receiver panicked"))?.context("the receiver")?;
        sample.map_err(|_| anyhow!("the sender panicked"))?.context("the sender")
    })?;
    contestant.check_unicast(flooded)?;
    Ok(sample)
}

/// The sender's side.
fn run(socket: &UdpSocket, received: &AtomicU64, time: Duration) -> Result<Sample> {
    machine::claim(machine::busy_cpu())?;
    send(socket, WARM_UP)?;
    thread::sleep(DRAIN);
    let before = received.load(Ordering::Relaxed);
    let (meter, start) = (cpu::Meter::start()?, Instant::now());
    let sent = send(socket, time)?;
    let (elapsed, busy) = (start.elapsed(), meter.busy()?);
    thread::sleep(DRAIN);
    let delivered = received.load(Ordering::Relaxed) - before;
    ensure!(delivered > 0 && delivered <= sent, "{sent} datagrams sent, {delivered} arrived");
    let millions = |datagrams: u64| datagrams as f64 / elapsed.as_secs_f64() / 1e6;
    let cpu_ns = Some(busy.as_secs_f64() * 1e9 / delivered as f64);
    Ok(Sample { value: millions(delivered), sent: Some(millions(sent)), cpu_ns, ..Sample::default() })
}

/// Sends for a while, and says how many.
fn send(socket: &UdpSocket, time: Duration) -> Result<u64> {
    let payload = [0; PAYLOAD_LEN];
    let slices = [[IoSlice::new(&payload)]; BATCH];
    let nowhere = [None::<SockaddrIn>; BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let alone = machine::busy_cpu() == machine::quiet_cpu();
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < time {
        stop::check()?;
        match sendmmsg(socket.as_raw_fd(), &mut headers, &slices, nowhere, [], MsgFlags::empty()) {
            Ok(results) => sent += results.count() as u64,
            // A full queue on the way: lost, as on a network.
            Err(Errno::ENOBUFS | Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if alone {
            thread::yield_now();
        }
    }
    Ok(sent)
}

fn receive(socket: &UdpSocket, received: &AtomicU64, over: &AtomicBool) -> Result<()> {
    machine::claim(machine::quiet_cpu())?;
    let mut buffers = [[0; PAYLOAD_LEN]; BATCH];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    while !over.load(Ordering::Relaxed) {
        let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        match recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, MsgFlags::MSG_WAITFORONE, None) {
            Ok(results) => {
                received.fetch_add(results.count() as u64, Ordering::Relaxed);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
