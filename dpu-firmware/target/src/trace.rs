//! The way of single commands, as typed events: `docs/one-read.md` is snapshot from it, the
//! simulator takes its coverage from it, and later `lunar trace` shows it. Off unless asked for;
//! then each point costs one branch.

use lunar_platform::Nanoseconds;

use crate::task::State;

/// What happened to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Point {
    /// A receive completion was reaped.
    Received,
    /// The IU was understood and a slot claimed, together with the place for its response.
    Claimed,
    /// It entered a state.
    Entered(State),
    /// It got its SGV buffer.
    Buffer,
    /// RDMA READs were posted.
    ReadsPosted {
        /// How many.
        work_requests: u32,
    },
    /// The last of the RDMA READs completed.
    ReadsDone,
    /// The backend took it.
    Submitted,
    /// The backend answered.
    Outcome,
    /// The receive buffer went back to the SRQ.
    Reposted,
    /// RDMA WRITEs and the response went on the send queue in one chain.
    ResponsePosted {
        /// RDMA WRITEs in the chain.
        writes: u32,
    },
    /// The channel's doorbell was rung (once for everything posted in the tick).
    Doorbell,
    /// The response's SEND completed: slot, buffer and room are free again.
    Over,
    /// An abort found it in this state; one that ends by itself anyway stays as it is.
    Aborted(State),
    /// A gate on its unit was closed while it was in this state.
    Gated(State),
    /// Its channel ended while it was in this state.
    ChannelLost(State),
    /// The ring was reset or detached while it was in this state.
    RingLost(State),
    /// The host announced that its memory goes, while it was in this state.
    Revoked(State),
}

/// One recorded event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The tick's time.
    pub at: Nanoseconds,
    /// The SRP tag; 0 where the event belongs to no single task.
    pub tag: u64,
    /// What happened.
    pub point: Point,
}

/// A bounded record of events; what does not fit is counted.
pub struct Trace {
    records: Vec<Record>,
    capacity: usize,
    lost: u64,
}

impl Trace {
    /// Room for `capacity` events, claimed now.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { records: Vec::with_capacity(capacity), capacity, lost: 0 }
    }

    pub(crate) fn push(&mut self, record: Record) {
        if self.records.len() < self.capacity {
            self.records.push(record);
        } else {
            self.lost += 1;
        }
    }

    /// What was recorded since the last call.
    pub fn take(&mut self) -> (Vec<Record>, u64) {
        let records = std::mem::replace(&mut self.records, Vec::with_capacity(self.capacity));
        (records, std::mem::take(&mut self.lost))
    }
}
