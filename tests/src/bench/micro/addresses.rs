//! Addresses behind peers, and sequences of them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use mgre_common::{bench::Step, fdb::FdbKey, wire::MacAddr};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use rand_distr::{Distribution as _, Zipf};

/// Steps of every sequence: as many as the largest table has entries.
pub const STEPS: u32 = 1 << 20;

/// The segment of all of them.
pub const SEGMENT: u16 = 1;

/// How often each address is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// One address all the time.
    Hot,
    /// The n-th most popular one n times less often than the most popular one.
    Zipf,
    /// All alike.
    Uniform,
}

impl Demand {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Hot, Self::Zipf, Self::Uniform];
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hot => "hot",
            Self::Zipf => "Zipf(1)",
            Self::Uniform => "uniform",
        })
    }
}

/// The address with this number: a station's, and nothing that runs in sequence.
pub fn key(number: u32) -> FdbKey {
    let mixed = (u64::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let [a, b, c, d, ..] = (mixed >> 24).to_be_bytes();
    let [e, f, g, h] = number.to_be_bytes();
    // The number keeps addresses apart, the rest keeps them from being neighbours.
    FdbKey::new(SEGMENT, MacAddr([0x02, a ^ b ^ e, c ^ d ^ f, f ^ e, g, h]))
}

/// The endpoint of the peer with this number over IPv4; over IPv6 the end of it.
pub fn endpoint_v4(peer: u32) -> [u8; 4] {
    let [_, b, c, d] = peer.to_be_bytes();
    [10, b, c, d]
}

/// Our own.
pub const LOCAL_V4: [u8; 4] = [192, 0, 2, 1];

/// The endpoint of the peer with this number.
pub fn endpoint(peer: u32, v6: bool) -> IpAddr {
    of_family(endpoint_v4(peer), v6)
}

/// Our own endpoint.
pub fn local(v6: bool) -> IpAddr {
    of_family(LOCAL_V4, v6)
}

fn of_family([a, b, c, d]: [u8; 4], v6: bool) -> IpAddr {
    let pair = u16::from_be_bytes;
    if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, pair([a, b]), pair([c, d])).into()
    } else {
        Ipv4Addr::new(a, b, c, d).into()
    }
}

/// A sequence of addresses out of so many, spread over so many peers in turn.
///
/// # Errors
/// There is no address.
pub fn sequence(demand: Demand, entries: u32, peers: u32, packet_len: u16) -> anyhow::Result<Vec<Step>> {
    let mut random = SmallRng::seed_from_u64(7);
    let zipf = Zipf::new(f64::from(entries), 1.0)?;
    let mut draw = move || match demand {
        Demand::Hot => 0,
        Demand::Zipf => (zipf.sample(&mut random) as u32).clamp(1, entries) - 1,
        Demand::Uniform => random.random_range(0..entries),
    };
    Ok((0..STEPS).map(|_| draw()).map(|number| step(number, number % peers, packet_len)).collect())
}

fn step(number: u32, peer: u32, packet_len: u16) -> Step {
    let remote = endpoint_v4(peer);
    let checksum =
        etherparse::Ipv4Header::new(packet_len - 20, 64, etherparse::IpNumber::GRE, remote, LOCAL_V4)
            .map_or(0, |header| header.calc_header_checksum());
    Step {
        key: key(number).0,
        remote: u32::from_ne_bytes(remote),
        checksum: checksum.to_be(),
        ..Step::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    #[test]
    fn addresses_differ_and_are_stations() {
        let keys: HashSet<u64> = (0..STEPS).map(|number| key(number).0).collect();
        assert_eq!(keys.len(), STEPS as usize);
        assert!((0..1000).all(|number| key(number).mac().is_station()));
    }

    #[test]
    fn demands_differ() {
        let most = |demand| {
            let mut counts = HashMap::new();
            for step in sequence(demand, 1000, 10, 100).expect("a sequence") {
                *counts.entry(step.key).or_insert(0_u32) += 1;
            }
            (counts.len(), f64::from(counts.into_values().max().unwrap_or(0)) / f64::from(STEPS))
        };
        assert_eq!(most(Demand::Hot), (1, 1.0));
        let (distinct, share) = most(Demand::Uniform);
        assert!(distinct == 1000 && share < 0.0015, "{distinct} {share}");
        // One over the thousandth harmonic number.
        let (distinct, share) = most(Demand::Zipf);
        assert!(distinct == 1000 && (share - 0.1336).abs() < 0.005, "{distinct} {share}");
    }
}
