//! Both sides in one thread against a model, and each side against any word the other may show it.

use std::cell::RefCell;
use std::collections::VecDeque;

use proptest::prelude::*;
use zerocopy::FromZeros;

use super::super::*;
use crate::ring::{CompletionEntry, Operation, SubmissionEntry};

struct Memory(RefCell<Vec<u8>>);

impl Memory {
    fn new(layout: RingLayout) -> Self {
        Self(RefCell::new(vec![0; usize::try_from(layout.bytes()).unwrap()]))
    }
}

impl RingMemory for Memory {
    fn load_acquire(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.read(offset, &mut word);
        u32::from_le_bytes(word)
    }
    fn store_release(&self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }
    fn read(&self, offset: u64, out: &mut [u8]) {
        let from = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.0.borrow()[from..from + out.len()]);
    }
    fn write(&self, offset: u64, bytes: &[u8]) {
        let from = usize::try_from(offset).unwrap();
        self.0.borrow_mut()[from..from + bytes.len()].copy_from_slice(bytes);
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Push,
    Publish,
    Pop,
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Push),
        2 => Just(Step::Publish),
        4 => Just(Step::Pop),
        2 => Just(Step::Release)
    ]
}

proptest! {
    #[test]
    fn a_ring_is_a_bounded_queue_at_any_sequence(
        exponent in 1..=3_u32,
        start in prop_oneof![Just(0), Just(u32::MAX - 5), any::<u32>()],
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let layout = RingLayout::new(1 << exponent).unwrap();
        let memory = Memory::new(layout);
        memory.store_release(layout.published_offset(), start);
        memory.store_release(layout.consumed_offset(), start);
        let mut producer = Producer::<SubmissionEntry, _>::resume(layout, &memory, start);
        let mut consumer = Consumer::<SubmissionEntry, _>::resume(layout, &memory, start);
        let mut pushed: VecDeque<u64> = VecDeque::new();
        let mut published: VecDeque<u64> = VecDeque::new();
        let mut taken = 0;
        let mut token = 0_u64;
        for step in steps {
            match step {
                Step::Push => {
                    token += 1;
                    let mut side = SideRecord::empty();
                    side.set_cdb(&token.to_le_bytes()).unwrap();
                    let full = pushed.len() + published.len() + taken == layout.slots() as usize;
                    let result = producer.push(SubmissionEntry::new(Operation::Read, token), Some(&side));
                    prop_assert_eq!(result.is_err(), full);
                    match result {
                        Ok(_) => pushed.push_back(token),
                        Err(error) => prop_assert_eq!(error, PushError::Full),
                    }
                }
                Step::Publish => {
                    prop_assert_eq!(producer.publish(), !pushed.is_empty());
                    published.append(&mut pushed);
                }
                Step::Pop => match (consumer.pop(), published.pop_front()) {
                    (Ok(Some(entry)), Some(expected)) => {
                        prop_assert_eq!(entry.token.get(), expected);
                        let mut side = SideRecord::empty();
                        consumer.read_side(entry.sequence.get(), &mut side);
                        prop_assert_eq!(side.cdb(), Ok(&expected.to_le_bytes()[..]));
                        taken += 1;
                    }
                    (Ok(None), None) => {}
                    other => prop_assert!(false, "{:?}", other),
                },
                Step::Release => {
                    prop_assert_eq!(consumer.release(), taken > 0);
                    taken = 0;
                    let room = layout.slots() as usize - pushed.len() - published.len();
                    prop_assert_eq!(producer.room().unwrap() as usize, room);
                }
            }
        }
    }

    #[test]
    fn a_consumer_survives_any_published_word(start in any::<u32>(), ahead in 0..8_u32, word in any::<u32>()) {
        let layout = RingLayout::new(8).unwrap();
        for word in [word, start.wrapping_add(word % 20), start.wrapping_sub(word % 20)] {
            let mut cursor = ConsumerCursor::new(layout, start);
            prop_assert_eq!(cursor.accept_published(start.wrapping_add(ahead)), Ok(ahead));
            let possible = (ahead..=8).contains(&word.wrapping_sub(start));
            let before = cursor.available();
            match cursor.accept_published(word) {
                Ok(available) => {
                    prop_assert!(possible);
                    prop_assert_eq!(available, word.wrapping_sub(start));
                }
                Err(RingFault::Cursor { word: "published", found, from, to }) => {
                    prop_assert!(!possible);
                    prop_assert_eq!((found, from, to), (word, start.wrapping_add(ahead), start.wrapping_add(8)));
                    prop_assert_eq!(cursor.available(), before);
                }
                Err(other) => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn a_producer_survives_any_consumed_word(start in any::<u32>(), sent in 0..=8_u32, word in any::<u32>()) {
        let layout = RingLayout::new(8).unwrap();
        for word in [word, start.wrapping_add(word % 20), start.wrapping_sub(word % 20)] {
            let mut cursor = ProducerCursor::new(layout, start);
            for _ in 0..sent {
                prop_assert!(cursor.claim().is_some());
            }
            cursor.publish();
            let possible = word.wrapping_sub(start) <= sent;
            prop_assert_eq!(cursor.accept_consumed(word).is_ok(), possible);
            let consumed = if possible { word.wrapping_sub(start) } else { 0 };
            prop_assert_eq!(cursor.room(), 8 - sent + consumed);
        }
    }

    #[test]
    fn any_bytes_in_a_ring_are_entries_or_a_fault(bytes in prop::collection::vec(any::<u8>(), 128 + 2 * 64), words in any::<[u8; 2]>()) {
        let layout = RingLayout::new(2).unwrap();
        let memory = Memory::new(layout);
        memory.write(0, &bytes);
        memory.store_release(layout.published_offset(), u32::from(words[0] % 4));
        if words[1] % 2 == 0 {
            memory.store_release(layout.entry_offset(0), 0);
        }
        let mut consumer = Consumer::<CompletionEntry, _>::new(layout, &memory);
        let mut taken = 0;
        let end = loop {
            match consumer.pop() {
                Ok(Some(entry)) => {
                    prop_assert_eq!(entry.sequence.get(), taken);
                    taken += 1;
                }
                end => break end,
            }
        };
        prop_assert!(taken <= 2);
        if u32::from(words[0] % 4) == 3 {
            let is_cursor_fault = matches!(end, Err(RingFault::Cursor { .. }));
            prop_assert!(is_cursor_fault);
        }
    }
}

#[test]
fn an_entry_of_another_sequence_is_a_fault() {
    let layout = RingLayout::new(2).unwrap();
    let memory = Memory::new(layout);
    let mut entry = SubmissionEntry::new_zeroed();
    entry.sequence.set(2);
    memory.write(layout.entry_offset(0), entry.as_bytes());
    memory.store_release(layout.published_offset(), 1);
    let mut consumer = Consumer::<SubmissionEntry, _>::new(layout, &memory);
    let fault = consumer.pop().unwrap_err();
    assert_eq!(fault, RingFault::Sequence { expected: 0, found: 2 });
    assert_eq!(fault.to_string(), "entry has sequence 2 where 0 was published");
    assert_eq!(consumer.cursor().next(), 0);
}

#[test]
fn part_of_what_was_claimed_can_be_published() {
    let mut cursor = ProducerCursor::new(RingLayout::new(4).unwrap(), u32::MAX);
    for _ in 0..3 {
        cursor.claim();
    }
    assert_eq!(cursor.publish_to(u32::MAX), None);
    assert_eq!(cursor.publish_to(1), Some(1));
    assert_eq!(cursor.publish_to(3), None, "never claimed");
    assert_eq!(cursor.publish_to(0), None, "backwards");
    assert_eq!(cursor.published(), 1);
    assert_eq!(cursor.publish(), Some(2));
}
