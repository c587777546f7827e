//! Reads counters out of shared memory.

use std::sync::Arc;

use mgre_common::counters::{Drops, SegmentTraffic, Traffic, row_of};
use mgre_common::target::Target;

use super::handover::Predecessor;
use super::load::Tables;
use super::shared::SharedArray;

/// Where counters are and how many there are of each. A copy sees the same ones.
#[derive(Clone, Debug)]
pub struct Counters {
    traffic: Arc<SharedArray<Traffic>>,
    drops: Arc<SharedArray<Drops>>,
    segment_traffic: Arc<SharedArray<SegmentTraffic>>,
    cpus: u32,
    drop_shards: u32,
}

impl Counters {
    /// Over tables laid out for so many CPUs and shards.
    pub fn new(tables: &Tables, cpus: u32, drop_shards: u32) -> Self {
        Self {
            traffic: Arc::clone(&tables.traffic),
            drops: Arc::clone(&tables.drops),
            segment_traffic: Arc::clone(&tables.segment_traffic),
            cpus,
            drop_shards,
        }
    }

    /// A target's traffic, summed over CPUs; the last frame is the latest one.
    pub fn traffic(&self, target: Target) -> Traffic {
        let first = row_of(target) * self.cpus;
        let rows = (first..first + self.cpus).filter_map(|row| self.traffic.read(row));
        rows.fold(Traffic::default(), |sum, row| Traffic {
            receive_packets: sum.receive_packets + row.receive_packets,
            receive_bytes: sum.receive_bytes + row.receive_bytes,
            transmit_packets: sum.transmit_packets + row.transmit_packets,
            transmit_bytes: sum.transmit_bytes + row.transmit_bytes,
            report_tokens: 0,
            report_refilled_ns: 0,
            reports_lost: sum.reports_lost + row.reports_lost,
            last_receive_seconds: sum.last_receive_seconds.max(row.last_receive_seconds),
        })
    }

    /// A target's drops, summed over shards.
    pub fn drops(&self, target: Target) -> Drops {
        let first = row_of(target) * self.drop_shards;
        let mut sum = Drops::default();
        for row in (first..first + self.drop_shards).filter_map(|row| self.drops.read(row)) {
            for (sums, counts) in sum.packets.iter_mut().zip(row.packets) {
                for (sum, count) in sums.iter_mut().zip(counts) {
                    *sum += count;
                }
            }
        }
        sum
    }

    /// Flooding in a segment, summed over CPUs.
    pub fn segment(&self, segment: u16) -> SegmentTraffic {
        let first = u32::from(segment) * self.cpus;
        let rows = (first..first + self.cpus).filter_map(|row| self.segment_traffic.read(row));
        rows.fold(SegmentTraffic::default(), |sum, row| SegmentTraffic {
            flood_frames: sum.flood_frames + row.flood_frames,
            flood_copies: sum.flood_copies + row.flood_copies,
            flood_lost: sum.flood_lost + row.flood_lost,
        })
    }

    /// Goes on from an earlier daemon's numbers for a target.
    pub fn inherit(&self, from: &Predecessor, target: Target) {
        let (cpus, shards) = (self.cpus, self.drop_shards);
        let row = row_of(target);
        for row in row * cpus..(row + 1) * cpus {
            if let Some(traffic) = from.traffic.read(row) {
                self.traffic.write(row, traffic);
            }
        }
        for row in row * shards..(row + 1) * shards {
            if let Some(drops) = from.drops.read(row) {
                self.drops.write(row, drops);
            }
        }
    }

    /// Goes on from an earlier daemon's numbers for a segment.
    pub fn inherit_segment(&self, from: &Predecessor, segment: u16) {
        let first = u32::from(segment) * self.cpus;
        for row in first..first + self.cpus {
            if let Some(traffic) = from.segment_traffic.read(row) {
                self.segment_traffic.write(row, traffic);
            }
        }
    }

    /// Zeroes a target's counters, before its id is somebody else's.
    pub fn clear(&self, target: Target) {
        for cpu in 0..self.cpus {
            self.traffic.write(row_of(target) * self.cpus + cpu, Traffic::default());
        }
        for shard in 0..self.drop_shards {
            self.drops.write(row_of(target) * self.drop_shards + shard, Drops::default());
        }
    }

    /// Zeroes a segment's counters.
    pub fn clear_segment(&self, segment: u16) {
        for cpu in 0..self.cpus {
            let row = u32::from(segment) * self.cpus + cpu;
            self.segment_traffic.write(row, SegmentTraffic::default());
        }
    }
}
