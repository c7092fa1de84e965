//! Every interleaving and every allowed reordering of one producer and one consumer.
//!
//! Loom tries each value that each load may give, so the memory here keeps only the bytes that the test
//! looks at: the words, and for each slot the entry's sequence and token and the side record's first word.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use zerocopy::little_endian::U16;

use super::super::*;
use crate::ring::{Operation, SubmissionEntry};

const SLOTS: u32 = 2;
const WORDS: usize = 2 + 3 * SLOTS as usize;

struct Memory {
    layout: RingLayout,
    words: [AtomicU32; WORDS],
    /// How the cursor words are stored; anything but release must be caught.
    store: Ordering,
    /// How they are loaded; anything but acquire must be caught.
    load: Ordering,
}

impl Memory {
    fn new(store: Ordering, load: Ordering) -> Self {
        let layout = RingLayout::new(SLOTS).unwrap();
        Self { layout, words: std::array::from_fn(|_| AtomicU32::new(0)), store, load }
    }

    /// The (byte in the range, word) pairs that are kept for the range at `offset`.
    fn kept(&self, offset: u64) -> Vec<(usize, &AtomicU32)> {
        let slot = |of: &dyn Fn(u32) -> u64| (0..SLOTS).find(|slot| of(*slot) == offset);
        if let Some(slot) = slot(&|slot| self.layout.entry_offset(slot)) {
            let first = 2 + 3 * slot as usize;
            return vec![(0, &self.words[first]), (8, &self.words[first + 1])];
        }
        let slot = slot(&|slot| self.layout.side_offset(slot)).unwrap();
        vec![(0, &self.words[2 + 3 * slot as usize + 2])]
    }

    fn cursor_word(&self, offset: u64) -> &AtomicU32 {
        &self.words[usize::from(offset == self.layout.consumed_offset())]
    }
}

impl RingMemory for Memory {
    fn load_acquire(&self, offset: u64) -> u32 {
        self.cursor_word(offset).load(self.load)
    }
    fn store_release(&self, offset: u64, value: u32) {
        self.cursor_word(offset).store(value, self.store);
    }
    fn read(&self, offset: u64, out: &mut [u8]) {
        for (at, word) in self.kept(offset) {
            out[at..at + 4].copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
    }
    fn write(&self, offset: u64, bytes: &[u8]) {
        for (at, word) in self.kept(offset) {
            let value = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            word.store(value, Ordering::Relaxed);
        }
    }
}

/// Sends `count` entries through the ring; panics when one is lost, doubled, torn or out of order.
fn carry(count: u32, store: Ordering, load: Ordering) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let memory = Arc::new(Memory::new(store, load));
        let theirs = Arc::clone(&memory);
        let producing = thread::spawn(move || {
            let mut producer = Producer::<SubmissionEntry, _>::new(theirs.layout, &*theirs);
            for number in 0..count {
                let entry = SubmissionEntry::new(Operation::Read, u64::from(number) + 100);
                let mut side = SideRecord::empty();
                side.cdb_bytes = U16::new(number as u16 + 200);
                loop {
                    match producer.push(entry, Some(&side)) {
                        Ok(sequence) => break assert_eq!(sequence, number),
                        Err(PushError::Full) => thread::yield_now(),
                        Err(PushError::Fault(fault)) => panic!("{fault}"),
                    }
                }
                producer.publish();
            }
        });
        let mut consumer = Consumer::<SubmissionEntry, _>::new(memory.layout, &*memory);
        for number in 0..count {
            let entry = loop {
                match consumer.pop() {
                    Ok(Some(entry)) => break entry,
                    Ok(None) => thread::yield_now(),
                    Err(fault) => panic!("{fault}"),
                }
            };
            assert_eq!(entry.token.get(), u64::from(number) + 100);
            let mut side = SideRecord::empty();
            consumer.read_side(entry.sequence.get(), &mut side);
            assert_eq!(u32::from(side.cdb_bytes.get()), number + 200);
            consumer.release();
        }
        producing.join().unwrap();
        assert!(matches!(consumer.pop(), Ok(None)), "an entry was read twice");
    });
}

#[test]
fn loom_what_is_published_is_read_once_and_in_order() {
    carry(3, Ordering::Release, Ordering::Acquire);
}

#[test]
#[should_panic]
fn loom_a_publish_without_release_is_caught() {
    carry(2, Ordering::Relaxed, Ordering::Acquire);
}

#[test]
#[should_panic]
fn loom_a_look_without_acquire_is_caught() {
    carry(2, Ordering::Release, Ordering::Relaxed);
}
