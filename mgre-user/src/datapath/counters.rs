//! Reads counters out of shared memory.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mgre_common::counters::{Drops, SegmentTraffic, Traffic, row_of};
use mgre_common::reason::REASON_SLOTS;
use mgre_common::table::Config;
use mgre_common::target::Target;

use super::handover::Predecessor;
use super::load::Tables;
use super::shared::{Shared, SharedArray};

/// Where counters are and how many there are of each. A copy sees the same ones.
#[derive(Clone, Debug)]
pub struct Counters {
    traffic: Arc<SharedArray<Traffic>>,
    drops: Arc<SharedArray<Drops>>,
    segment_traffic: Arc<SharedArray<SegmentTraffic>>,
    traffic_rows: u32,
    drop_shards: u32,
}

/// What was taken over from an earlier daemon's counters.
#[derive(Debug, Default)]
pub struct TakenOver {
    targets: Vec<(Target, Traffic, Drops)>,
    segments: Vec<(u16, SegmentTraffic)>,
}

impl Counters {
    /// Over tables laid out as a configuration says.
    pub fn new(tables: &Tables, config: &Config) -> Self {
        Self {
            traffic: Arc::clone(&tables.traffic),
            drops: Arc::clone(&tables.drops),
            segment_traffic: Arc::clone(&tables.segment_traffic),
            traffic_rows: config.traffic_rows,
            drop_shards: config.drop_shard_mask + 1,
        }
    }

    /// A target's traffic, summed over its rows; the last frame is the latest one.
    pub fn traffic(&self, target: Target) -> Traffic {
        sum_traffic(self.traffic_of(target).filter_map(|row| self.traffic.read(row)))
    }

    /// A target's drops, summed over shards.
    pub fn drops(&self, target: Target) -> Drops {
        sum_drops(self.drops_of(target).filter_map(|row| self.drops.read(row)))
    }

    /// Flooding in a segment, summed over its rows.
    pub fn segment(&self, segment: u16) -> SegmentTraffic {
        sum_flooding(self.flooding_of(segment).filter_map(|row| self.segment_traffic.read(row)))
    }

    fn traffic_of(&self, target: Target) -> Range<u32> {
        let first = row_of(target) * self.traffic_rows;
        first..first + self.traffic_rows
    }

    fn drops_of(&self, target: Target) -> Range<u32> {
        let first = row_of(target) * self.drop_shards;
        first..first + self.drop_shards
    }

    fn flooding_of(&self, segment: u16) -> Range<u32> {
        let first = u32::from(segment) * self.traffic_rows;
        first..first + self.traffic_rows
    }

    /// Goes on from an earlier daemon's numbers for a target. No program of this daemon runs yet.
    pub fn inherit(&self, from: &Predecessor, target: Target, taken: &mut TakenOver) {
        let traffic = sum_traffic(copy(&from.traffic, &self.traffic, self.traffic_of(target)));
        let drops = sum_drops(copy(&from.drops, &self.drops, self.drops_of(target)));
        taken.targets.push((target, traffic, drops));
    }

    /// Goes on from an earlier daemon's numbers for a segment, as [`Self::inherit`].
    pub fn inherit_segment(&self, from: &Predecessor, segment: u16, taken: &mut TakenOver) {
        let rows = copy(&from.segment_traffic, &self.segment_traffic, self.flooding_of(segment));
        taken.segments.push((segment, sum_flooding(rows)));
    }

    /// Adds what the earlier daemon's programs have counted since its numbers were taken over. They
    /// run no more, and this daemon's do.
    pub fn catch_up(&self, from: &Predecessor, taken: &TakenOver) {
        for (target, before, drops) in &taken.targets {
            let rows = self.traffic_of(*target);
            let now = sum_traffic(rows.clone().filter_map(|row| from.traffic.read(row)));
            if let Some(row) = self.traffic.read(rows.end - 1) {
                self.traffic.write(
                    rows.end - 1,
                    Traffic {
                        receive_packets: row.receive_packets + now.receive_packets - before.receive_packets,
                        receive_bytes: row.receive_bytes + now.receive_bytes - before.receive_bytes,
                        transmit_packets: row.transmit_packets + now.transmit_packets
                            - before.transmit_packets,
                        transmit_bytes: row.transmit_bytes + now.transmit_bytes - before.transmit_bytes,
                        reports_lost: row.reports_lost + now.reports_lost - before.reports_lost,
                        ..row
                    },
                );
            }
            let shards = self.drops_of(*target);
            let now = sum_drops(shards.clone().filter_map(|row| from.drops.read(row)));
            for (index, (now, before)) in
                now.packets.iter().flatten().zip(drops.packets.iter().flatten()).enumerate()
            {
                self.add_drops(shards.start, index, now - before);
            }
        }
        for (segment, before) in &taken.segments {
            let rows = self.flooding_of(*segment);
            let now = sum_flooding(rows.clone().filter_map(|row| from.segment_traffic.read(row)));
            if let Some(row) = self.segment_traffic.read(rows.end - 1) {
                self.segment_traffic.write(
                    rows.end - 1,
                    SegmentTraffic {
                        flood_frames: row.flood_frames + now.flood_frames - before.flood_frames,
                        flood_copies: row.flood_copies + now.flood_copies - before.flood_copies,
                        flood_lost: row.flood_lost + now.flood_lost - before.flood_lost,
                        arp_replies: row.arp_replies + now.arp_replies - before.arp_replies,
                        nd_replies: row.nd_replies + now.nd_replies - before.nd_replies,
                    },
                );
            }
        }
    }

    /// Adds to a counter of a row of drops that programs write too.
    fn add_drops(&self, row: u32, index: usize, packets: u64) {
        let Some(place) = self.drops.ptr(row).filter(|_| packets > 0 && index < 2 * REASON_SLOTS) else {
            return;
        };
        // SAFETY: the counter is within the row, which is aligned, and everybody adds to it atomically.
        let counter = unsafe { AtomicU64::from_ptr(place.cast::<u64>().as_ptr().add(index)) };
        counter.fetch_add(packets, Ordering::Relaxed);
    }

    /// Zeroes a target's counters, before its id is somebody else's.
    pub fn clear(&self, target: Target) {
        self.traffic_of(target).for_each(|row| self.traffic.write(row, Traffic::default()));
        self.drops_of(target).for_each(|row| self.drops.write(row, Drops::default()));
    }

    /// Zeroes a segment's counters.
    pub fn clear_segment(&self, segment: u16) {
        self.flooding_of(segment).for_each(|row| self.segment_traffic.write(row, SegmentTraffic::default()));
    }
}

/// Copies rows, and gives them.
fn copy<'a, T: Shared + Copy>(
    from: &'a SharedArray<T>,
    to: &'a SharedArray<T>,
    rows: Range<u32>,
) -> impl Iterator<Item = T> + 'a {
    rows.filter_map(|row| {
        let value = from.read(row)?;
        to.write(row, value);
        Some(value)
    })
}

fn sum_traffic(rows: impl Iterator<Item = Traffic>) -> Traffic {
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

fn sum_drops(rows: impl Iterator<Item = Drops>) -> Drops {
    let mut sum = Drops::default();
    for row in rows {
        for (sum, count) in sum.packets.iter_mut().flatten().zip(row.packets.iter().flatten()) {
            *sum += count;
        }
    }
    sum
}

fn sum_flooding(rows: impl Iterator<Item = SegmentTraffic>) -> SegmentTraffic {
    rows.fold(SegmentTraffic::default(), |sum, row| SegmentTraffic {
        flood_frames: sum.flood_frames + row.flood_frames,
        flood_copies: sum.flood_copies + row.flood_copies,
        flood_lost: sum.flood_lost + row.flood_lost,
        arp_replies: sum.arp_replies + row.arp_replies,
        nd_replies: sum.nd_replies + row.nd_replies,
    })
}
