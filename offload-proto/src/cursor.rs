//! How the two sides of a ring move: free-running `u32` sequences, what each side may believe of the
//! other's word, and [`Producer`] and [`Consumer`] for a side that has the ring in its own memory.
//!
//! [`ProducerCursor`] and [`ConsumerCursor`] are arithmetic alone, for the card, which sees the ring
//! only through DMA. No waiting, no hints and no DMA may live here.
//!
//! `published` is the sequence of the next entry the producer will publish, `consumed` that of the
//! next entry whose slot the consumer still needs. Both start at 0 and wrap. Always
//! `published - consumed <= slots` (wrapping). Each side owns one word and keeps the last valid value
//! of the other's: the other's cache line is read only when the cached value is not enough.

use core::marker::PhantomData;

use zerocopy::IntoBytes;

use crate::ring::{Entry, RingLayout, SideRecord};

/// Why a ring cannot be used any more. The other side broke the contract (or memory was damaged): the
/// ring is closed, the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// The other side's word went backwards or ran too far ahead.
    #[error("{word} is {found}, but must lie in {from}..={to} (wrapping)")]
    Cursor {
        /// Which word: `published` or `consumed`.
        word: &'static str,
        /// What was read.
        found: u32,
        /// The least value it can have: the last one read.
        from: u32,
        /// The most it can have.
        to: u32,
    },
    /// A published entry does not have the sequence it was published under.
    #[error("entry has sequence {found} where {expected} was published")]
    Sequence {
        /// The cursor.
        expected: u32,
        /// The entry's sequence.
        found: u32,
    },
}

/// Memory that holds a ring, shared with the other side. Offsets are those of [`RingLayout`]; the
/// implementer guarantees that the whole of [`RingLayout::bytes`] is there.
pub trait RingMemory {
    /// Loads the word at `offset` (a multiple of 64) with acquire ordering.
    fn load_acquire(&self, offset: u64) -> u32;
    /// Stores the word at `offset` (a multiple of 64) with release ordering.
    fn store_release(&self, offset: u64, value: u32);
    /// Copies bytes from `offset` to `out`. The other side may write at the same time when it breaks
    /// the contract, so the bytes are copied out before they are looked at.
    fn read(&self, offset: u64, out: &mut [u8]);
    /// Copies `bytes` to `offset`.
    fn write(&self, offset: u64, bytes: &[u8]);
}

impl<M: RingMemory + ?Sized> RingMemory for &M {
    fn load_acquire(&self, offset: u64) -> u32 {
        (**self).load_acquire(offset)
    }
    fn store_release(&self, offset: u64, value: u32) {
        (**self).store_release(offset, value);
    }
    fn read(&self, offset: u64, out: &mut [u8]) {
        (**self).read(offset, out);
    }
    fn write(&self, offset: u64, bytes: &[u8]) {
        (**self).write(offset, bytes);
    }
}

/// Checks that `found` lies in `from..=to` in wrapping order.
fn advanced(word: &'static str, found: u32, from: u32, to: u32) -> Result<u32, RingFault> {
    if found.wrapping_sub(from) > to.wrapping_sub(from) {
        return Err(RingFault::Cursor { word, found, from, to });
    }
    Ok(found)
}

/// The producer's arithmetic.
#[derive(Clone, Copy, Debug)]
pub struct ProducerCursor {
    slots: u32,
    /// Next sequence to claim; `published..next` is claimed and not published.
    next: u32,
    published: u32,
    /// The consumer's word as last accepted.
    consumed: u32,
}

impl ProducerCursor {
    /// A producer whose next entry, and the consumer's too, has sequence `start` (0 in a new ring).
    #[must_use]
    pub fn new(layout: RingLayout, start: u32) -> Self {
        Self { slots: layout.slots(), next: start, published: start, consumed: start }
    }

    /// Claims the next slot; `None` when all slots are in use as far as the cached word tells: read
    /// the consumer's word, [`Self::accept_consumed`] it, and try again.
    pub fn claim(&mut self) -> Option<u32> {
        if self.room() == 0 {
            return None;
        }
        let sequence = self.next;
        self.next = self.next.wrapping_add(1);
        Some(sequence)
    }

    /// Slots free by the cached word.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.slots.saturating_sub(self.next.wrapping_sub(self.consumed))
    }

    /// Believes the consumer's word, if that is possible.
    ///
    /// # Errors
    /// [`RingFault::Cursor`] when it went backwards or beyond what was published.
    pub fn accept_consumed(&mut self, word: u32) -> Result<(), RingFault> {
        self.consumed = advanced("consumed", word, self.consumed, self.published)?;
        Ok(())
    }

    /// Everything claimed is written: gives the new `published` word to store, `None` when nothing
    /// was claimed since the last time.
    pub fn publish(&mut self) -> Option<u32> {
        self.publish_to(self.next)
    }

    /// As [`Self::publish`] for the entries before `sequence`, which was claimed or comes next.
    pub fn publish_to(&mut self, sequence: u32) -> Option<u32> {
        let claimed = self.next.wrapping_sub(self.published);
        let step = sequence.wrapping_sub(self.published);
        if step == 0 || step > claimed {
            return None;
        }
        self.published = sequence;
        Some(sequence)
    }

    /// The next sequence to be claimed.
    #[must_use]
    pub fn next(&self) -> u32 {
        self.next
    }

    /// The word as last published.
    #[must_use]
    pub fn published(&self) -> u32 {
        self.published
    }

    /// The consumer's word as last accepted.
    #[must_use]
    pub fn consumed(&self) -> u32 {
        self.consumed
    }
}

/// The consumer's arithmetic.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerCursor {
    slots: u32,
    /// Next sequence to take; `released..next` is taken and its slots not given back.
    next: u32,
    released: u32,
    /// The producer's word as last accepted.
    published: u32,
}

impl ConsumerCursor {
    /// A consumer that waits for the entry with sequence `start` (0 in a new ring).
    #[must_use]
    pub fn new(layout: RingLayout, start: u32) -> Self {
        Self { slots: layout.slots(), next: start, released: start, published: start }
    }

    /// Believes the producer's word, if that is possible; gives the number of entries to take.
    ///
    /// # Errors
    /// [`RingFault::Cursor`] when it went backwards or there are more entries than slots.
    pub fn accept_published(&mut self, word: u32) -> Result<u32, RingFault> {
        let most = self.released.wrapping_add(self.slots);
        self.published = advanced("published", word, self.published, most)?;
        Ok(self.available())
    }

    /// Entries to take by the cached word.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.published.wrapping_sub(self.next)
    }

    /// Takes the next entry, whose sequence field is `found`. `None` when none is available by the
    /// cached word.
    ///
    /// # Errors
    /// [`RingFault::Sequence`] when it is not the entry that was published; nothing was taken.
    pub fn take(&mut self, found: u32) -> Result<Option<u32>, RingFault> {
        if self.available() == 0 {
            return Ok(None);
        }
        let expected = self.next;
        if found != expected {
            return Err(RingFault::Sequence { expected, found });
        }
        self.next = self.next.wrapping_add(1);
        Ok(Some(expected))
    }

    /// Everything taken is copied out: gives the new `consumed` word to store, `None` when nothing
    /// was taken since the last time.
    pub fn release(&mut self) -> Option<u32> {
        if self.released == self.next {
            return None;
        }
        self.released = self.next;
        Some(self.released)
    }

    /// The sequence of the next entry to take.
    #[must_use]
    pub fn next(&self) -> u32 {
        self.next
    }

    /// The word as last released.
    #[must_use]
    pub fn released(&self) -> u32 {
        self.released
    }

    /// The producer's word as last accepted.
    #[must_use]
    pub fn published(&self) -> u32 {
        self.published
    }
}

/// Why [`Producer::push`] did not take an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// All slots are in use.
    #[error("all slots of the ring are in use")]
    Full,
    /// The consumer broke the contract.
    #[error(transparent)]
    Fault(#[from] RingFault),
}

/// The side that fills a ring of `E` in memory `M`.
#[derive(Debug)]
pub struct Producer<E, M> {
    layout: RingLayout,
    cursor: ProducerCursor,
    memory: M,
    entries: PhantomData<fn(E)>,
}

impl<E: Entry, M: RingMemory> Producer<E, M> {
    /// The producer of a new ring (all words zero).
    pub fn new(layout: RingLayout, memory: M) -> Self {
        Self::resume(layout, memory, 0)
    }

    /// The producer of a ring whose words both are `start`.
    pub fn resume(layout: RingLayout, memory: M, start: u32) -> Self {
        Self { layout, cursor: ProducerCursor::new(layout, start), memory, entries: PhantomData }
    }

    /// Writes `entry` (its sequence is set here) and its side record to the next slot. The consumer
    /// does not see it before [`Self::publish`]. Gives the sequence.
    ///
    /// # Errors
    /// [`PushError`]; nothing was written.
    pub fn push(&mut self, mut entry: E, side: Option<&SideRecord>) -> Result<u32, PushError> {
        let sequence = match self.cursor.claim() {
            Some(sequence) => sequence,
            None => {
                self.refresh()?;
                self.cursor.claim().ok_or(PushError::Full)?
            }
        };
        entry.set_sequence(sequence);
        if let Some(side) = side {
            self.memory.write(self.layout.side_offset(sequence), side.as_bytes());
        }
        self.memory.write(self.layout.entry_offset(sequence), entry.as_bytes());
        Ok(sequence)
    }

    /// Shows the consumer everything pushed. Returns whether there was something new: then hint.
    pub fn publish(&mut self) -> bool {
        match self.cursor.publish() {
            Some(word) => {
                self.memory.store_release(self.layout.published_offset(), word);
                true
            }
            None => false,
        }
    }

    /// Slots free now, by the consumer's word as it is now.
    ///
    /// # Errors
    /// [`RingFault::Cursor`].
    pub fn room(&mut self) -> Result<u32, RingFault> {
        self.refresh()?;
        Ok(self.cursor.room())
    }

    /// The cursor.
    pub fn cursor(&self) -> &ProducerCursor {
        &self.cursor
    }

    fn refresh(&mut self) -> Result<(), RingFault> {
        self.cursor.accept_consumed(self.memory.load_acquire(self.layout.consumed_offset()))
    }
}

/// The side that empties a ring of `E` in memory `M`.
#[derive(Debug)]
pub struct Consumer<E, M> {
    layout: RingLayout,
    cursor: ConsumerCursor,
    memory: M,
    entries: PhantomData<fn() -> E>,
}

impl<E: Entry, M: RingMemory> Consumer<E, M> {
    /// The consumer of a new ring (all words zero).
    pub fn new(layout: RingLayout, memory: M) -> Self {
        Self::resume(layout, memory, 0)
    }

    /// The consumer of a ring that goes on with sequence `start`, for example an agent that starts
    /// again on the keeper's ring and finds `start` in the ring's `consumed` word.
    pub fn resume(layout: RingLayout, memory: M, start: u32) -> Self {
        Self { layout, cursor: ConsumerCursor::new(layout, start), memory, entries: PhantomData }
    }

    /// Copies the next entry out; `None` when nothing more is published. Its slot stays in use until
    /// [`Self::release`], so its side record can be read after.
    ///
    /// # Errors
    /// [`RingFault`]; the ring must be closed.
    pub fn pop(&mut self) -> Result<Option<E>, RingFault> {
        if self.cursor.available() == 0 {
            let word = self.memory.load_acquire(self.layout.published_offset());
            if self.cursor.accept_published(word)? == 0 {
                return Ok(None);
            }
        }
        let mut entry = E::new_zeroed();
        self.memory.read(self.layout.entry_offset(self.cursor.next()), entry.as_mut_bytes());
        Ok(self.cursor.take(entry.sequence())?.map(|_| entry))
    }

    /// Copies the side record of `sequence` out. Only valid between its [`Self::pop`] and the next
    /// [`Self::release`].
    pub fn read_side(&self, sequence: u32, out: &mut SideRecord) {
        self.memory.read(self.layout.side_offset(sequence), out.as_mut_bytes());
    }

    /// Gives the slots of everything popped back to the producer. Returns whether there were any.
    pub fn release(&mut self) -> bool {
        match self.cursor.release() {
            Some(word) => {
                self.memory.store_release(self.layout.consumed_offset(), word);
                true
            }
            None => false,
        }
    }

    /// The cursor.
    pub fn cursor(&self) -> &ConsumerCursor {
        &self.cursor
    }
}
