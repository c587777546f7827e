//! Rings and tables that are full, descriptors that run out, and thousands of clients.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use mgre_tests::{
    capture,
    daemon::Options,
    http::{exchange, request},
    lone::Lone,
    metrics::Metrics,
    packet::{BROADCAST, Datagram, Mac, UNKNOWN, mac_text, marked},
    process,
    skip::{skipped, tc_of_kernel},
    topology::SEGMENT,
    wait,
};

use nix::sys::socket::{setsockopt, sockopt};

/// Where metrics are served: on all addresses, as for a scraper on another host.
const METRICS: ([u8; 4], u16) = ([0, 0, 0, 0], 9747);

fn station(number: u32) -> Mac {
    let [_, _, high, low] = number.to_be_bytes();
    [0x02, 0, 0, 0xbb, high, low]
}

/// Frames from stations that nobody knows, behind `lan0`. Not faster than one port may report addresses.
fn send(lone: &Lone, stations: impl IntoIterator<Item = u32>) -> Result<()> {
    let frames: Vec<_> =
        stations.into_iter().map(|number| marked(BROADCAST, station(number), "here")).collect();
    for some in frames.chunks(512) {
        capture::send(&lone.netns, "host0", some)?;
        sleep(Duration::from_millis(80));
    }
    Ok(())
}

fn learned(lone: &Lone) -> Result<usize> {
    Ok(lone.daemon.json(&["status"])?["fdb_entries"].as_u64().context("a number")? as usize)
}

#[test]
fn events_that_the_ring_has_no_room_for_are_counted_and_come_again() -> Result<()> {
    const STATIONS: u32 = 14_000;
    if skipped() {
        return Ok(());
    }
    let lone = Lone::new(Options::default())?;
    lone.daemon.mgre(&["segment", "set", SEGMENT, "--max-macs", "100000"])?;
    let metric = |name: &str| -> Result<f64> {
        let metrics = Metrics::over_socket(&lone.daemon.socket())?;
        metrics.get(name, &[]).with_context(|| format!("no {name}"))
    };
    let paused = lone.daemon.pause()?;
    send(&lone, 0..STATIONS)?;
    drop(paused);
    wait::until("what the ring held is learned", wait::SOON, || {
        Ok(metric("mgre_fdb_events_total")? + metric("mgre_fdb_events_lost_total")? >= f64::from(STATIONS))
    })?;
    let (events, lost) = (metric("mgre_fdb_events_total")?, metric("mgre_fdb_events_lost_total")?);
    // The ring holds some 10,900.
    assert!(lost > 1000.0 && events > 8000.0, "{events} events, {lost} lost");
    assert_eq!(events + lost, f64::from(STATIONS));
    assert_eq!(learned(&lone)? as f64, events);
    let status = lone.daemon.json(&["status"])?;
    assert_eq!(status["events_lost"].as_f64(), Some(lost), "{status}");
    // No frame was.
    assert_eq!(lone.peer("b")?["tx_packets"], STATIONS);
    // Who was not learned speaks again, and is.
    let known: std::collections::HashSet<String> = lone
        .daemon
        .list(&["fdb", "show"])?
        .iter()
        .filter_map(|entry| entry["mac"].as_str().map(str::to_owned))
        .collect();
    let missing: Vec<u32> =
        (0..STATIONS).filter(|number| !known.contains(&mac_text(station(*number)))).collect();
    assert_eq!(missing.len() as f64, lost);
    send(&lone, missing)?;
    wait::until("all are learned", wait::SOON, || Ok(learned(&lone)? == STATIONS as usize)).map(|_| ())
}

#[test]
fn frames_too_big_that_the_ring_has_no_room_for_are_dropped_and_counted_all_the_same() -> Result<()> {
    const FRAMES: u32 = 3000;
    const SERVER: Mac = [0x02, 0, 0, 0, 0xaa, 0x05];
    if skipped() {
        return Ok(());
    }
    let lone = Lone::new(Options::default())?;
    lone.daemon.mgre(&["fdb", "add", SEGMENT, &mac_text(SERVER), "--peer", "b"])?;
    let frame = |number: u32| {
        let [_, _, high, low] = number.to_be_bytes();
        let source = Ipv4Addr::new(10, 77, high, low).into();
        let destination = (SERVER, Ipv4Addr::new(10, 78, 0, 1).into());
        let datagram = Datagram::new((station(number), source), destination);
        Datagram { dont_fragment: true, length: 1500, ..datagram }.frame()
    };
    let frames = (0..FRAMES).map(frame).collect::<Result<Vec<_>>>()?;
    let count = |name: &str| -> Result<u64> {
        lone.daemon.json(&["status"])?["slow_path"][name].as_u64().context("no such number")
    };
    let handled = || -> Result<u64> { Ok(count("icmp_sent")? + count("icmp_suppressed")?) };
    let paused = lone.daemon.pause()?;
    for some in frames.chunks(500) {
        capture::send(&lone.netns, "host0", some)?;
    }
    drop(paused);
    let dropped = || -> Result<u64> {
        let rows = lone.daemon.list(&["stats", "--drops"])?;
        Ok(rows
            .iter()
            .filter(|row| row["reason"] == "too_big")
            .filter_map(|row| row["packets"].as_u64())
            .sum())
    };
    wait::until("all are counted", wait::SOON, || Ok(dropped()? == u64::from(FRAMES)))?;
    wait::until("some senders are told", wait::SOON, || Ok(count("icmp_sent")? > 0))?;
    let told = handled()?;
    assert!(told < u64::from(FRAMES), "the ring was not full: {told}");
    // It goes on.
    wait::until("the next one is told", wait::SOON, || {
        let before = count("icmp_sent")?;
        capture::send(&lone.netns, "host0", &[frame(FRAMES + 1)?])?;
        sleep(Duration::from_millis(50));
        Ok(count("icmp_sent")? > before)
    })
    .map(|_| ())
}

#[test]
fn a_full_fdb_takes_no_more_and_forgets_nobody() -> Result<()> {
    const ENTRIES: u32 = 32;
    const SERVER: &str = "02:00:00:00:aa:05";
    if skipped() {
        return Ok(());
    }
    let lone = Lone::new(Options { fdb_entries: Some(ENTRIES), ..Options::default() })?;
    lone.daemon.mgre(&["fdb", "add", SEGMENT, SERVER, "--peer", "b"])?;
    send(&lone, 0..2 * ENTRIES)?;
    wait::until("the FDB is full", wait::SOON, || Ok(learned(&lone)? == ENTRIES as usize))?;
    let entries = || -> Result<Vec<String>> {
        let list = lone.daemon.list(&["fdb", "show"])?;
        Ok(list
            .iter()
            .map(|entry| format!("{} {} {}", entry["mac"], entry["peer"], entry["flags"]))
            .collect())
    };
    let before = entries()?;
    let warned = || lone.daemon.log().matches("the FDB is full (--fdb-entries)").count();
    wait::until("it is said", wait::SOON, || Ok(warned() > 0))?;
    // Once a second, not once an address.
    send(&lone, 2 * ENTRIES..4 * ENTRIES)?;
    assert!(warned() <= 5, "said {} times", warned());

    let export = lone.daemon.mgre(&["export"])?;
    let answer = request(&lone.daemon.socket(), "PUT", "/v1/fdb/lan/02:00:00:00:aa:06", r#"{"peer": "b"}"#)?;
    assert_eq!(answer.status, 409, "{answer:?}");
    let outcome = lone.daemon.outcome(&["fdb", "add", SEGMENT, "02:00:00:00:aa:06", "--port", "lan0"])?;
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    for word in ["FDB is full", "32 of 32", "mgre fdb flush", "--fdb-entries"] {
        assert!(outcome.stderr.contains(word), "{word}: {outcome:?}");
    }
    assert_eq!(lone.daemon.mgre(&["export"])?, export);
    assert_eq!(entries()?, before, "somebody lost its place");
    // What is there may be given another meaning without more room.
    let one = mac_text(station(0));
    if before.iter().any(|entry| entry.contains(&one)) {
        lone.daemon.mgre(&["fdb", "add", SEGMENT, &one, "--port", "lan0"])?;
    }

    lone.daemon.mgre(&["fdb", "flush"])?;
    lone.daemon.mgre(&["fdb", "add", SEGMENT, "02:00:00:00:aa:06", "--port", "lan0"])?;
    wait::until("learning goes on", wait::SOON, || {
        capture::send(&lone.netns, "host0", &[marked(BROADCAST, UNKNOWN, "again")])?;
        Ok(entries()?.iter().any(|entry| entry.contains(&mac_text(UNKNOWN))))
    })?;
    assert!(entries()?.iter().any(|entry| entry.contains(SERVER)));
    Ok(())
}

#[test]
fn what_the_host_needs_goes_before_what_was_learned() -> Result<()> {
    const ENTRIES: u32 = 32;
    const OURS: &str = "02:00:00:00:aa:07";
    const NEXT_HOP: Mac = [0x02, 0, 0, 0, 0xfe, 0x77];
    if skipped() {
        return Ok(());
    }
    let lone = Lone::new(Options { fdb_entries: Some(ENTRIES), ..Options::default() })?;
    lone.daemon.mgre(&["port", "create", SEGMENT, "ov0"])?;
    send(&lone, 0..2 * ENTRIES)?;
    wait::until("the FDB is full", wait::SOON, || Ok(learned(&lone)? == ENTRIES as usize))?;
    // Both at once: an address of ours for which there is no room, and a next hop that changes.
    lone.netns.ip(&format!(
        "link set ov0 address {OURS}\nneigh replace 10.0.0.2 lladdr {} dev wan0 nud permanent",
        mac_text(NEXT_HOP)
    ))?;
    wait::until("the address is known", wait::SOON, || {
        Ok(lone.daemon.list(&["fdb", "show"])?.iter().any(|entry| entry["mac"] == OURS))
    })?;
    assert!(learned(&lone)? <= ENTRIES as usize);
    let at_core = capture::Capture::start(&lone.netns, "core0")?;
    wait::until("packets go to the new next hop", wait::SOON, || {
        capture::send(&lone.netns, "host0", &[marked(BROADCAST, station(0), "to the next hop")])?;
        Ok(at_core.count(|frame| frame.bytes[..6] == NEXT_HOP) > 0)
    })?;
    Ok(())
}

#[test]
fn peers_have_room_however_many_addresses_this_host_has() -> Result<()> {
    const PEERS: u32 = 200;
    /// As many as there is room for with all the peers.
    const UNDERLAYS: u8 = 8;
    if skipped() {
        return Ok(());
    }
    let options = Options { adjacencies: Some(PEERS), ..Options::default() };
    let (lone, ()) = Lone::prepared(options, |_| Ok(()))?;
    let add = |number: u8| {
        let (name, local) = (format!("up{number}"), format!("10.8.{number}.1"));
        lone.netns.ip(&format!(
            "link add {name} type veth peer name down{number}\nlink set {name} up\nlink set down{number} up\n\
             addr add {local}/24 dev {name}"
        ))?;
        lone.daemon.outcome(&["underlay", "add", &name, "--local", &local])
    };
    for number in 0..UNDERLAYS {
        assert_eq!(add(number)?.code, Some(0));
    }
    let mut document = lone.daemon.mgre(&["export"])?;
    document += "[[segment]]\nname = \"lan\"\nkey = 7\n";
    for number in 0..PEERS {
        let remote = format!("10.8.{}.{}", number % 8, 2 + number / 8);
        document += &format!("[[peer]]\nname = \"p{number}\"\nremote = \"{remote}\"\nsegments = [\"lan\"]\n");
    }
    let file = lone.daemon.path().join("peers.toml");
    fs::write(&file, document)?;
    lone.daemon.mgre(&["apply", file.to_str().context("a path")?])?;
    assert_eq!(lone.daemon.json(&["status"])?["peers"], PEERS);
    let export = lone.daemon.mgre(&["export"])?;
    let outcome = add(UNDERLAYS)?;
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    assert!(outcome.stderr.contains("--adjacencies"), "{outcome:?}");
    assert_eq!(lone.daemon.mgre(&["export"])?, export);
    fs::write(&file, format!("{export}\n[[underlay]]\ninterface = \"up8\"\nlocal = \"10.8.8.1\"\n"))?;
    let tried = lone.daemon.outcome(&["apply", "--dry-run", file.to_str().context("a path")?])?;
    assert_eq!((tried.code, &tried.stderr), (Some(1), &outcome.stderr), "what apply refuses, a dry run does");
    lone.daemon.mgre(&["peer", "set", "p7", "--ttl", "9"])?;
    Ok(())
}

/// Clients that connect to the socket and to the metrics' port, and then do nothing, or send half a request.
fn idle(socket: &Path, lone: &Lone, count: usize) -> Result<(Vec<UnixStream>, Vec<TcpStream>)> {
    let address = SocketAddr::from(([127, 0, 0, 1], METRICS.1));
    lone.netns.enter(|| {
        let (mut unix, mut tcp) = (Vec::new(), Vec::new());
        for number in 0..count / 2 {
            let mut stream = UnixStream::connect(socket)?;
            let half: &[u8] =
                [&b""[..], b"GET /v1/conf", b"PUT /v1/segments/x HTTP/1.1\r\ncontent-length: 9\r\n\r\n{"]
                    [number % 3];
            stream.write_all(half)?;
            unix.push(stream);
            // There are fewer of these, and still more than there are places for.
            if number % 8 >= 3 {
                continue;
            }
            // Where the daemon has no descriptor for it, it stays with the kernel.
            let mut stream = TcpStream::connect_timeout(&address, wait::patient(Duration::from_secs(10)))?;
            stream.write_all(if number % 2 == 0 { b"GET /metr" } else { b"" })?;
            tcp.push(stream);
        }
        Ok((unix, tcp))
    })?
}

fn scrape(lone: &Lone) -> Result<u16> {
    let address = SocketAddr::from(([127, 0, 0, 1], METRICS.1));
    lone.netns.enter(|| {
        let stream = TcpStream::connect_timeout(&address, wait::patient(Duration::from_secs(10)))?;
        stream.set_read_timeout(Some(wait::patient(Duration::from_secs(20))))?;
        Ok(exchange(stream, "GET", "/metrics", "")?.status)
    })?
}

#[test]
fn thousands_of_clients_that_do_nothing_keep_nobody_out() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let count = if process::raise_descriptors()? > 9000 { 4000 } else { 600 };
    let lone = Lone::new(Options { metrics: Some(METRICS.into()), ..Options::default() })?;
    let pid = lone.daemon.pid().context("it runs")?;
    let (memory, before) = (process::anonymous_kilobytes(pid)?, process::descriptors(pid)?);
    let clients = idle(&lone.daemon.socket(), &lone, 2 * count)?;
    let mut worst = Duration::ZERO;
    for round in 0..5 {
        let start = Instant::now();
        let answer = request(&lone.daemon.socket(), "GET", "/v1/status", "")?;
        assert_eq!((answer.status, scrape(&lone)?), (200, 200));
        lone.daemon.mgre(&["segment", "set", SEGMENT, "--aging", &format!("{}", 100 + round)])?;
        worst = worst.max(start.elapsed());
    }
    eprintln!("{count} clients at the socket: answers within {worst:?}");
    assert!(worst < wait::patient(Duration::from_secs(15)), "{worst:?}");
    let grown = process::anonymous_kilobytes(pid)?.saturating_sub(memory);
    eprintln!("{grown} KiB more");
    assert!(grown < 64 * 1024, "{grown} KiB more");
    assert!(process::descriptors(pid)? <= before + 2 * 1024 + 8);
    // They cost nothing while they do nothing.
    let spent = process::cpu_time(pid)?;
    sleep(Duration::from_secs(1));
    let spent = process::cpu_time(pid)? - spent;
    assert!(spent < wait::patient(Duration::from_millis(600)), "{spent:?} in a second");
    drop(clients);
    wait::until("the clients' descriptors are free", wait::SOON, || {
        Ok(process::descriptors(pid)? <= before + 2)
    })?;
    Ok(())
}

#[test]
fn descriptors_are_left_for_the_daemons_own_work() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    process::raise_descriptors()?;
    let wrapper = ["prlimit", "--nofile=200:200"].map(str::to_owned).to_vec();
    let lone = Lone::new(Options { metrics: Some(METRICS.into()), wrapper, ..Options::default() })?;
    let pid = lone.daemon.pid().context("it runs")?;
    assert!(lone.daemon.log().contains("open files only"), "{}", lone.daemon.log());
    let clients = idle(&lone.daemon.socket(), &lone, 700)?;
    for round in 0..4 {
        let (name, address) = (format!("p{round}"), format!("10.0.0.{}", 20 + round));
        // State, netlink and bpf each take descriptors.
        lone.daemon.mgre(&["peer", "add", &name, &address, "--segment", SEGMENT])?;
        lone.netns.ip(&format!("link add x{round} type veth peer name y{round}\nlink set x{round} up"))?;
        lone.daemon.mgre(&["port", "add", SEGMENT, &format!("x{round}")])?;
        assert_eq!(scrape(&lone)?, 200);
    }
    let attached = lone.daemon.list(&["port", "show"])?;
    assert!(attached.iter().all(|port| port["hook"] == tc_of_kernel().name()), "{attached:?}");
    let most = process::descriptors(pid)?;
    assert!(most < 190, "{most} descriptors");
    let spent = process::cpu_time(pid)?;
    sleep(Duration::from_secs(1));
    let spent = process::cpu_time(pid)? - spent;
    assert!(spent < wait::patient(Duration::from_millis(600)), "{spent:?} in a second");
    drop(clients);
    Ok(())
}

#[test]
fn a_reader_that_vanishes_is_forgotten() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lone = Lone::new(Options::default())?;
    let pid = lone.daemon.pid().context("it runs")?;
    let before = process::descriptors(pid)?;
    for _ in 0..100 {
        let mut stream = UnixStream::connect(lone.daemon.socket())?;
        stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        assert_eq!(&head, b"HTTP/1.1 200");
        drop(stream);
        // The next one may come before this one is found to be gone.
        let limit = wait::SOON;
        wait::until("its place is free", limit, || Ok(process::descriptors(pid)? <= before + 32))?;
    }
    wait::until("all are forgotten", wait::SOON, || Ok(process::descriptors(pid)? <= before + 1)).map(|_| ())
}

/// A daemon whose /sys is that of its network namespace, as where it runs in a container or in no namespace at all.
fn with_own_sys() -> Options {
    let mount = "mount -t sysfs sysfs /sys && exec \"$0\" \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", mount].map(str::to_owned).to_vec();
    Options { wrapper, ..Options::default() }
}

/// Which CPUs take what comes out of the slow interface's pair.
fn steered(lone: &Lone) -> Result<u64> {
    let pid = lone.daemon.pid().context("it runs")?;
    let path = format!("/proc/{pid}/root/sys/class/net/mgre-default-o/queues/rx-0/rps_cpus");
    Ok(u64::from_str_radix(&fs::read_to_string(path)?.trim().replace(',', ""), 16)?)
}

/// Sends datagrams out of `host0`, which the kernel puts together to superframes of so many.
fn send_superframes(lone: &Lone, count: usize, segments: usize) -> Result<()> {
    const SEGMENT_BYTES: i32 = 1400;
    let send = || -> Result<()> {
        let socket = UdpSocket::bind("10.77.0.1:7777")?;
        setsockopt(&socket, sockopt::UdpGsoSegment, &SEGMENT_BYTES)?;
        // By itself a socket waits until what it sent has come out somewhere.
        setsockopt(&socket, sockopt::SndBufForce, &(256 << 20))?;
        let datagrams = vec![0x5a; SEGMENT_BYTES as usize * segments];
        for _ in 0..count {
            socket.send_to(&datagrams, "10.77.0.2:7778")?;
        }
        Ok(())
    };
    // From another CPU than the one that takes all where order is kept.
    process::on_cpu(1, || lone.netns.enter(send)?)
}

#[test]
fn what_the_slow_interfaces_pair_has_no_room_for_is_counted() -> Result<()> {
    const SUPERFRAMES: usize = 1000;
    const SEGMENTS: usize = 40;
    if skipped() {
        return Ok(());
    }
    let lone = Lone::new(with_own_sys())?;
    lone.netns.ip(&format!(
        "addr add 10.77.0.1/24 dev host0\nneigh add 10.77.0.2 lladdr {} dev host0 nud permanent",
        mac_text(station(2))
    ))?;
    for (option, cpus) in [("--csum", 0), ("--seq", 1)] {
        lone.daemon.mgre(&["peer", "set", "b", option])?;
        assert_eq!(steered(&lone)?, cpus, "{option}");
        let counts = || -> Result<[u64; 4]> {
            let metrics = Metrics::over_socket(&lone.daemon.socket())?;
            let number = |name, label: &[_]| -> Result<u64> {
                Ok(metrics.get(name, label).with_context(|| format!("no {name}"))? as u64)
            };
            Ok([
                number("mgre_port_receive_packets_total", &[("port", "lan0")])?,
                number("mgre_peer_transmit_packets_total", &[("peer", "b")])?,
                metrics.all("mgre_peer_drops_total", &[]).map(|sample| sample.value as u64).sum(),
                number("mgre_slow_path_packets_total", &[("event", "overflowed")])?,
            ])
        };
        // The daemon looks once a second at what the kernel counts.
        sleep(Duration::from_millis(1500));
        let before = counts()?;
        send_superframes(&lone, SUPERFRAMES, SEGMENTS)?;
        let mut since = [0; 4];
        wait::until("every frame is counted", wait::SOON, || {
            since = counts()?;
            since.iter_mut().zip(before).for_each(|(now, before)| *now -= before);
            let [received, sent, dropped, overflowed] = since;
            Ok(received == SUPERFRAMES as u64
                && sent + dropped + overflowed == (SUPERFRAMES * SEGMENTS) as u64)
        })
        .with_context(|| format!("{option}: received, sent, dropped, overflowed: {since:?}"))?;
        println!("{option}: {since:?}");
        let status = lone.daemon.json(&["status"])?;
        assert_eq!(status["slow_path"]["overflowed"].as_u64(), Some(since[3]), "{status}");
    }
    lone.daemon.mgre(&["peer", "del", "b"])?;
    assert_eq!(steered(&lone)?, 0, "nobody needs the order any more");
    Ok(())
}
