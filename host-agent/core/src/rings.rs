//! What the core keeps of each ring: whether it is polled, what waits in it, and what was counted.

use std::collections::{BTreeSet, VecDeque};

use lunar_offload_proto::ring::{SideRecord, SubmissionEntry};

use crate::config::{RingGeometry, RingRecovery};

/// Whether and why a ring is (not) polled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RingState {
    /// No card has been admitted yet.
    Idle,
    /// Goes on after an agent restart; waits for the card's list of what was in flight.
    Reconciling,
    /// Polled.
    Open,
    /// Not used any more until a card starts anew.
    Closed {
        /// Why.
        reason: String,
    },
}

/// Events of one ring since the agent's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounters {
    /// Entries taken.
    pub submissions: u64,
    /// Completions published.
    pub completions: u64,
    /// Completions with outcome refused: malformed, unknown unit, operation or nexus life.
    pub refused: u64,
    /// Operations whose handler reported an error.
    pub errors: u64,
    /// Operations that ended by CANCEL.
    pub cancelled: u64,
    /// Operations of an earlier agent whose end nobody knows.
    pub lost: u64,
    /// Entries that waited for a generation.
    pub parked: u64,
    /// Entries that waited too long for it.
    pub parked_expired: u64,
    /// Times the ring was closed because the card broke the contract.
    pub faults: u64,
}

/// An entry from a generation that was not seen yet.
#[derive(Clone, Debug)]
pub(crate) struct Parked {
    pub(crate) entry: SubmissionEntry,
    pub(crate) side: Option<Box<SideRecord>>,
    pub(crate) since_ns: u64,
}

/// A CANCEL whose answer the handler owes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingCancel {
    pub(crate) operation: crate::operations::OperationId,
    pub(crate) token: u64,
}

#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) geometry: RingGeometry,
    pub(crate) state: RingState,
    pub(crate) counters: RingCounters,
    /// Entries taken and not completed: parked, at a handler, or a CANCEL without its answer. At
    /// most the ring's slots, which bounds everything below.
    pub(crate) outstanding: u32,
    pub(crate) parked: VecDeque<Parked>,
    pub(crate) cancels: Vec<PendingCancel>,
    /// Sequence of the next submission to take.
    pub(crate) next_submission: u32,
    /// Sequence of the next completion to publish.
    pub(crate) next_completion: u32,
    /// Tokens whose completions an earlier agent published and the card may not have read.
    pub(crate) unread: BTreeSet<u64>,
    /// The card's operations of earlier agents have been settled.
    pub(crate) reconciled: bool,
    /// Times that everything outstanding was forgotten: which life of the ring this is.
    pub(crate) life: u64,
}

impl Ring {
    pub(crate) fn new(geometry: RingGeometry, recovery: Option<&RingRecovery>) -> Self {
        let recovery = recovery.cloned().unwrap_or_default();
        Self {
            geometry,
            state: RingState::Idle,
            counters: RingCounters::default(),
            outstanding: 0,
            parked: VecDeque::new(),
            cancels: Vec::new(),
            next_submission: recovery.next_submission,
            next_completion: recovery.next_completion,
            unread: recovery.unread.into_iter().collect(),
            reconciled: false,
            life: 0,
        }
    }

    /// Forgets everything of the card's older epoch.
    pub(crate) fn forget(&mut self) {
        self.outstanding = 0;
        self.life = self.life.saturating_add(1);
        self.parked.clear();
        self.cancels.clear();
        self.unread.clear();
    }

    /// A new, empty ring.
    pub(crate) fn reopen(&mut self) {
        self.forget();
        self.state = RingState::Open;
        self.next_submission = 0;
        self.next_completion = 0;
        self.reconciled = false;
    }

    /// Whether the agent before this one, or this one, has taken the submission `sequence`.
    pub(crate) fn was_taken(&self, sequence: u32) -> bool {
        // At most `slots` submissions are ahead of the next one to take; all others are behind.
        sequence.wrapping_sub(self.next_submission) >= self.geometry.layout.slots()
    }
}
