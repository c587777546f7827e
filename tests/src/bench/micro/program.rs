//! What the XDP programs cost beside an empty one.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::{
    addresses::{Demand, LOCAL, endpoint, key, sequence},
    laboratory::{CABLE, GRE_KEY, Laboratory, Programs, STATION, Size},
};
use crate::bench::{
    part::Plan,
    plot::Plot,
    report::{Bar, Report},
    statistics::Spread,
    table::{Cell, Table},
};

const XDP_TX: u32 = 3;

/// A frame of the least size from the port's station.
pub fn frame() -> Vec<u8> {
    let mut frame = vec![0_u8; 60];
    frame[..6].copy_from_slice(&key(0).mac().0);
    frame[6..12].copy_from_slice(&STATION.0);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame
}

/// A frame of the least size to the port's station, as a peer's packet has it.
pub fn packet() -> Result<Vec<u8>> {
    let mut inner = frame();
    inner[..6].copy_from_slice(&STATION.0);
    inner[6..12].copy_from_slice(&key(0).mac().0);
    let mut ip = etherparse::Ipv4Header::new(
        (8 + inner.len()) as u16,
        64,
        etherparse::IpNumber::GRE,
        endpoint(0),
        LOCAL,
    )?;
    ip.header_checksum = ip.calc_header_checksum();
    let mut packet = vec![2, 0, 0, 0, 0xee, 1, 2, 0, 0, 0, 0xee, 2, 0x08, 0x00];
    packet.extend(ip.to_bytes());
    packet.extend([0x20, 0, 0x65, 0x58]);
    packet.extend(GRE_KEY.to_be_bytes());
    packet.extend(inner);
    Ok(packet)
}

/// Length of the outer IP packet of [`packet`].
pub const PACKET_LEN: u16 = 20 + 8 + 60;

/// Nanoseconds, in one round.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// Of a run of an empty program.
    pub empty: f64,
    /// Of a run that does nothing but encapsulate.
    pub encap: f64,
    /// Of a run that does nothing but strip.
    pub decap: f64,
}

/// Measures one round. What addresses the packet and what moves its start back is taken off.
///
/// # Errors
/// A program does not do what it should.
pub fn costs(programs: &mut Programs) -> Result<Costs> {
    let (frame, packet) = (frame(), packet()?);
    let empty = programs.time_xdp("bench_empty", &frame, XDP_TX)?;
    let address = programs.time_xdp("bench_address", &frame, XDP_TX)?;
    let moved = programs.time_xdp("bench_move", &frame, XDP_TX)?;
    let encap = programs.time_xdp("bench_encap", &frame, XDP_TX)?;
    let send_from = programs.time_xdp("bench_send_from", &packet, XDP_TX)?;
    let decap = programs.time_xdp("bench_decap", &packet, XDP_TX)?;
    let back = (moved - address) / 2.0;
    Ok(Costs { empty, encap: encap - back - (address - empty), decap: decap - back - (send_from - empty) })
}

/// The part.
///
/// # Errors
/// It cannot be measured.
pub fn run(object: &Path, plan: Plan) -> Result<Report> {
    let laboratory = Laboratory::new()?;
    let rounds = laboratory.enter(|| {
        let mut programs = Programs::load(object, Size { entries: 1, peers: 1 }, CABLE)?;
        programs.get_ready_for_xdp()?;
        programs.go_through(&sequence(Demand::Hot, 1, 1, PACKET_LEN)?);
        programs.set(0)?;
        (0..plan.rounds.max(3)).map(|_| costs(&mut programs)).collect::<Result<Vec<_>>>()
    })?;
    let of = |figure: fn(&Costs) -> f64| Spread::of(rounds.iter().map(figure));
    let rows = [
        ("empty", "empty, XDP_TX", of(|round| round.empty), None),
        ("encap", "mgre: encapsulate", of(|round| round.encap), of(|round| round.encap / round.empty)),
        ("decap", "mgre: strip", of(|round| round.decap), of(|round| round.decap / round.empty)),
    ];
    let mut table = Table::new("program", &[("ns", "ns/run"), ("ratio", "over empty")]);
    for (key, title, ns, ratio) in rows {
        table.row(key, title, [Cell::spread(ns, 1), Cell::spread(ratio, 2)]);
    }
    let bars = rows.iter().filter_map(|(_, title, ns, _)| Some(((*title).to_owned(), (*ns)?))).collect();
    Ok(Report {
        key: "program".into(),
        title: "XDP programs alone, one address, everything in the cache".into(),
        tables: vec![table],
        bars: vec![Bar::ratio_at_most("XDP encapsulation / empty XDP program", 2.5, 2.0, rows[1].3)],
        plots: vec![Plot::Bars { title: "XDP programs alone, ns".into(), bars }],
        remarks: vec!["a run of a program includes the kernel's loop around it, in both".into()],
        details: rounds
            .iter()
            .map(|round| json!({ "empty": round.empty, "encap": round.encap, "decap": round.decap }))
            .collect(),
    })
}
