//! One byte back and forth over TCP.
//!
//! Both ends on one CPU: waking an idle one costs more than the network does, and not the same each time.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use super::{
    contestant::{Contestant, host_ip},
    cpu, machine,
    race::Sample,
    stop,
};

/// How long a byte may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How many round trips there are between looks at the clock.
const CHUNK: u32 = 64;

/// One round.
///
/// # Errors
/// No connection, or it stalls.
pub fn measure(contestant: &Contestant, time: Duration) -> Result<Sample> {
    let listener = contestant.host(2).enter(|| TcpListener::bind(SocketAddr::from((host_ip(2), 0))))??;
    let address = listener.local_addr()?;
    let client = contestant.host(1).enter(|| TcpStream::connect_timeout(&address, LIMIT))??;
    let (server, _) = listener.accept()?;
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(server));
        // The client goes in the end, which ends the server.
        let sample =
            scope.spawn(|| exchange(client, time)).join().map_err(|_| anyhow!("a thread panicked"))?;
        server.join().map_err(|_| anyhow!("a thread panicked"))?.context("the server")?;
        sample
    })
}

fn prepare(stream: &TcpStream) -> Result<()> {
    machine::claim(machine::busy_cpu())?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(())
}

fn serve(mut stream: TcpStream) -> Result<()> {
    prepare(&stream)?;
    let mut byte = [0];
    loop {
        match stream.read_exact(&mut byte) {
            Ok(()) => stream.write_all(&byte)?,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Thousands of round trips in a second.
fn exchange(mut stream: TcpStream, time: Duration) -> Result<Sample> {
    prepare(&stream)?;
    let mut round_trips = 0_u32;
    let mut byte = [0];
    let (meter, start) = (cpu::Meter::start()?, Instant::now());
    while start.elapsed() < time {
        stop::check()?;
        for _ in 0..CHUNK {
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
        }
        round_trips += CHUNK;
    }
    let (elapsed, busy, round_trips) = (start.elapsed(), meter.busy()?, f64::from(round_trips));
    let value = round_trips / elapsed.as_secs_f64() / 1e3;
    Ok(Sample { value, cpu_ns: Some(busy.as_secs_f64() * 1e9 / round_trips), ..Sample::default() })
}
