//! A ring whose memory the other side has filled with anything, and goes on changing: the consumer
//! gives entries in order or a fault, never more of them than were published, and every accessor of
//! what it gives survives.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use lunar_offload_proto::cursor::{Consumer, RingMemory};
use lunar_offload_proto::ring::{
    BlockRequest, CompletionEntry, Entry, Operation, RingLayout, SideRecord, SubmissionEntry,
    UNMAP_RANGES_MAX,
};

/// Bytes that wrap around: whatever the offset, there is memory.
struct Hostile(RefCell<Vec<u8>>);

impl RingMemory for Hostile {
    fn load_acquire(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn store_release(&self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        let bytes = self.0.borrow();
        let start = offset as usize % bytes.len();
        out.iter_mut().zip(bytes.iter().cycle().skip(start)).for_each(|(to, from)| *to = *from);
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let mut memory = self.0.borrow_mut();
        let length = memory.len();
        for (index, byte) in bytes.iter().enumerate() {
            memory[(offset as usize + index) % length] = *byte;
        }
    }
}

const SLOTS: u32 = 4;

/// Consumes until the ring is empty or faulty, with the producer rewriting a word now and then.
fn consume<E: Entry>(memory: &Hostile, rewrites: &[(u16, u32)], check: impl Fn(&E)) {
    let layout = RingLayout::new(SLOTS).expect("a power of two");
    let mut consumer = Consumer::<E, _>::new(layout, memory);
    for (offset, word) in rewrites {
        let mut popped = 0;
        while let Ok(Some(entry)) = consumer.pop() {
            check(&entry);
            let mut side = SideRecord::empty();
            consumer.read_side(entry.sequence(), &mut side);
            let _ = (side.cdb(), side.sense(), side.segments());
            assert!(side.ranges().map_or(0, <[_]>::len) <= UNMAP_RANGES_MAX);
            popped += 1;
            assert!(popped <= SLOTS, "more entries than the ring has slots");
        }
        consumer.release();
        memory.store_release(u64::from(*offset), *word);
    }
}

fuzz_target!(|input: (Vec<(u16, u32)>, &[u8])| {
    let (rewrites, bytes) = input;
    if bytes.is_empty() {
        return;
    }
    let memory = || Hostile(RefCell::new(bytes.to_vec()));
    consume::<SubmissionEntry>(&memory(), &rewrites, |entry| {
        let _ = (entry.operation(), entry.cancelled_token());
        // What passes the check is a request, or CANCEL, and the card would have written it so.
        if entry.check().is_ok() && entry.operation() != Operation::Cancel {
            let request = BlockRequest::decode(entry).expect("a known operation");
            let mut again = *entry;
            request.encode(&mut again);
            assert_eq!(BlockRequest::decode(&again), Some(request));
        }
    });
    consume::<CompletionEntry>(&memory(), &rewrites, |entry| {
        let _ = (entry.check(), entry.outcome());
    });
});
