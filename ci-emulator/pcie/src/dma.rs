//! The DMA engine between card DRAM and host memory: the provider of [`lunar_platform::Dma`].
//!
//! What the adversarial mode may do, and no more (the rules are in `platform/src/dma.rs`):
//! - an operation's effect happens at any time between submit and completion, a cache line at a
//!   time, in any order of lines; the source is read then, not at submit;
//! - pushes that are in flight together may become visible in any order;
//! - a pull reads only after everything submitted before it has been carried out, and nothing
//!   submitted behind it is carried out before it has read;
//! - a completed push may still be on its way, but becomes visible before the effect of any
//!   operation that is carried out later in the same context;
//! - a flush covers what the HCA wrote before its submit, perhaps also what it wrote until its
//!   completion;
//! - completions come in order, after any number of polls that stays below a bound.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lunar_platform::{
    Dma, DmaCompletion, DmaError, DmaOperation, DmaRequest, HostAddress, LocalKey,
};

use crate::adversary::Randomness;
use crate::hint::HintLine;
use crate::host::{HostSlot, HostWindow};
use crate::segment::Segment;
use crate::space::AddressSpace;

/// When operations are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaMode {
    /// At submit; they complete at the next poll.
    Prompt,
    /// Whenever the rules allow it, decided by the seed.
    Adversarial {
        /// Seed of this context's choices.
        seed: u64,
    },
}

/// How a context behaves.
#[derive(Clone, Copy, Debug)]
pub struct DmaConfig {
    /// When operations are carried out.
    pub mode: DmaMode,
    /// How many operations may be submitted and not reaped.
    pub capacity: usize,
    /// Of 1000 hints, in either direction, how many get lost (0 to 1000).
    pub hints_lost_per_mille: u16,
}

impl Default for DmaConfig {
    fn default() -> Self {
        Self { mode: DmaMode::Prompt, capacity: 256, hints_lost_per_mille: 0 }
    }
}

/// Lines of host memory, the unit in which effects become visible.
const LINE_BYTES: u64 = 64;
/// No operation stays in flight for more polls than this.
const POLLS_MAX: u32 = 24;

/// One context, owned by one poll group.
pub struct EmulatedDma {
    space: AddressSpace,
    slot: HostSlot,
    to_host: HintLine,
    to_card: HintLine,
    capacity: usize,
    hints_lost_per_mille: u16,
    hint_choices: Randomness,
    /// The way was found cut, and no poll found it whole since.
    is_cut: bool,
    /// Carried out and not reaped, oldest first (prompt mode).
    completed: VecDeque<DmaCompletion>,
    adversary: Option<Box<Adversary>>,
}

impl EmulatedDma {
    /// A context on the device behind `space`, in `slot`. The host waits on `to_host`, the card on
    /// `to_card`.
    #[must_use]
    pub fn new(
        space: AddressSpace,
        slot: HostSlot,
        to_host: HintLine,
        to_card: HintLine,
        config: DmaConfig,
    ) -> Self {
        let seed = match config.mode {
            DmaMode::Prompt => None,
            DmaMode::Adversarial { seed } => Some(seed),
        };
        Self {
            space,
            slot,
            to_host,
            to_card,
            capacity: config.capacity,
            hints_lost_per_mille: config.hints_lost_per_mille,
            hint_choices: Randomness::new(!seed.unwrap_or(0)),
            is_cut: false,
            completed: VecDeque::with_capacity(config.capacity),
            adversary: seed.map(|seed| Box::new(Adversary::new(seed))),
        }
    }

    fn in_flight(&self) -> usize {
        let pending = self.adversary.as_ref().map_or(0, |adversary| adversary.pending.len());
        self.completed.len() + pending
    }

    fn hint_is_lost(&mut self) -> bool {
        let lost = usize::from(self.hints_lost_per_mille);
        lost > 0 && self.hint_choices.chance(lost, 1000)
    }
}

/// Copies `length` bytes between card and host. An aligned word goes as one atomic access, as on the
/// bus: the release store follows all earlier copies, the acquire load precedes all later ones.
#[inline]
fn transfer(from: &Segment, from_offset: u64, to: &Segment, to_offset: u64, length: usize) -> bool {
    if length == 4
        && let (Some(source), Some(word)) = (from.atomic_u32(from_offset), to.atomic_u32(to_offset))
    {
        word.store(source.load(Ordering::Acquire), Ordering::Release);
        return true;
    }
    from.copy_to(from_offset, to, to_offset, length)
}

/// Carries `operation` out at once.
#[inline]
fn execute(space: &mut AddressSpace, operation: &DmaOperation) -> Result<(), DmaError> {
    let done = match *operation {
        DmaOperation::Push { key, address, host, length } => space
            .transfer(key, address, length, host.arena)
            .is_some_and(|(card, offset, window)| {
                transfer(card, offset, window.segment(), host.offset, length as usize)
            }),
        DmaOperation::Pull { key, address, host, length } => space
            .transfer(key, address, length, host.arena)
            .is_some_and(|(card, offset, window)| {
                transfer(window.segment(), host.offset, card, offset, length as usize)
            }),
        DmaOperation::Flush { arena } => match space.window(arena) {
            Some(window) => {
                window.place_all();
                true
            }
            None => false,
        },
    };
    if done { Ok(()) } else { Err(DmaError::Protection) }
}

impl Dma for EmulatedDma {
    #[inline]
    fn room(&self) -> usize {
        // It takes polls to make the way anew; until it is known to be cut there seems to be room.
        if self.is_cut && !self.slot.is_cut() { 0 } else { self.capacity - self.in_flight() }
    }

    #[inline]
    fn submit(&mut self, request: DmaRequest) -> Result<(), DmaError> {
        if self.slot.is_gone() {
            self.is_cut |= self.slot.is_cut();
            return Err(DmaError::Gone);
        }
        if self.room() == 0 {
            return Err(DmaError::Full);
        }
        match &mut self.adversary {
            None => {
                execute(&mut self.space, &request.operation)?;
                self.completed.push_back(DmaCompletion { id: request.id, result: Ok(()) });
                Ok(())
            }
            Some(adversary) => adversary.submit(&mut self.space, request),
        }
    }

    #[inline]
    fn poll(&mut self, completions: &mut [DmaCompletion]) -> usize {
        self.is_cut = self.slot.is_cut();
        if let Some(adversary) = &mut self.adversary {
            if self.is_cut {
                adversary.land_posted(usize::MAX);
            }
            return adversary.poll(&mut self.space, self.slot.is_gone(), completions);
        }
        let count = completions.len().min(self.completed.len());
        for (out, completion) in completions.iter_mut().zip(self.completed.drain(..count)) {
            *out = completion;
        }
        count
    }

    fn ring_host(&mut self, _ring: u16) {
        // Each context has a line of its own, so the host need not be told which ring.
        if !self.hint_is_lost() {
            self.to_host.signal();
        }
    }

    fn arm(&mut self) -> bool {
        let hinted = self.to_card.drain() && !self.hint_is_lost();
        !hinted && self.in_flight() == 0
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.to_card.fd())
    }
}

/// A piece of an operation that was not carried out yet.
#[derive(Clone, Copy)]
struct Line {
    /// From the operation's first byte.
    at: u32,
    bytes: u32,
}

struct Pending {
    request: DmaRequest,
    lines: Vec<Line>,
    result: Result<(), DmaError>,
    polls: u32,
}

impl Pending {
    fn is_push(&self) -> bool {
        matches!(self.request.operation, DmaOperation::Push { .. })
    }
}

/// A line of a completed push that the host does not see yet.
struct Posted {
    window: Arc<HostWindow>,
    offset: u64,
    bytes: Vec<u8>,
}

impl Posted {
    fn land(&self) {
        if !self.window.is_live() {
            return;
        }
        let segment = self.window.segment();
        match (<[u8; 4]>::try_from(self.bytes.as_slice()), segment.atomic_u32(self.offset)) {
            (Ok(word), Some(place)) => place.store(u32::from_ne_bytes(word), Ordering::Release),
            _ => {
                segment.write(self.offset, &self.bytes);
            }
        }
    }
}

struct Adversary {
    choices: Randomness,
    pending: VecDeque<Pending>,
    /// In order of completion.
    posted: VecDeque<Posted>,
    posted_polls: u32,
}

impl Adversary {
    fn new(seed: u64) -> Self {
        Self {
            choices: Randomness::new(seed),
            pending: VecDeque::new(),
            posted: VecDeque::new(),
            posted_polls: 0,
        }
    }

    fn submit(&mut self, space: &mut AddressSpace, request: DmaRequest) -> Result<(), DmaError> {
        let lines = match request.operation {
            DmaOperation::Push { key, address, host, length }
            | DmaOperation::Pull { key, address, host, length } => {
                let ends = space.transfer(key, address, length, host.arena);
                let host_bytes = ends.map_or(0, |(_, _, window)| window.segment().len() as u64);
                if host.offset.saturating_add(u64::from(length)) > host_bytes {
                    return Err(DmaError::Protection);
                }
                cut(host, length)
            }
            DmaOperation::Flush { arena } => {
                let window = space.window(arena).ok_or(DmaError::Protection)?;
                // A flush that reads back at once does not cover what comes after its submit.
                if self.choices.chance(1, 2) {
                    window.place_all();
                    Vec::new()
                } else {
                    vec![Line { at: 0, bytes: 0 }]
                }
            }
        };
        self.pending.push_back(Pending { request, lines, result: Ok(()), polls: 0 });
        Ok(())
    }

    /// The operation that may be carried out now and that chance picks: one of the pushes ahead of
    /// the first unfinished pull or flush, or that one when it is alone.
    fn choose(&mut self) -> Option<usize> {
        let unfinished = |(index, one): (usize, &Pending)| {
            (!one.lines.is_empty()).then_some((index, one.is_push()))
        };
        let mut candidates = 0;
        for (index, push) in self.pending.iter().enumerate().filter_map(unfinished) {
            match (push, candidates) {
                (false, 0) => return Some(index),
                (false, _) => break,
                (true, _) => candidates += 1,
            }
        }
        let chosen = self.choices.below(candidates);
        let mut open = self.pending.iter().enumerate().filter_map(unfinished);
        open.nth(chosen).map(|(index, _)| index)
    }

    /// Carries out one line of the pending operation `index`, visibly.
    fn advance(&mut self, space: &mut AddressSpace, index: usize) {
        self.land_posted(usize::MAX);
        let Some(pending) = self.pending.get_mut(index) else { return };
        let chosen = self.choices.below(pending.lines.len());
        let line = pending.lines.swap_remove(chosen);
        let result = execute(space, &part(&pending.request.operation, line));
        pending.result = pending.result.and(result);
    }

    /// What completed becomes visible, in order, at most `count` lines of it.
    fn land_posted(&mut self, count: usize) {
        let count = count.min(self.posted.len());
        for posted in self.posted.drain(..count) {
            posted.land();
        }
    }

    /// Carries out what is left of the oldest operation. Lines of a push may stay on their way.
    fn finish_oldest(&mut self, space: &mut AddressSpace) -> Option<DmaCompletion> {
        let delayed = self.choices.chance(1, 2);
        while let Some(oldest) = self.pending.front_mut()
            && let Some(&line) = oldest.lines.last()
        {
            let whole = part(&oldest.request.operation, line);
            match whole {
                DmaOperation::Push { key, address, host, length } if delayed => {
                    oldest.lines.pop();
                    match capture(space, key, address, host, length) {
                        Some(posted) => self.posted.push_back(posted),
                        None => oldest.result = Err(DmaError::Protection),
                    }
                }
                _ => self.advance(space, 0),
            }
        }
        let oldest = self.pending.pop_front()?;
        Some(DmaCompletion { id: oldest.request.id, result: oldest.result })
    }

    fn poll(
        &mut self,
        space: &mut AddressSpace,
        gone: bool,
        completions: &mut [DmaCompletion],
    ) -> usize {
        if gone {
            self.posted.clear();
            let mut count = 0;
            for out in completions {
                let Some(oldest) = self.pending.pop_front() else { break };
                *out = DmaCompletion { id: oldest.request.id, result: Err(DmaError::Gone) };
                count += 1;
            }
            return count;
        }
        for window in space.windows() {
            window.drift();
        }
        for pending in &mut self.pending {
            pending.polls += 1;
        }
        // Since there was nothing on its way: a little that lands does not let the rest wait longer.
        self.posted_polls = if self.posted.is_empty() { 0 } else { self.posted_polls + 1 };
        if self.posted_polls > POLLS_MAX {
            self.land_posted(usize::MAX);
        } else if self.choices.chance(1, 4) {
            let count = self.choices.below(self.posted.len() + 1);
            self.land_posted(count);
        }
        let steps = if self.choices.chance(1, 2) { 0 } else { self.choices.below(8) };
        for _ in 0..steps {
            let Some(index) = self.choose() else { break };
            self.advance(space, index);
        }
        let mut count = 0;
        for out in completions {
            let overdue = self.pending.front().is_some_and(|oldest| oldest.polls > POLLS_MAX);
            if !overdue && !self.choices.chance(1, 2) {
                break;
            }
            let Some(completion) = self.finish_oldest(space) else { break };
            *out = completion;
            count += 1;
        }
        count
    }
}

/// Cuts a transfer at the lines of host memory.
fn cut(host: HostAddress, length: u32) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut at = 0;
    while at < length {
        let to_boundary = LINE_BYTES - (host.offset + u64::from(at)) % LINE_BYTES;
        let bytes = (length - at).min(to_boundary as u32);
        lines.push(Line { at, bytes });
        at += bytes;
    }
    lines
}

/// The operation that carries out `line` of `operation`.
fn part(operation: &DmaOperation, line: Line) -> DmaOperation {
    let mut operation = *operation;
    match &mut operation {
        DmaOperation::Push { address, host, length, .. }
        | DmaOperation::Pull { address, host, length, .. } => {
            *address += u64::from(line.at);
            host.offset += u64::from(line.at);
            *length = line.bytes;
        }
        DmaOperation::Flush { .. } => {}
    }
    operation
}

/// Reads a line of a push from card memory without showing it to the host.
fn capture(
    space: &mut AddressSpace,
    key: LocalKey,
    address: u64,
    host: HostAddress,
    length: u32,
) -> Option<Posted> {
    let (card, offset, window) = space.transfer(key, address, length, host.arena)?;
    let mut bytes = vec![0; length as usize];
    card.read(offset, &mut bytes).then(|| Posted {
        window: Arc::clone(window),
        offset: host.offset,
        bytes,
    })
}
