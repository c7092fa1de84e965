//! One ring pair in memory: takes submissions to the core and publishes its completions. The agent
//! and the simulator use it unchanged; what differs is the memory.
//!
//! Order matters for restarts: an entry's slot is given back (`consumed`) *before* the core may
//! start it. So an agent that dies leaves every entry either untouched or of unknown fate, and none
//! runs twice.

use lunar_handlers::Arena;
use lunar_offload_proto::cursor::{Consumer, Producer, PushError, RingFault, RingMemory};
use lunar_offload_proto::ring::{
    CompletionEntry, Entry, FLAG_SIDE, RingLayout, SideRecord, SubmissionEntry,
};

use crate::config::RingRecovery;
use crate::core::Core;

/// One ring in an arena.
#[derive(Clone, Debug)]
pub struct ArenaWindow {
    arena: Arena,
    offset: u64,
}

impl ArenaWindow {
    /// The ring of `layout` that begins at `offset`; `None` unless it lies inside `arena`, aligned
    /// to 64 bytes.
    #[must_use]
    pub fn new(arena: Arena, offset: u64, layout: RingLayout) -> Option<Self> {
        let end = offset.checked_add(layout.bytes())?;
        (end <= arena.length() && offset.is_multiple_of(64)).then_some(Self { arena, offset })
    }
}

/// The bounds were checked by [`ArenaWindow::new`]; what lies outside reads as zero.
impl RingMemory for ArenaWindow {
    fn load_acquire(&self, offset: u64) -> u32 {
        self.arena.load_acquire(self.offset.saturating_add(offset)).unwrap_or(0)
    }

    fn store_release(&self, offset: u64, value: u32) {
        let stored = self.arena.store_release(self.offset.saturating_add(offset), value);
        debug_assert!(stored, "outside the arena");
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        let copied = self.arena.read(self.offset.saturating_add(offset), out);
        debug_assert!(copied, "outside the arena");
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let copied = self.arena.write(self.offset.saturating_add(offset), bytes);
        debug_assert!(copied, "outside the arena");
    }
}

/// An entry that was copied out, with its side record where it says that it has one.
type Taken = (SubmissionEntry, Option<Box<SideRecord>>);

/// The host's ends of one ring pair.
#[derive(Debug)]
pub struct RingPair<M> {
    index: u16,
    layout: RingLayout,
    submission_memory: M,
    completion_memory: M,
    submissions: Consumer<SubmissionEntry, M>,
    completions: Producer<CompletionEntry, M>,
    taken: Vec<Taken>,
}

impl<M: RingMemory + Clone> RingPair<M> {
    /// The pair number `index` of a new ring (all words zero).
    pub fn new(index: u16, layout: RingLayout, submission: M, completion: M) -> Self {
        Self {
            index,
            layout,
            submissions: Consumer::new(layout, submission.clone()),
            completions: Producer::new(layout, completion.clone()),
            submission_memory: submission,
            completion_memory: completion,
            taken: Vec::new(),
        }
    }

    /// Goes on with rings that an agent left, and tells the core what it left there.
    ///
    /// # Errors
    /// [`RingFault`] when words and entries contradict each other: start with [`Self::new`] and give
    /// the fault to [`Core::on_ring_fault`].
    pub fn recover(
        index: u16,
        layout: RingLayout,
        submission: M,
        completion: M,
    ) -> Result<(Self, RingRecovery), RingFault> {
        let mut pair = Self::new(index, layout, submission, completion);
        let (next_submission, _) = words(&pair.submission_memory, layout)?;
        let (consumed, published) = words(&pair.completion_memory, layout)?;
        pair.submissions =
            Consumer::resume(layout, pair.submission_memory.clone(), next_submission);
        // The producer starts where the card is and publishes again, byte for byte, what the card
        // has not consumed: so both agree on what is in the ring.
        pair.completions = Producer::resume(layout, pair.completion_memory.clone(), consumed);
        let mut unread = Vec::new();
        let mut sequence = consumed;
        while sequence != published {
            let entry = read_completion(&pair.completion_memory, layout, sequence);
            if entry.sequence() != sequence {
                let found = entry.sequence();
                return Err(RingFault::Sequence { expected: sequence, found });
            }
            unread.push(entry.token.get());
            match pair.completions.push(entry, None) {
                Ok(_) => {}
                Err(PushError::Fault(fault)) => return Err(fault),
                // Not more than `slots` are pushed, so there is room.
                Err(PushError::Full) => break,
            }
            sequence = sequence.wrapping_add(1);
        }
        pair.completions.publish();
        Ok((pair, RingRecovery { next_submission, next_completion: published, unread }))
    }

    /// Takes up to `budget` submissions to `core`; gives their number. None while the core does not
    /// want this ring polled.
    pub fn poll(&mut self, core: &mut Core, budget: usize, now_ns: u64) -> usize {
        if !core.wants_polling(self.index) {
            return 0;
        }
        let fault = self.take(budget).err();
        let count = self.taken.len();
        let empty = SideRecord::empty();
        for (entry, side) in self.taken.drain(..) {
            core.on_submission(self.index, &entry, side.as_deref().unwrap_or(&empty), now_ns);
        }
        if let Some(fault) = fault {
            core.on_ring_fault(self.index, &fault);
        }
        count
    }

    /// Writes a completion; the card sees it after [`Self::publish`]. A card that leaves no room
    /// broke the contract, which `core` is told.
    pub fn complete(&mut self, core: &mut Core, entry: CompletionEntry, side: Option<&SideRecord>) {
        match self.completions.push(entry, side) {
            Ok(_) => {}
            Err(PushError::Fault(fault)) => core.on_ring_fault(self.index, &fault),
            Err(error @ PushError::Full) => core.on_ring_fault(self.index, &error),
        }
    }

    /// Shows the card what was completed. Returns whether there was something new: then hint.
    pub fn publish(&mut self) -> bool {
        self.completions.publish()
    }

    /// Empties both rings for a card that starts anew: every word and cursor is 0.
    pub fn reset(&mut self) {
        for memory in [&self.submission_memory, &self.completion_memory] {
            memory.store_release(self.layout.published_offset(), 0);
            memory.store_release(self.layout.consumed_offset(), 0);
        }
        self.submissions = Consumer::new(self.layout, self.submission_memory.clone());
        self.completions = Producer::new(self.layout, self.completion_memory.clone());
    }

    /// Copies entries out, then gives their slots back. What was taken before a fault counts.
    fn take(&mut self, budget: usize) -> Result<(), RingFault> {
        let mut result = Ok(());
        while self.taken.len() < budget {
            match self.submissions.pop() {
                Ok(Some(entry)) => {
                    let side = entry.has(FLAG_SIDE).then(|| {
                        let mut side = Box::new(SideRecord::empty());
                        self.submissions.read_side(entry.sequence(), &mut side);
                        side
                    });
                    self.taken.push((entry, side));
                }
                Ok(None) => break,
                Err(fault) => {
                    result = Err(fault);
                    break;
                }
            }
        }
        self.submissions.release();
        result
    }
}

/// `consumed` and `published` of one ring, when they can both be true.
fn words(memory: &impl RingMemory, layout: RingLayout) -> Result<(u32, u32), RingFault> {
    let consumed = memory.load_acquire(layout.consumed_offset());
    let published = memory.load_acquire(layout.published_offset());
    if published.wrapping_sub(consumed) > layout.slots() {
        return Err(RingFault::Cursor {
            word: "published",
            found: published,
            from: consumed,
            to: consumed.wrapping_add(layout.slots()),
        });
    }
    Ok((consumed, published))
}

fn read_completion(memory: &impl RingMemory, layout: RingLayout, sequence: u32) -> CompletionEntry {
    // An entry of zeroes has no token and no outcome; every byte is read below.
    let mut entry = CompletionEntry::new(0, lunar_offload_proto::ring::Outcome::Unknown(0));
    memory.read(layout.entry_offset(sequence), zerocopy::IntoBytes::as_mut_bytes(&mut entry));
    entry
}
