//! Counters and their snapshot for the control channel. Each group counts alone; the coordinator
//! hands a [`GroupStatistics`] in, the group fills it, and no counter is shared between cores.

use lunar_dma::sgv::SgvStatistics;
use lunar_platform::PeerAddress;
use lunar_scsi::status::Status;
use lunar_srp::login::PortId;

use crate::histogram::Histogram;

/// Kinds of command told apart in statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Data goes to the initiator from the medium.
    Read = 0,
    /// Data goes to the medium.
    Write = 1,
    /// Everything else.
    Other = 2,
}

/// Number of [`OperationKind`]s.
pub const OPERATIONS: usize = 3;

/// Upper bounds in bytes of the size classes of per-unit histograms; the last class is open.
pub const SIZE_CLASS_BYTES: [u32; 5] = [4096, 16_384, 65_536, 262_144, 1_048_576];

/// Number of size classes.
pub const SIZE_CLASSES: usize = SIZE_CLASS_BYTES.len() + 1;

/// The size class of a transfer.
#[inline]
pub(crate) fn size_class(bytes: u32) -> usize {
    // Classes grow by four from 4 KiB: their index is half the number of bits above 2^12.
    let above = bytes.saturating_sub(1) >> 12;
    ((33 - above.leading_zeros()) as usize / 2).min(SIZE_CLASSES - 1)
}

/// Counters of a nexus, a logical unit or a whole group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Commands answered, by [`OperationKind`].
    pub commands: [u64; OPERATIONS],
    /// Bytes moved, by [`OperationKind`].
    pub bytes: [u64; OPERATIONS],
    /// Answers with CHECK CONDITION.
    pub check_conditions: u64,
    /// Answers with BUSY or TASK SET FULL.
    pub refused: u64,
    /// Tasks ended without an answer (aborted, channel gone).
    pub aborted: u64,
    /// Task management functions.
    pub task_managements: u64,
}

impl Counters {
    /// Counts an answered command that moved `bytes`.
    #[inline]
    pub(crate) fn count(&mut self, kind: OperationKind, bytes: u32) {
        self.commands[kind as usize] += 1;
        self.bytes[kind as usize] += u64::from(bytes);
    }

    /// Counts an answer other than GOOD.
    pub(crate) fn count_failure(&mut self, status: Status) {
        match status {
            Status::CheckCondition => self.check_conditions += 1,
            Status::Busy | Status::TaskSetFull => self.refused += 1,
            _ => {}
        }
    }
}

/// Counters of one poll group that are about the group itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct GroupCounters {
    /// Calls of `tick`.
    pub ticks: u64,
    /// Ticks that found something to do.
    pub busy_ticks: u64,
    /// Doorbells rung.
    pub doorbells: u64,
    /// Work requests posted on send queues.
    pub work_requests: u64,
    /// Work completions reaped.
    pub completions: u64,
    /// Completions for a slot life that is over; they are ignored.
    pub stale_completions: u64,
    /// IUs that ended their channel because they could not be parsed.
    pub malformed_ius: u64,
    /// Commands beyond the request limit.
    pub credit_overruns: u64,
    /// Messages that had to wait for a slot.
    pub receives_waited: u64,
    /// Tasks that had to wait for a buffer.
    pub buffers_waited: u64,
    /// Tasks that had to wait for room in the backend.
    pub backend_waited: u64,
    /// Tasks that had to wait for send-queue room.
    pub send_waited: u64,
    /// Logins accepted.
    pub logins: u64,
    /// Logins refused.
    pub rejects: u64,
    /// Channels that ended.
    pub disconnects: u64,
    /// Access or gate rechecks at submit that changed the decision.
    pub rechecks: u64,
    /// Times the group slept.
    pub sleeps: u64,
    /// Events that did not fit in the outbox.
    pub events_lost: u64,
}

/// One nexus in a snapshot.
#[derive(Clone)]
pub struct NexusStatistics {
    /// Its handle.
    pub handle: u32,
    /// Initiator port identifier.
    pub initiator: PortId,
    /// Handle of its target.
    pub target: u32,
    /// The peer's address as text.
    pub peer: PeerAddress,
    /// Open channels.
    pub channels: u32,
    /// Tasks in progress.
    pub tasks: u32,
    /// SGV memory held in bytes, both placements.
    pub held_bytes: u64,
    /// Counters.
    pub counters: Counters,
    /// Latency from the IU's arrival to the post of its response, in nanoseconds.
    pub latency: [Histogram; OPERATIONS],
}

/// One logical unit's shard in a snapshot.
#[derive(Clone)]
pub struct UnitStatistics {
    /// Its handle.
    pub handle: u32,
    /// Counters.
    pub counters: Counters,
    /// Latency by operation and size class.
    pub latency: Box<[[Histogram; SIZE_CLASSES]; OPERATIONS]>,
}

/// A group's ring in a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct RingShard {
    /// What it counted.
    pub counters: lunar_backend::ring::RingStatistics,
    /// Operations in flight.
    pub outstanding: u32,
}

/// A poll group's answer to a statistics request.
#[derive(Clone, Default)]
pub struct GroupStatistics {
    /// Opaque name of the request.
    pub request: u64,
    /// Index of the group.
    pub group: u16,
    /// The group's own counters.
    pub counters: GroupCounters,
    /// Its nexuses.
    pub nexuses: Vec<NexusStatistics>,
    /// Its shards of the logical units.
    pub units: Vec<UnitStatistics>,
    /// SGV cache of card memory.
    pub card_sgv: Option<SgvStatistics>,
    /// SGV cache of host memory.
    pub host_sgv: Option<SgvStatistics>,
    /// The ring, while there is one.
    pub ring: Option<RingShard>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_have_their_stated_bounds() {
        for (class, bound) in SIZE_CLASS_BYTES.into_iter().enumerate() {
            assert_eq!(size_class(bound), class, "{bound}");
            assert_eq!(size_class(bound + 1), class + 1, "{}", bound + 1);
        }
        assert_eq!(size_class(0), 0);
        assert_eq!(size_class(u32::MAX), SIZE_CLASSES - 1);
    }
}
