//! What the XDP programs cost beside an empty one.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::{
    addresses::{Demand, endpoint, key, local, sequence},
    laboratory::{CABLE, GRE_KEY, Laboratory, Programs, STATION, Size},
};
use crate::{
    bench::{
        part::Plan,
        plot::Plot,
        report::{Bar, Report},
        statistics::Spread,
        table::{Cell, Table},
    },
    gre::Outer,
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
///
/// # Errors
/// None: it is short.
pub fn packet(v6: bool) -> Result<Vec<u8>> {
    let mut inner = frame();
    inner[..6].copy_from_slice(&STATION.0);
    inner[6..12].copy_from_slice(&key(0).mac().0);
    let macs = ([2, 0, 0, 0, 0xee, 2], [2, 0, 0, 0, 0xee, 1]);
    // As the checksums of the sequence's steps take it for granted.
    let outer = Outer::new(macs, endpoint(0, v6), local(v6), Some(GRE_KEY));
    Outer { dont_fragment: true, ..outer }.frame(&inner)
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
    let (frame, packet) = (frame(), packet(programs.is_v6())?);
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
        let ready = |v6| -> Result<Programs> {
            let mut programs = Programs::load(object, Size { entries: 1, peers: 1, v6 }, CABLE)?;
            programs.get_ready_for_xdp()?;
            programs.go_through(&sequence(Demand::Hot, 1, 1, PACKET_LEN)?);
            programs.set(0)?;
            Ok(programs)
        };
        // One after the other on the same interfaces, so each round is a pair all the same.
        let rounds = plan.rounds.max(3);
        let all =
            |mut programs: Programs| (0..rounds).map(|_| costs(&mut programs)).collect::<Result<Vec<_>>>();
        let (v4, v6) = (all(ready(false)?)?, all(ready(true)?)?);
        Ok(v4.into_iter().zip(v6).collect::<Vec<_>>())
    })?;
    let of = |figure: fn(&(Costs, Costs)) -> f64| Spread::of(rounds.iter().map(figure));
    let rows = [
        ("empty", "empty, XDP_TX", of(|(v4, _)| v4.empty), None),
        ("encap", "mgre: encapsulate", of(|(v4, _)| v4.encap), of(|(v4, _)| v4.encap / v4.empty)),
        ("decap", "mgre: strip", of(|(v4, _)| v4.decap), of(|(v4, _)| v4.decap / v4.empty)),
        ("encap-v6", "mgre: encapsulate, IPv6", of(|(_, v6)| v6.encap), of(|(_, v6)| v6.encap / v6.empty)),
        ("decap-v6", "mgre: strip, IPv6", of(|(_, v6)| v6.decap), of(|(_, v6)| v6.decap / v6.empty)),
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
        bars: vec![
            Bar::ratio_at_most("XDP encapsulation / empty XDP program", 2.5, 2.0, rows[1].3),
            Bar::ratio_at_most(
                "XDP encapsulation, IPv6 / IPv4",
                1.1,
                1.0,
                of(|(v4, v6)| v6.encap / v4.encap),
            ),
            Bar::ratio_at_most(
                "XDP decapsulation, IPv6 / IPv4",
                1.1,
                1.0,
                of(|(v4, v6)| v6.decap / v4.decap),
            ),
        ],
        plots: vec![Plot::Bars { title: "XDP programs alone, ns".into(), bars }],
        remarks: vec!["a run of a program includes the kernel's loop around it, in both".into()],
        details: rounds
            .iter()
            .map(|(v4, v6)| {
                json!({
                    "empty": v4.empty, "encap": v4.encap, "decap": v4.decap,
                    "empty_v6": v6.empty, "encap_v6": v6.encap, "decap_v6": v6.decap,
                })
            })
            .collect(),
    })
}
