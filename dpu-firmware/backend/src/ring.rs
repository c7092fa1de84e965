//! The producer of one poll group's PCIe ring (DESIGN section 5): block operations and forwarded
//! commands go to the host agent, whose handlers carry them out in host memory.
//!
//! Both rings lie in host memory and are reached by DMA alone. What is pushed or pulled is a mirror
//! in card memory with the same slots, so that neighbours in the ring go in one operation. Two
//! machines take turns in [`RingBackend::tick`]; each step ends in DMA operations, and the next begins
//! when they all completed, because a DMA completion is the only order there is:
//!
//! ```text
//! batch   Idle ── flush(arena), data-out, side records, entries ──> Filling ──> Waiting
//!         Waiting ── all visible: push `published` ──> Publishing ──> one hint, Idle
//! round   Idle ── pull `published` (and `consumed` when room is low) ──> Words
//!         Words ── pull the new entries ──> Entries ── check, pull sense ──> Senses ──> Idle
//! ```
//!
//! The capacities are a sum: operations outstanding (submitted, and the slot of their completion not
//! released) <= slots - cancels; CANCEL entries outstanding <= cancels; so at most one completion a slot
//! is ever owed. The `consumed` word of the completion ring travels with each batch, ahead of its
//! `published` word: the host never owes a completion that it has no slot for, and the word need not be
//! pushed at other times.
//!
//! When the way to the host is cut (the DMA engine ends with `Gone`), nothing that was pushed or pulled is lost but in
//! flight: all steps can be repeated, and [`RingBackend::restore`] begins each anew where it stood.
//!
//! The host is not believed: cursors, sequences, tokens, outcomes and lengths are checked, and a lie
//! costs the ring ([`RingFault`]), nothing else.

mod fault;

use core::mem::offset_of;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use lunar_dma::sgv::{Buffer, ClaimError, Placement, SgvCache, Share};
use lunar_offload_proto::cursor::{ConsumerCursor, ProducerCursor};
use lunar_offload_proto::ring::{
    CDB_BYTES_MAX, CompletionEntry, ENTRY_BYTES, Entry, FLAG_SIDE, Operation, Outcome as Code,
    RingLayout, SENSE_BYTES_MAX, SIDE_BYTES, SideRecord, SubmissionEntry, UNMAP_RANGES_MAX,
};
use lunar_platform::{
    ArenaId, Dma, DmaCompletion, DmaError, DmaOperation, DmaRequest, HostAddress, LocalKey, Memory,
    MemoryError, Nanoseconds, Platform, Region,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{BlockRequest, NoRoom, Outcome, Submission};

pub use fault::RingFault;

/// Where a ring pair lies and where it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSetup {
    /// The ring pair's name, for hints.
    pub ring: u16,
    /// The imported arena that holds both rings.
    pub arena: ArenaId,
    /// Slots of each ring, at least 4.
    pub layout: RingLayout,
    /// Bytes from the arena's first byte to the submission ring; a multiple of 64.
    pub submission_offset: u64,
    /// Bytes from the arena's first byte to the completion ring; a multiple of 64.
    pub completion_offset: u64,
    /// Sequence of the next submission.
    pub submission_sequence: u32,
    /// Sequence of the next completion.
    pub completion_sequence: u32,
    /// The imported arena that holds the data area.
    pub data_arena: ArenaId,
    /// Bytes from the data arena's first byte to the data area, over which the HostDram
    /// [`SgvCache`] is made.
    pub data_offset: u64,
    /// Bytes from the data arena's first byte to the staging area, over which the cache is made that
    /// [`RingBackend::submit`] and [`RingBackend::tick`] are given. Apart from the data area, so that
    /// neither placement can wait for the other's memory.
    pub staging_offset: u64,
    /// What CardDram operations may hold of the staging area together, in bytes.
    pub staging_bytes_max: u64,
}

/// Why a ring could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupError {
    /// Fewer than 4 slots leave none for operations beside CANCEL.
    TooFewSlots {
        /// What was offered.
        slots: u32,
    },
    /// A ring does not start at a multiple of 64 bytes.
    Unaligned {
        /// Where it starts.
        offset: u64,
    },
    /// A ring or the data area ends beyond 2^64.
    OutOfRange,
    /// No card memory for the mirror of the rings.
    Memory(MemoryError),
}

impl core::fmt::Display for SetupError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooFewSlots { slots } => {
                write!(f, "the ring has {slots} slots, at least 4 are needed")
            }
            Self::Unaligned { offset } => {
                write!(f, "the ring starts at byte {offset}, which is not a multiple of 64")
            }
            Self::OutOfRange => f.write_str("the ring or its data area ends beyond 2^64"),
            Self::Memory(error) => write!(f, "no mirror for the ring: {error}"),
        }
    }
}

impl core::error::Error for SetupError {}

/// Counters since the ring was set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStatistics {
    /// Operations taken.
    pub submitted: u64,
    /// Operations whose completion was consumed.
    pub completed: u64,
    /// Operations cancelled before they were published.
    pub withdrawn: u64,
    /// CANCEL entries written.
    pub cancels: u64,
    /// Batches published; one hint each.
    pub batches: u64,
    /// Batches that needed a flush of the data arena.
    pub flushes: u64,
    /// DMA operations that moved payload of CardDram operations.
    pub payload_copies: u64,
    /// Looks at the completion ring.
    pub rounds: u64,
    /// Looks that found nothing new.
    pub rounds_empty: u64,
}

/// A defect to be switched on, so that a test can prove that it would be noticed.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutation {
    /// None.
    #[default]
    None,
    /// Publish without flushing what the HCA wrote.
    FlushSkipped,
}

/// Marks tokens of CANCEL entries; the submitter's slot indexes stay below it.
const CANCEL_TOKEN: u64 = 1 << 31;
/// In `by_slot`: the entry is a CANCEL, with its record's index below.
const CANCEL_SLOT: u32 = 1 << 31;
/// At most this many CANCEL entries are outstanding.
const CANCELS_MAX: u32 = 16;
/// DMA completions reaped at once.
const REAP_MAX: usize = 8;
/// Steps of both machines in one tick: more than a prompt engine needs to bring a batch and a round
/// to their ends.
const PASSES_MAX: usize = 16;
/// Room for one operation's sense data.
const SENSE_STRIDE: usize = 256;
const _: () = assert!(SENSE_BYTES_MAX <= SENSE_STRIDE);
/// What the card fills of a side record: counts (one 64-bit word), and CDB or ranges. All of it is
/// pushed: such operations are rare, and one length for both is simpler than two.
const SIDE_CDB_AT: usize = offset_of!(SideRecord, cdb);
const SIDE_RANGES_AT: usize = offset_of!(SideRecord, segments);
const SIDE_RANGE_COUNT_SHIFT: usize = 8 * offset_of!(SideRecord, segment_count);
const SIDE_USED_BYTES: usize = offset_of!(SideRecord, next_segments);
const SIDE_SENSE_AT: usize = offset_of!(SideRecord, sense);
const _: () = assert!(offset_of!(SideRecord, cdb_bytes) == 0 && SIDE_CDB_AT == 8);

/// Where things lie in the card's mirror, in bytes. The words have cache lines of their own.
#[derive(Clone, Copy, Debug)]
struct Places {
    submissions: usize,
    completions: usize,
    sides: usize,
    senses: usize,
    end: usize,
}

const PUBLISHED_AT: usize = 0;
const CONSUMED_AT: usize = 64;
const PULLED_PUBLISHED_AT: usize = 128;
const PULLED_CONSUMED_AT: usize = 192;

impl Places {
    fn new(layout: RingLayout, flights: usize) -> Self {
        let slots = layout.slots() as usize;
        let submissions = 256;
        let completions = submissions + slots * ENTRY_BYTES;
        let sides = completions + slots * ENTRY_BYTES;
        let senses = sides + slots * SIDE_BYTES;
        Self { submissions, completions, sides, senses, end: senses + flights * SENSE_STRIDE }
    }

    fn submission(&self, slot: u32) -> usize {
        self.submissions + slot as usize * ENTRY_BYTES
    }

    fn completion(&self, slot: u32) -> usize {
        self.completions + slot as usize * ENTRY_BYTES
    }

    fn side(&self, slot: u32) -> usize {
        self.sides + slot as usize * SIDE_BYTES
    }

    fn sense(&self, index: u32) -> usize {
        self.senses + index as usize * SENSE_STRIDE
    }
}

/// Where an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nowhere: the slot may be used.
    Free,
    /// In the mirror; can be withdrawn.
    Queued,
    /// In the batch that is being pushed.
    Batched,
    /// The host may see it and complete it.
    Published,
    /// Completed; data-in or sense is being pulled.
    Pulling,
    /// Waits for [`RingBackend::poll`].
    Ended,
}

/// One operation in flight, at the index of its token.
#[derive(Debug)]
struct Flight {
    token: u64,
    stage: Stage,
    sequence: u32,
    data_bytes: u32,
    data_out: bool,
    forwarded: bool,
    side: bool,
    cancelling: bool,
    /// Pulls to wait for before the outcome is reported; the sense lies with this completion.
    pulls_data: bool,
    pulls_sense: bool,
    completion: u32,
    sense_bytes: u16,
    /// The CardDram buffer, when the data is staged.
    card: (LocalKey, u64),
    /// Its place in host memory.
    staged: Option<Buffer>,
    outcome: Outcome,
}

impl Flight {
    const FREE: Self = Self {
        token: 0,
        stage: Stage::Free,
        sequence: 0,
        data_bytes: 0,
        data_out: false,
        forwarded: false,
        side: false,
        cancelling: false,
        pulls_data: false,
        pulls_sense: false,
        completion: 0,
        sense_bytes: 0,
        card: (LocalKey(0), 0),
        staged: None,
        outcome: Outcome::EMPTY,
    };

    /// Whether its entry needs more pushed than itself.
    fn has_extras(&self) -> bool {
        self.side || (self.data_out && self.staged.is_some())
    }
}

/// A CANCEL entry's name; busy until its own completion.
#[derive(Clone, Copy, Debug, Default)]
struct CancelRecord {
    generation: u32,
    busy: bool,
    published: bool,
    sequence: u32,
}

impl CancelRecord {
    fn token(&self, index: usize) -> u64 {
        u64::from(self.generation) << 32 | CANCEL_TOKEN | index as u64
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BatchStage {
    Idle,
    Filling,
    Waiting,
    Publishing,
}

/// The entries on their way into the submission ring.
#[derive(Clone, Copy, Debug)]
struct Batch {
    stage: BatchStage,
    first: u32,
    count: u32,
    /// The next sequence whose extras were not pushed yet.
    at: u32,
    /// Entries among them that have extras.
    extras: u32,
    flush: bool,
    /// DMA operations to wait for.
    pending: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoundStage {
    Idle,
    Words,
    /// Entries to pull, and whether that has begun.
    Entries {
        count: u32,
        pulling: bool,
    },
    Senses,
}

/// One look at the completion ring.
#[derive(Clone, Copy, Debug)]
struct Round {
    stage: RoundStage,
    /// `consumed` of the submission ring was pulled as well.
    consumed_too: bool,
    pending: u32,
    /// A tick looks once.
    allowed: bool,
}

/// What a DMA operation was for; its id, with an index in the low half where one is needed.
mod purpose {
    pub(super) const SHIFT: u32 = 32;
    pub(super) const BATCH: u64 = 1 << SHIFT;
    pub(super) const PUBLISH: u64 = 2 << SHIFT;
    pub(super) const ROUND: u64 = 3 << SHIFT;
    pub(super) const SENSE: u64 = 4 << SHIFT;
    pub(super) const DATA: u64 = 5 << SHIFT;
}

/// The card's end of one ring pair; one for each poll group, which owns the group's DMA context while
/// it lives.
pub struct RingBackend<P: Platform> {
    dma: P::Dma,
    mirror: P::Region,
    places: Places,
    setup: RingSetup,
    attached: bool,
    /// The way to the host was cut since the ring was set up or restored.
    cut: bool,
    fault: Option<RingFault>,
    submission: ProducerCursor,
    completion: ConsumerCursor,
    /// Entries in the mirror behind `submission.next()` that no batch has taken.
    queued: u32,
    queued_extras: u32,
    flush_wanted: bool,
    batch: Batch,
    round: Round,
    /// The `consumed` word that the host was not told yet.
    consumed: Option<u32>,
    /// Flight, or [`CANCEL_SLOT`] and record, of the entry in each slot of the submission ring.
    by_slot: Box<[u32]>,
    flights: Box<[Flight]>,
    operations: u32,
    operations_max: u32,
    /// Entries (operations and CANCELs) that the host owes a completion.
    owed: u32,
    cancels: Box<[CancelRecord]>,
    /// Operations that wait for a [`CancelRecord`].
    cancel_waiting: VecDeque<u64>,
    /// Flights that wait for DMA room to pull their data-in.
    data_waiting: VecDeque<u32>,
    /// Flights that wait for DMA room to pull their sense.
    sense_waiting: VecDeque<u32>,
    ended: VecDeque<u32>,
    /// Staging to give back to its cache at the next tick.
    returned: Vec<Buffer>,
    share: Share,
    dma_in_flight: u32,
    statistics: RingStatistics,
    #[cfg(feature = "mutants")]
    mutation: Mutation,
}

impl<P: Platform> RingBackend<P> {
    /// Sets the card's end of a ring pair up. `capacity` is one more than the greatest slot index of
    /// a token. The arenas are imported already.
    ///
    /// # Errors
    /// [`SetupError`], with the DMA context back.
    pub fn new(
        memory: &mut P::Memory,
        dma: P::Dma,
        setup: RingSetup,
        capacity: u32,
    ) -> Result<Self, (P::Dma, SetupError)> {
        let slots = setup.layout.slots();
        let places = Places::new(setup.layout, capacity as usize);
        let mirror = match check(&setup) {
            Ok(()) => memory.claim(places.end).map_err(SetupError::Memory),
            Err(error) => Err(error),
        };
        let mirror = match mirror {
            Ok(mirror) => mirror,
            Err(error) => return Err((dma, error)),
        };
        let cancels = (slots / 8).clamp(1, CANCELS_MAX);
        let flights = capacity as usize;
        Ok(Self {
            dma,
            mirror,
            places,
            setup,
            attached: true,
            cut: false,
            fault: None,
            submission: ProducerCursor::new(setup.layout, setup.submission_sequence),
            completion: ConsumerCursor::new(setup.layout, setup.completion_sequence),
            queued: 0,
            queued_extras: 0,
            flush_wanted: false,
            batch: Batch {
                stage: BatchStage::Idle,
                first: 0,
                count: 0,
                at: 0,
                extras: 0,
                flush: false,
                pending: 0,
            },
            round: Round {
                stage: RoundStage::Idle,
                consumed_too: false,
                pending: 0,
                allowed: false,
            },
            // A ring before this one may have consumed completions without telling the host, which
            // would count their slots as used.
            consumed: (setup.completion_sequence != 0).then_some(setup.completion_sequence),
            by_slot: vec![u32::MAX; slots as usize].into_boxed_slice(),
            flights: std::iter::repeat_with(|| Flight::FREE).take(flights).collect(),
            operations: 0,
            operations_max: slots - cancels,
            owed: 0,
            cancels: vec![CancelRecord::default(); cancels as usize].into_boxed_slice(),
            cancel_waiting: VecDeque::with_capacity(flights),
            data_waiting: VecDeque::with_capacity(flights),
            sense_waiting: VecDeque::with_capacity(flights),
            ended: VecDeque::with_capacity(flights),
            returned: Vec::with_capacity(flights),
            share: Share::new(setup.staging_bytes_max),
            dma_in_flight: 0,
            statistics: RingStatistics::default(),
            #[cfg(feature = "mutants")]
            mutation: Mutation::None,
        })
    }

    /// Takes an operation. It is published at the next [`Self::tick`]. Data-out that lies in
    /// HostDram must have arrived (its HCA completion was seen) before.
    ///
    /// # Errors
    /// [`NoRoom`]: as many operations as the ring can hold are outstanding, there is no staging in
    /// host memory for a CardDram buffer, or the ring is detached, cut or faulted.
    pub fn submit(
        &mut self,
        submission: &Submission<'_>,
        host: &mut SgvCache,
    ) -> Result<(), NoRoom> {
        if !self.is_attached()
            || self.operations + self.unreleased() >= self.operations_max
            || self.queued >= self.submission.room()
        {
            return Err(NoRoom);
        }
        let index = submission.token as u32;
        let free =
            matches!(self.flights.get(index as usize), Some(Flight { stage: Stage::Free, .. }));
        debug_assert!(free, "slot {index} is beyond the capacity or in flight");
        if !free {
            return Err(NoRoom);
        }

        let mut entry = SubmissionEntry::new(Operation::Read, submission.token);
        submission.request.encode(&mut entry);
        let data_out = submission.request.is_data_out();
        let mut flight = Flight {
            token: submission.token,
            stage: Stage::Queued,
            data_out,
            forwarded: matches!(submission.request, BlockRequest::Forward { .. }),
            side: entry.has(FLAG_SIDE),
            ..Flight::FREE
        };
        if flight.side
            && (submission.cdb.len() > CDB_BYTES_MAX || submission.ranges.len() > UNMAP_RANGES_MAX)
        {
            return self.refuse(index, flight);
        }
        entry.unit.set(submission.unit);
        entry.nexus.set(submission.nexus);
        entry.configuration_generation.set(submission.configuration_generation);
        entry.nexus_generation.set(submission.nexus_generation);
        if let Some(data) = submission.data
            && submission.data_bytes > 0
        {
            if submission.data_bytes > data.bytes {
                return self.refuse(index, flight);
            }
            let offset = match data.placement {
                Placement::HostDram => {
                    self.flush_wanted |= data_out;
                    self.setup.data_offset + data.offset
                }
                Placement::CardDram => match host.claim(submission.data_bytes, &mut self.share) {
                    Ok(staged) => {
                        let offset = self.setup.staging_offset + staged.offset();
                        flight.card = (data.key, data.address);
                        flight.staged = Some(staged);
                        offset
                    }
                    Err(ClaimError::TooLarge) => return self.refuse(index, flight),
                    Err(_) => return Err(NoRoom),
                },
            };
            flight.data_bytes = submission.data_bytes;
            entry.arena.set(self.setup.data_arena.0);
            entry.data_bytes.set(submission.data_bytes);
            entry.data_offset.set(offset);
        }

        let sequence = self.submission.next().wrapping_add(self.queued);
        if flight.side {
            let at = self.places.side(self.setup.layout.slot(sequence));
            self.put_side(at, submission, flight.forwarded);
        }
        flight.sequence = sequence;
        self.queued_extras += u32::from(flight.has_extras());
        self.flights[index as usize] = flight;
        self.operations += 1;
        self.statistics.submitted += 1;
        self.enqueue(&mut entry, index);
        Ok(())
    }

    /// Completions consumed whose slots the host has not got back: they still count as outstanding.
    #[inline]
    fn unreleased(&self) -> u32 {
        self.completion.next().wrapping_sub(self.completion.released())
    }

    /// Writes the side record's counts, and the CDB or the ranges, to the mirror. Their lengths were
    /// checked.
    fn put_side(&mut self, at: usize, submission: &Submission<'_>, forwarded: bool) {
        if forwarded {
            put(&mut self.mirror, at, &(submission.cdb.len() as u64).to_le_bytes());
            put(&mut self.mirror, at + SIDE_CDB_AT, submission.cdb);
        } else {
            let counts = (submission.ranges.len() as u64) << SIDE_RANGE_COUNT_SHIFT;
            put(&mut self.mirror, at, &counts.to_le_bytes());
            put(&mut self.mirror, at + SIDE_RANGES_AT, submission.ranges.as_bytes());
        }
    }

    /// Ends an operation that no ring entry can express.
    fn refuse(&mut self, index: u32, mut flight: Flight) -> Result<(), NoRoom> {
        flight.outcome = Outcome::of(flight.token, Code::Refused);
        self.flights[index as usize] = flight;
        self.operations += 1;
        self.end(index);
        Ok(())
    }

    /// Writes `entry` to the mirror, behind what is queued.
    #[inline]
    fn enqueue(&mut self, entry: &mut SubmissionEntry, flight: u32) {
        let sequence = self.submission.next().wrapping_add(self.queued);
        let slot = self.setup.layout.slot(sequence);
        entry.set_sequence(sequence);
        put(&mut self.mirror, self.places.submission(slot), entry.as_bytes());
        self.by_slot[slot as usize] = flight;
        self.queued += 1;
    }

    /// Asks for the end of an operation. Not published: it is withdrawn and ends with `Cancelled` at
    /// the next poll. Published: a CANCEL is sent; the operation ends with `Cancelled`, or as usual
    /// when it was too late. False when `token` is not in flight, or was cancelled before.
    pub fn cancel(&mut self, token: u64) -> bool {
        let index = token as u32;
        let Some(flight) = self.flights.get_mut(index as usize) else { return false };
        if flight.token != token {
            return false;
        }
        match flight.stage {
            Stage::Queued => {
                self.withdraw(index);
                true
            }
            Stage::Batched | Stage::Published if !flight.cancelling => {
                flight.cancelling = true;
                self.cancel_waiting.push_back(token);
                true
            }
            _ => false,
        }
    }

    /// Takes a queued entry out; the newest one fills its place.
    fn withdraw(&mut self, index: u32) {
        let layout = self.setup.layout;
        let hole = self.flights[index as usize].sequence;
        let newest = self.submission.next().wrapping_add(self.queued - 1);
        if newest != hole {
            let (from, to) = (layout.slot(newest), layout.slot(hole));
            let moved = self.by_slot[from as usize];
            let mut entry: [u8; ENTRY_BYTES] = get(&self.mirror, self.places.submission(from));
            if let Ok(entry) = SubmissionEntry::mut_from_bytes(&mut entry) {
                entry.set_sequence(hole);
            }
            put(&mut self.mirror, self.places.submission(to), &entry);
            if self.flights[moved as usize].side {
                let side: [u8; SIDE_USED_BYTES] = get(&self.mirror, self.places.side(from));
                put(&mut self.mirror, self.places.side(to), &side);
            }
            self.by_slot[to as usize] = moved;
            self.flights[moved as usize].sequence = hole;
        }
        self.queued -= 1;
        self.statistics.withdrawn += 1;
        let flight = &mut self.flights[index as usize];
        self.queued_extras -= u32::from(flight.has_extras());
        flight.outcome = Outcome::of(flight.token, Code::Cancelled);
        self.end(index);
    }

    /// Data-out arrived in HostDram and its buffer is released without having been submitted: before
    /// the buffer's next user is published, what is still on its way must have landed.
    pub fn flush_before_publish(&mut self) {
        self.flush_wanted = true;
    }

    /// Drives the DMA as far as it goes without waiting. Returns whether anything moved.
    pub fn tick(&mut self, now: Nanoseconds, host: &mut SgvCache) -> bool {
        self.round.allowed = true;
        // Without room the way to the host is being made, and polls make it.
        let mut busy = (self.dma_in_flight > 0 || self.dma.room() == 0) && self.reap();
        for _ in 0..PASSES_MAX {
            self.advance();
            if self.dma_in_flight == 0 || !self.reap() {
                break;
            }
            busy = true;
        }
        while let Some(buffer) = self.returned.pop() {
            host.release(buffer, &mut self.share, now);
        }
        busy || !self.ended.is_empty()
    }

    /// Starts whatever can start now.
    fn advance(&mut self) {
        if self.is_stopped() {
            return;
        }
        if self.batch.stage == BatchStage::Idle && self.attached {
            self.begin_batch();
        }
        if self.batch.stage == BatchStage::Filling {
            self.fill_batch();
        }
        // Nothing is pending either when the way was cut while it was filled.
        if self.batch.stage == BatchStage::Waiting && self.batch.pending == 0 && !self.is_stopped()
        {
            self.publish_batch();
        }
        self.advance_round();
        while let Some(&index) = self.data_waiting.front()
            && self.dma.room() > 0
            && !self.is_stopped()
        {
            self.data_waiting.pop_front();
            self.pull_data(index);
        }
    }

    /// Queues CANCELs and turns what is queued into a batch.
    fn begin_batch(&mut self) {
        if !self.cancel_waiting.is_empty() {
            self.queue_cancels();
        }
        if self.queued == 0 {
            return;
        }
        let first = self.submission.next();
        for offset in 0..self.queued {
            // There is room: `queued` never exceeds it.
            self.submission.claim();
            let slot = self.setup.layout.slot(first.wrapping_add(offset));
            if let Some(flight) = self.flights.get_mut(self.by_slot[slot as usize] as usize) {
                flight.stage = Stage::Batched;
            }
        }
        self.batch = Batch {
            stage: BatchStage::Filling,
            first,
            count: self.queued,
            at: first,
            extras: self.queued_extras,
            flush: self.flush_wanted,
            pending: 0,
        };
        self.queued = 0;
        self.queued_extras = 0;
        self.flush_wanted = false;
    }

    fn queue_cancels(&mut self) {
        let slots = self.setup.layout.slots();
        let mut busy = self.cancels.iter().filter(|record| record.busy).count() as u32;
        while let Some(&token) = self.cancel_waiting.front()
            && self.queued < self.submission.room()
            && self.operations + self.unreleased() + busy < slots
            && let Some(index) = self.cancels.iter().position(|record| !record.busy)
        {
            self.cancel_waiting.pop_front();
            busy += 1;
            let sequence = self.submission.next().wrapping_add(self.queued);
            let record = &mut self.cancels[index];
            let generation = record.generation.wrapping_add(1);
            *record = CancelRecord { generation, busy: true, published: false, sequence };
            let name = record.token(index);
            self.enqueue(&mut SubmissionEntry::cancel(name, token), CANCEL_SLOT | index as u32);
            self.statistics.cancels += 1;
        }
    }

    /// Pushes everything that must be visible before the entries are published.
    fn fill_batch(&mut self) {
        if self.batch.flush {
            if self.dma.room() == 0 {
                return;
            }
            self.batch.flush = false;
            self.flush_data_arena();
        }
        if self.batch.extras > 0 && !self.push_extras() {
            return;
        }
        // Entries in at most two pushes, and the consumed word.
        if self.dma.room() < 3 {
            return;
        }
        let Batch { first, count, .. } = self.batch;
        let head = self.unwrapped(first, count);
        self.push_entries(first, head);
        if head < count {
            self.push_entries(first.wrapping_add(head), count - head);
        }
        if self.consumed.is_some() {
            self.push_consumed();
        }
        self.batch.stage = BatchStage::Waiting;
    }

    fn flush_data_arena(&mut self) {
        #[cfg(feature = "mutants")]
        if self.mutation == Mutation::FlushSkipped {
            return;
        }
        self.statistics.flushes += 1;
        self.start(purpose::BATCH, DmaOperation::Flush { arena: self.setup.data_arena });
    }

    /// How many of `count` slots from `sequence` come before the ring's end.
    fn unwrapped(&self, sequence: u32, count: u32) -> u32 {
        count.min(self.setup.layout.slots() - self.setup.layout.slot(sequence))
    }

    fn push_entries(&mut self, first: u32, count: u32) {
        let at = self.places.submission(self.setup.layout.slot(first));
        let to = self.setup.submission_offset + self.setup.layout.entry_offset(first);
        self.push(purpose::BATCH, at, to, count as usize * ENTRY_BYTES);
    }

    /// Pushes side records, neighbours together, and staged data-out. False when the DMA engine was
    /// full before the end.
    fn push_extras(&mut self) -> bool {
        let end = self.batch.first.wrapping_add(self.batch.count);
        let mut run = 0;
        while self.batch.at != end {
            let sequence = self.batch.at;
            let slot = self.setup.layout.slot(sequence);
            let flight = self.flights.get(self.by_slot[slot as usize] as usize);
            let side = flight.is_some_and(|flight| flight.side);
            if run > 0 && (!side || slot == 0) {
                self.push_sides(sequence, run);
                run = 0;
            }
            // This one's data, and the side records up to it: so the run always has its room.
            if self.dma.room() < 2 {
                if run > 0 {
                    self.push_sides(sequence, run);
                }
                return false;
            }
            let flight = self.flights.get(self.by_slot[slot as usize] as usize);
            if let Some(Flight { data_out: true, staged: Some(staged), card, data_bytes, .. }) =
                flight
            {
                let host = HostAddress {
                    arena: self.setup.data_arena,
                    offset: self.setup.staging_offset + staged.offset(),
                };
                let (key, address) = *card;
                let length = *data_bytes;
                self.statistics.payload_copies += 1;
                self.start(purpose::BATCH, DmaOperation::Push { key, address, host, length });
            }
            run += u32::from(side);
            self.batch.at = sequence.wrapping_add(1);
        }
        if run > 0 {
            self.push_sides(end, run);
        }
        true
    }

    /// Pushes the `count` side records before `end`.
    fn push_sides(&mut self, end: u32, count: u32) {
        let first = end.wrapping_sub(count);
        let at = self.places.side(self.setup.layout.slot(first));
        let to = self.setup.submission_offset + self.setup.layout.side_offset(first);
        self.push(purpose::BATCH, at, to, (count as usize - 1) * SIDE_BYTES + SIDE_USED_BYTES);
    }

    fn push_consumed(&mut self) {
        let Some(word) = self.consumed.take() else { return };
        put(&mut self.mirror, CONSUMED_AT, &word.to_le_bytes());
        let to = self.setup.completion_offset + self.setup.layout.consumed_offset();
        self.push(purpose::BATCH, CONSUMED_AT, to, 4);
    }

    /// Everything the entries need is visible: shows them to the host.
    fn publish_batch(&mut self) {
        if self.dma.room() == 0 {
            return;
        }
        // Nothing is new when the way was cut just after this step.
        if let Some(word) = self.submission.publish() {
            put(&mut self.mirror, PUBLISHED_AT, &word.to_le_bytes());
            self.count_published();
        }
        self.batch.stage = BatchStage::Publishing;
        let to = self.setup.submission_offset + self.setup.layout.published_offset();
        self.push(purpose::PUBLISH, PUBLISHED_AT, to, 4);
    }

    /// From now on the host may answer what is in the batch.
    fn count_published(&mut self) {
        for offset in 0..self.batch.count {
            let slot = self.setup.layout.slot(self.batch.first.wrapping_add(offset));
            let entry = self.by_slot[slot as usize];
            if let Some(flight) = self.flights.get_mut(entry as usize) {
                flight.stage = Stage::Published;
            } else if let Some(cancel) = self.cancels.get_mut((entry & !CANCEL_SLOT) as usize) {
                cancel.published = true;
            }
        }
        self.owed += self.batch.count;
        self.statistics.batches += 1;
    }

    fn advance_round(&mut self) {
        match self.round.stage {
            RoundStage::Idle => self.begin_round(),
            RoundStage::Entries { count, pulling: false } if self.dma.room() >= 2 => {
                self.pull_entries(count);
            }
            RoundStage::Senses => self.finish_round(),
            RoundStage::Words | RoundStage::Entries { .. } => {}
        }
    }

    fn begin_round(&mut self) {
        let low = self.submission.room() <= self.setup.layout.slots() / 2;
        if !self.round.allowed || !self.attached || (self.owed == 0 && !low) || self.dma.room() < 2
        {
            return;
        }
        self.round.allowed = false;
        self.round.stage = RoundStage::Words;
        self.round.consumed_too = low;
        self.statistics.rounds += 1;
        let layout = self.setup.layout;
        let published = self.setup.completion_offset + layout.published_offset();
        self.round.pending += 1;
        self.pull(purpose::ROUND, PULLED_PUBLISHED_AT, published, 4);
        if low {
            let consumed = self.setup.submission_offset + layout.consumed_offset();
            self.round.pending += 1;
            self.pull(purpose::ROUND, PULLED_CONSUMED_AT, consumed, 4);
        }
    }

    /// The words are here.
    fn read_words(&mut self) -> Result<(), RingFault> {
        if self.round.consumed_too {
            let word = self.word(PULLED_CONSUMED_AT);
            self.submission.accept_consumed(word)?;
        }
        let word = self.word(PULLED_PUBLISHED_AT);
        let count = self.completion.accept_published(word)?;
        self.round.stage = if count == 0 {
            self.statistics.rounds_empty += 1;
            RoundStage::Idle
        } else {
            RoundStage::Entries { count, pulling: false }
        };
        Ok(())
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(get(&self.mirror, at))
    }

    fn pull_entries(&mut self, count: u32) {
        self.round.stage = RoundStage::Entries { count, pulling: true };
        let first = self.completion.next();
        let head = self.unwrapped(first, count);
        for (first, count) in [(first, head), (first.wrapping_add(head), count - head)] {
            if count > 0 {
                let at = self.places.completion(self.setup.layout.slot(first));
                let from = self.setup.completion_offset + self.setup.layout.entry_offset(first);
                self.round.pending += 1;
                self.pull(purpose::ROUND, at, from, count as usize * ENTRY_BYTES);
            }
        }
    }

    /// The entries are here.
    fn read_entries(&mut self, count: u32) -> Result<(), RingFault> {
        for _ in 0..count {
            let sequence = self.completion.next();
            let at = self.places.completion(self.setup.layout.slot(sequence));
            let bytes = self.mirror.bytes(at, ENTRY_BYTES);
            let Ok(entry) = CompletionEntry::read_from_bytes(bytes) else { break };
            self.completion.take(entry.sequence())?;
            entry.check()?;
            self.accept(&entry, sequence)?;
        }
        self.round.stage = RoundStage::Senses;
        self.finish_round();
        Ok(())
    }

    /// Checks one completion against its operation and ends it, or starts what must come first.
    fn accept(&mut self, entry: &CompletionEntry, sequence: u32) -> Result<(), RingFault> {
        let token = entry.token.get();
        let outcome = entry.outcome();
        if token & CANCEL_TOKEN != 0 {
            return self.accept_cancel(token, outcome);
        }
        let index = token as u32;
        let flight = match self.flights.get_mut(index as usize) {
            Some(flight) if flight.token == token && flight.stage == Stage::Published => flight,
            _ => return Err(RingFault::Token { token }),
        };
        if outcome == Code::TooLate || (outcome == Code::Forwarded && !flight.forwarded) {
            return Err(RingFault::Outcome { token, outcome });
        }
        let transferred_bytes = entry.transferred_bytes.get();
        if transferred_bytes > flight.data_bytes {
            let asked = flight.data_bytes;
            return Err(RingFault::Transferred { token, found: transferred_bytes, asked });
        }
        let sense_bytes = entry.sense_bytes.get();
        if sense_bytes > 0 && outcome != Code::Forwarded {
            return Err(RingFault::Sense { token, outcome });
        }
        self.owed -= 1;
        flight.outcome = Outcome {
            token,
            outcome,
            status: entry.status,
            detail: entry.detail.get(),
            transferred_bytes,
            required_generation: entry.required_generation.get(),
        };
        flight.stage = Stage::Pulling;
        flight.sense_bytes = sense_bytes;
        flight.completion = sequence;
        flight.pulls_sense = sense_bytes > 0;
        flight.pulls_data = flight.staged.is_some() && !flight.data_out && transferred_bytes > 0;
        let (sense, data) = (flight.pulls_sense, flight.pulls_data);
        if sense {
            self.sense_waiting.push_back(index);
        }
        if data {
            self.data_waiting.push_back(index);
        }
        if !sense && !data {
            self.statistics.completed += 1;
            self.end(index);
        }
        Ok(())
    }

    /// A CANCEL's own completion. What became of the other operation, its own completion tells.
    fn accept_cancel(&mut self, token: u64, outcome: Code) -> Result<(), RingFault> {
        let index = (token as u32 & !(CANCEL_TOKEN as u32)) as usize;
        match self.cancels.get_mut(index) {
            Some(record) if record.published && record.token(index) == token => {
                record.busy = false;
                record.published = false;
            }
            _ => return Err(RingFault::Token { token }),
        }
        self.owed -= 1;
        match outcome {
            Code::Done | Code::TooLate | Code::Lost | Code::Refused | Code::Cancelled => Ok(()),
            _ => Err(RingFault::Outcome { token, outcome }),
        }
    }

    /// Pulls sense as long as there is room; when all is here, the completion slots are free.
    fn finish_round(&mut self) {
        while let Some(&index) = self.sense_waiting.front() {
            if self.dma.room() == 0 || self.is_stopped() {
                return;
            }
            self.sense_waiting.pop_front();
            let flight = &self.flights[index as usize];
            let from = self.setup.completion_offset
                + self.setup.layout.side_offset(flight.completion)
                + SIDE_SENSE_AT as u64;
            let length = usize::from(flight.sense_bytes);
            self.round.pending += 1;
            self.pull(purpose::SENSE | u64::from(index), self.places.sense(index), from, length);
        }
        if self.round.pending == 0 {
            self.round.stage = RoundStage::Idle;
            self.consumed = self.completion.release().or(self.consumed);
        }
    }

    fn pull_data(&mut self, index: u32) {
        let flight = &self.flights[index as usize];
        let Some(staged) = &flight.staged else { return };
        let (key, address) = flight.card;
        let offset = self.setup.staging_offset + staged.offset();
        let host = HostAddress { arena: self.setup.data_arena, offset };
        let length = flight.outcome.transferred_bytes;
        self.statistics.payload_copies += 1;
        let operation = DmaOperation::Pull { key, address, host, length };
        self.start(purpose::DATA | u64::from(index), operation);
    }

    /// One of a flight's pulls is done: its sense or its data.
    fn pulled(&mut self, index: u32, sense: bool) {
        let Some(flight) = self.flights.get_mut(index as usize) else { return };
        flight.pulls_sense &= !sense;
        flight.pulls_data &= sense;
        if !flight.pulls_sense && !flight.pulls_data {
            self.statistics.completed += 1;
            self.end(index);
        }
    }

    /// The operation is over; its outcome is in place.
    #[inline]
    fn end(&mut self, index: u32) {
        let flight = &mut self.flights[index as usize];
        flight.stage = Stage::Ended;
        if let Some(staged) = flight.staged.take() {
            self.returned.push(staged);
        }
        if flight.cancelling {
            let token = flight.token;
            self.cancel_waiting.retain(|&waiting| waiting != token);
        }
        self.operations -= 1;
        self.ended.push_back(index);
    }

    fn push(&mut self, id: u64, at: usize, to: u64, length: usize) {
        let (key, address) = (self.mirror.key(), self.mirror.base() + at as u64);
        let host = HostAddress { arena: self.setup.arena, offset: to };
        let length = length as u32;
        self.start(id, DmaOperation::Push { key, address, host, length });
    }

    fn pull(&mut self, id: u64, at: usize, from: u64, length: usize) {
        let (key, address) = (self.mirror.key(), self.mirror.base() + at as u64);
        let host = HostAddress { arena: self.setup.arena, offset: from };
        let length = length as u32;
        self.start(id, DmaOperation::Pull { key, address, host, length });
    }

    fn start(&mut self, id: u64, operation: DmaOperation) {
        match self.dma.submit(DmaRequest { id, operation }) {
            Ok(()) => {
                self.dma_in_flight += 1;
                self.batch.pending += u32::from(id == purpose::BATCH);
            }
            Err(error) => self.dma_failed(error),
        }
    }

    #[cold]
    fn dma_failed(&mut self, error: DmaError) {
        match error {
            DmaError::Gone => self.cut = true,
            DmaError::Full | DmaError::Protection => self.fail(RingFault::Dma(error)),
        }
    }

    /// Takes the DMA engine's completions; whether there were any.
    fn reap(&mut self) -> bool {
        let mut completions = [DmaCompletion { id: 0, result: Ok(()) }; REAP_MAX];
        let mut any = false;
        loop {
            let count = self.dma.poll(&mut completions);
            for completion in completions.iter().take(count) {
                self.dma_in_flight = self.dma_in_flight.saturating_sub(1);
                match completion.result {
                    Ok(()) if !self.is_stopped() => self.on_dma(completion.id),
                    Ok(()) => {}
                    Err(error) => self.dma_failed(error),
                }
            }
            any |= count > 0;
            if count < completions.len() {
                return any;
            }
        }
    }

    fn on_dma(&mut self, id: u64) {
        let index = id as u32;
        let result = match id & !u64::from(u32::MAX) {
            purpose::BATCH => {
                self.batch.pending = self.batch.pending.saturating_sub(1);
                Ok(())
            }
            purpose::PUBLISH => {
                self.batch.stage = BatchStage::Idle;
                self.dma.ring_host(self.setup.ring);
                Ok(())
            }
            purpose::ROUND => {
                self.round.pending = self.round.pending.saturating_sub(1);
                match self.round.stage {
                    RoundStage::Words if self.round.pending == 0 => self.read_words(),
                    RoundStage::Entries { count, pulling: true } if self.round.pending == 0 => {
                        self.read_entries(count)
                    }
                    _ => Ok(()),
                }
            }
            purpose::SENSE => {
                self.round.pending = self.round.pending.saturating_sub(1);
                self.pulled(index, true);
                Ok(())
            }
            purpose::DATA => {
                self.pulled(index, false);
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(fault) = result {
            self.fail(fault);
        }
    }

    /// Closes the ring.
    #[cold]
    fn fail(&mut self, fault: RingFault) {
        self.fault.get_or_insert(fault);
    }

    /// Gives operations that ended; their tokens are free. Returns their number.
    pub fn poll(&mut self, out: &mut [Outcome]) -> usize {
        let count = out.len().min(self.ended.len());
        for (out, index) in out.iter_mut().zip(self.ended.drain(..count)) {
            let flight = &mut self.flights[index as usize];
            flight.stage = Stage::Free;
            *out = flight.outcome;
        }
        count
    }

    /// The sense data that came with a forwarded operation's outcome; empty when there was none. Valid
    /// until the next submission on the token's slot.
    #[must_use]
    pub fn sense(&self, token: u64) -> &[u8] {
        match self.flights.get(token as u32 as usize) {
            Some(flight) if flight.token == token => {
                self.mirror.bytes(self.places.sense(token as u32), usize::from(flight.sense_bytes))
            }
            _ => &[],
        }
    }

    /// Operations submitted whose completion was not consumed.
    #[must_use]
    pub fn outstanding(&self) -> u32 {
        self.operations
    }

    /// Tokens and sequences of every entry (CANCELs too) that was published and that the host has not
    /// answered as far as the card knows, for reconciliation.
    pub fn in_flight(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        let operations = self.flights.iter().filter(|flight| flight.stage == Stage::Published);
        let cancels = self.cancels.iter().enumerate().filter(|(_, record)| record.published);
        operations
            .map(|flight| (flight.token, flight.sequence))
            .chain(cancels.map(|(index, record)| (record.token(index), record.sequence)))
    }

    /// Why the ring is closed.
    #[must_use]
    pub fn fault(&self) -> Option<RingFault> {
        self.fault
    }

    /// The agent is gone; the rings' memory is not. A batch on its way is still published, nothing new
    /// is started, and operations stay in flight.
    pub fn detach(&mut self) {
        self.attached = false;
    }

    /// An agent has reconciled and serves the rings again: what it answered lies in the completion
    /// ring, and what it never started in the submission ring.
    pub fn attach(&mut self) {
        self.attached = true;
    }

    /// Whether operations are taken.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.attached && !self.is_stopped()
    }

    /// Whether the way to the host was cut. Nothing moves until [`Self::restore`].
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    #[inline]
    fn is_stopped(&self) -> bool {
        self.cut || self.fault.is_some()
    }

    /// Waits until the DMA engine has nothing of this ring any more. It completes everything, if only with an error.
    pub fn drain(&mut self) {
        while self.dma_in_flight > 0 {
            if !self.reap() {
                core::hint::spin_loop();
            }
        }
    }

    /// The way to the host, which was cut, is there again, and leads to the same memory: what was on it is repeated. Only
    /// after [`Self::drain`]. Nobody knows what of it arrived, and nobody needs to: the host reads what lies behind its
    /// cursor once, and the bytes are the same.
    pub fn restore(&mut self) {
        debug_assert!(self.dma_in_flight == 0, "drain first");
        self.cut = false;
        match self.batch.stage {
            BatchStage::Idle => {}
            BatchStage::Filling | BatchStage::Waiting => {
                self.batch.stage = BatchStage::Filling;
                self.batch.at = self.batch.first;
                self.batch.flush = true;
            }
            BatchStage::Publishing => self.batch.stage = BatchStage::Waiting,
        }
        self.batch.pending = 0;
        self.consumed = Some(self.completion.released());
        if self.round.stage != RoundStage::Senses {
            self.round.stage = RoundStage::Idle;
        }
        self.round.pending = 0;
        self.sense_waiting.clear();
        self.data_waiting.clear();
        for (index, flight) in (0u32..).zip(&self.flights) {
            if flight.pulls_sense {
                self.sense_waiting.push_back(index);
            }
            if flight.pulls_data {
                self.data_waiting.push_back(index);
            }
        }
    }

    /// The rings are gone, or not to be used again after a fault. Waits until no DMA operation touches
    /// a buffer any more (the engine completes everything, if only with an error), and gives the
    /// tokens of all operations whose outcome was not polled: nobody knows what became of them. The
    /// HostDram cache must not be used after that either: what was staged there is lost.
    pub fn reset(&mut self) -> Vec<u64> {
        self.attached = false;
        self.fail(RingFault::Dma(DmaError::Gone));
        self.drain();
        let mut tokens = Vec::new();
        for flight in self.flights.iter_mut().filter(|flight| flight.stage != Stage::Free) {
            tokens.push(flight.token);
            *flight = Flight::FREE;
        }
        self.ended.clear();
        self.cancel_waiting.clear();
        self.data_waiting.clear();
        self.sense_waiting.clear();
        self.operations = 0;
        self.owed = 0;
        self.queued = 0;
        tokens
    }

    /// The DMA context, for the next ring. Only after [`Self::reset`].
    pub fn into_dma(self) -> P::Dma {
        debug_assert!(self.dma_in_flight == 0, "reset first");
        self.dma
    }

    /// The DMA context, for its event descriptor.
    pub fn dma(&self) -> &P::Dma {
        &self.dma
    }

    /// As [`Dma::arm`]; false also while there is something to do without a hint.
    pub fn arm(&mut self) -> bool {
        let work = !self.ended.is_empty()
            || (self.is_attached() && (self.queued > 0 || !self.cancel_waiting.is_empty()));
        !work && self.dma.arm()
    }

    /// As [`Dma::event_fd`].
    #[must_use]
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.dma.event_fd()
    }

    /// The counters.
    #[must_use]
    pub fn statistics(&self) -> RingStatistics {
        self.statistics
    }

    /// Bytes of host memory that CardDram operations hold.
    #[must_use]
    pub fn staged_bytes(&self) -> u64 {
        self.share.held()
    }

    /// Switches a defect on or off.
    #[cfg(feature = "mutants")]
    pub fn set_mutation(&mut self, mutation: Mutation) {
        self.mutation = mutation;
    }
}

fn check(setup: &RingSetup) -> Result<(), SetupError> {
    let slots = setup.layout.slots();
    if slots < 4 {
        return Err(SetupError::TooFewSlots { slots });
    }
    for offset in [setup.submission_offset, setup.completion_offset] {
        if !offset.is_multiple_of(64) {
            return Err(SetupError::Unaligned { offset });
        }
        if offset.checked_add(setup.layout.bytes()).is_none() {
            return Err(SetupError::OutOfRange);
        }
    }
    // Buffers are at most u32::MAX granules of an arena in.
    if setup.data_offset.max(setup.staging_offset) > u64::MAX / 2 {
        return Err(SetupError::OutOfRange);
    }
    Ok(())
}

/// Copies `bytes` into the mirror at `at`, which the layout guarantees to be inside.
#[inline]
fn put<R: Region>(mirror: &mut R, at: usize, bytes: &[u8]) {
    let to = mirror.bytes_mut(at, bytes.len());
    debug_assert_eq!(to.len(), bytes.len());
    if to.len() == bytes.len() {
        to.copy_from_slice(bytes);
    }
}

/// Copies `N` bytes out of the mirror at `at`, which the layout guarantees to be inside.
#[inline]
fn get<const N: usize, R: Region>(mirror: &R, at: usize) -> [u8; N] {
    let bytes = mirror.bytes(at, N).try_into();
    debug_assert!(bytes.is_ok());
    bytes.unwrap_or([0; N])
}
