//! The poll groups' statistics as one message for the agent: shards of a unit are added up here.

use std::collections::BTreeMap;

use lunar_dma::sgv::SgvStatistics as Sgv;
use lunar_offload_proto::control::{
    Histogram as Message, NexusStatistics, OperationClass, PlacementKind, PollGroupStatistics,
    RingStatistics, SgvClassStatistics, SgvStatistics, Statistics, UnitStatistics,
};
use lunar_platform::Nanoseconds;

use crate::histogram::Histogram;
use crate::statistics::{Counters, GroupStatistics, OPERATIONS, OperationKind, SIZE_CLASS_BYTES};

const READ: usize = OperationKind::Read as usize;
const WRITE: usize = OperationKind::Write as usize;
const OTHER: usize = OperationKind::Other as usize;

/// Everything the groups counted, as answer to request `id`.
pub(crate) fn statistics(id: u32, now: Nanoseconds, groups: &[GroupStatistics]) -> Statistics {
    let mut units: BTreeMap<u32, UnitSum> = BTreeMap::new();
    let mut message = Statistics { id, uptime_ns: now.0, ..Statistics::default() };
    for group in groups {
        let index = u32::from(group.group);
        message.poll_groups.push(poll_group(group));
        message.nexuses.extend(group.nexuses.iter().map(nexus_message));
        for unit in &group.units {
            units.entry(unit.handle).or_default().add(unit);
        }
        let sgv = [
            (PlacementKind::CardDram, group.card_sgv.as_ref()),
            (PlacementKind::HostDram, group.host_sgv.as_ref()),
        ];
        for (placement, sgv) in sgv {
            message.sgv.extend(sgv.map(|sgv| sgv_message(index, placement, sgv)));
        }
        message.rings.extend(group.ring.as_ref().map(|ring| RingStatistics {
            ring: index,
            submissions: ring.counters.submitted,
            completions: ring.counters.completed,
            outstanding: ring.outstanding,
            flushes: ring.counters.flushes,
            hints: ring.counters.batches,
            full: group.counters.backend_waited,
            fault: String::new(),
        }));
    }
    message.units = units.into_iter().map(|(handle, sum)| sum.message(handle)).collect();
    message
}

fn poll_group(group: &GroupStatistics) -> PollGroupStatistics {
    let counters = &group.counters;
    PollGroupStatistics {
        group: u32::from(group.group),
        ticks: counters.ticks,
        idle_ticks: counters.ticks.saturating_sub(counters.busy_ticks),
        sleeps: counters.sleeps,
        commands: group.nexuses.iter().map(|nexus| commands(&nexus.counters)).sum(),
        slot_waits: counters.receives_waited,
        buffer_waits: counters.buffers_waited,
        send_waits: counters.send_waited,
        backend_waits: counters.backend_waited,
        doorbells: counters.doorbells,
        channels: group.nexuses.iter().map(|nexus| nexus.channels).sum(),
        completion_errors: counters.stale_completions,
        credit_overruns: counters.credit_overruns,
    }
}

fn commands(counters: &Counters) -> u64 {
    counters.commands.iter().sum()
}

fn nexus_message(nexus: &crate::statistics::NexusStatistics) -> NexusStatistics {
    let counters = &nexus.counters;
    let latency = operations(&nexus.latency)
        .map(|(operation, histogram)| {
            histogram_message(operation, 0, histogram.counts().map(|(b, c)| (b, u64::from(c))))
        })
        .filter(|message| !message.buckets.is_empty())
        .collect();
    NexusStatistics {
        nexus: nexus.handle,
        nexus_generation: nexus.handle,
        target: nexus.target,
        initiator_port_id: nexus.initiator.0.to_vec(),
        peer: nexus.peer.as_str().to_owned(),
        group: String::new(),
        channels: nexus.channels,
        commands_active: nexus.tasks,
        reads: counters.commands[READ],
        read_bytes: counters.bytes[READ],
        writes: counters.commands[WRITE],
        write_bytes: counters.bytes[WRITE],
        others: counters.commands[OTHER],
        check_conditions: counters.check_conditions,
        queue_fulls: counters.refused,
        aborted: counters.aborted,
        memory_bytes: nexus.held_bytes,
        task_managements: counters.task_managements,
        latency,
    }
}

/// The histograms of an array by operation.
fn operations<T>(of: &[T; OPERATIONS]) -> impl Iterator<Item = (OperationClass, &T)> {
    [OperationClass::Read, OperationClass::Write, OperationClass::Other].into_iter().zip(of)
}

fn histogram_message(
    operation: OperationClass,
    size_class_bytes: u32,
    counts: impl Iterator<Item = (usize, u64)>,
) -> Message {
    let mut message =
        Message { operation: operation.into(), size_class_bytes, ..Message::default() };
    for (bucket, count) in counts {
        let least = lunar_offload_proto::histogram::least_value_of(bucket);
        message.buckets.push(u32::try_from(bucket).unwrap_or(u32::MAX));
        message.counts.push(count);
        message.sum_ns = message.sum_ns.saturating_add(least.saturating_mul(count));
        message.max_ns = message.max_ns.max(least);
    }
    message
}

fn sgv_message(group: u32, placement: PlacementKind, sgv: &Sgv) -> SgvStatistics {
    SgvStatistics {
        group,
        placement: placement.into(),
        arena_bytes: sgv.arena_bytes,
        active_bytes: sgv.active_bytes,
        inactive_bytes: sgv.inactive_bytes,
        high_water_bytes: sgv.high_water_bytes,
        share_fails: sgv.share_fails,
        exhausted_fails: sgv.exhausted_fails,
        too_large_fails: sgv.too_large_fails,
        reclaimed: sgv.reclaimed,
        purged: sgv.purged,
        classes: sgv
            .classes()
            .iter()
            .map(|class| SgvClassStatistics {
                buffer_bytes: class.buffer_bytes,
                hits: class.hits,
                total: class.total,
                merged: class.merged,
                cached: class.cached,
            })
            .collect(),
    }
}

/// A unit's counters over all groups.
#[derive(Default)]
struct UnitSum {
    counters: Counters,
    /// By operation and size class, then by bucket.
    latency: BTreeMap<(usize, usize), BTreeMap<usize, u64>>,
}

impl UnitSum {
    fn add(&mut self, shard: &crate::statistics::UnitStatistics) {
        for operation in 0..OPERATIONS {
            self.counters.commands[operation] += shard.counters.commands[operation];
            self.counters.bytes[operation] += shard.counters.bytes[operation];
        }
        self.counters.check_conditions += shard.counters.check_conditions;
        for (operation, classes) in shard.latency.iter().enumerate() {
            for (class, histogram) in classes.iter().enumerate() {
                self.add_histogram((operation, class), histogram);
            }
        }
    }

    fn add_histogram(&mut self, place: (usize, usize), histogram: &Histogram) {
        for (bucket, count) in histogram.counts() {
            *self.latency.entry(place).or_default().entry(bucket).or_default() += u64::from(count);
        }
    }

    fn message(&self, handle: u32) -> UnitStatistics {
        let class_of = [OperationClass::Read, OperationClass::Write, OperationClass::Other];
        let latency = self.latency.iter().filter_map(|((operation, class), buckets)| {
            // A class starts where the one below it ends.
            let least = match class.checked_sub(1) {
                None => 0,
                Some(below) => SIZE_CLASS_BYTES.get(below)? + 1,
            };
            let counts = buckets.iter().map(|(bucket, count)| (*bucket, *count));
            Some(histogram_message(*class_of.get(*operation)?, least, counts))
        });
        UnitStatistics {
            unit: handle,
            reads: self.counters.commands[READ],
            read_bytes: self.counters.bytes[READ],
            writes: self.counters.commands[WRITE],
            write_bytes: self.counters.bytes[WRITE],
            others: self.counters.commands[OTHER],
            check_conditions: self.counters.check_conditions,
            latency: latency.collect(),
        }
    }
}
