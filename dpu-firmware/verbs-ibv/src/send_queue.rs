//! The software half of a queue pair's send queue: which work requests are posted, how far the
//! device is, and whose place is free again. No device is touched here.
//!
//! Three cursors that never pass each other, counted in work requests over all lives of the slot, so
//! that a completion of an earlier life is never taken for one of this:
//!
//! ```text
//! released <= taken <= posted
//! ```
//!
//! `released..taken` is at the device, `taken..posted` waits for the doorbell. Completions come in
//! order (IBTA 10.8.5), so the one of entry `n` also ends the unsignalled entries before it, and all
//! their places become free together.

use lunar_platform::{PostError, SendRequest, WorkRequestId};

#[derive(Debug)]
pub(crate) struct SendQueue {
    entries: Box<[SendRequest]>,
    depth: u32,
    released: u32,
    taken: u32,
    posted: u32,
}

impl SendQueue {
    /// A queue of `depth` places whose first entry is number `first`.
    pub(crate) fn new(depth: u32, first: u32) -> Self {
        let empty = SendRequest {
            id: WorkRequestId(0),
            operation: lunar_platform::SendOperation::Send,
            local: lunar_platform::Sge::default(),
            signaled: false,
        };
        let places = depth.max(1).next_power_of_two() as usize;
        Self {
            entries: vec![empty; places].into_boxed_slice(),
            depth,
            released: first,
            taken: first,
            posted: first,
        }
    }

    #[inline]
    fn place(&self, sequence: u32) -> usize {
        sequence as usize & (self.entries.len() - 1)
    }

    /// Places left.
    #[inline]
    pub(crate) fn room(&self) -> u32 {
        self.depth - self.posted.wrapping_sub(self.released)
    }

    /// Appends the whole chain or nothing of it.
    #[inline]
    pub(crate) fn post(&mut self, chain: &[SendRequest]) -> Result<(), PostError> {
        if chain.len() > self.room() as usize {
            return Err(PostError::Full);
        }
        for request in chain {
            let place = self.place(self.posted);
            self.entries[place] = *request;
            self.posted = self.posted.wrapping_add(1);
        }
        Ok(())
    }

    /// The `ahead`th entry that waits for the doorbell, with its number.
    #[inline]
    pub(crate) fn waiting(&self, ahead: u32) -> Option<(u32, &SendRequest)> {
        let sequence = self.taken.wrapping_add(ahead);
        let waits = ahead < self.posted.wrapping_sub(self.taken);
        waits.then(|| (sequence, &self.entries[self.place(sequence)]))
    }

    /// The device took the first `count` waiting entries.
    #[inline]
    pub(crate) fn take(&mut self, count: u32) {
        debug_assert!(count <= self.posted.wrapping_sub(self.taken));
        self.taken = self.taken.wrapping_add(count);
    }

    /// Entry number `sequence` was reported: gives its id and frees its place and all before it.
    /// `None` for what is not at the device (any more).
    #[inline]
    pub(crate) fn complete(&mut self, sequence: u32) -> Option<WorkRequestId> {
        if sequence.wrapping_sub(self.released) >= self.taken.wrapping_sub(self.released) {
            return None;
        }
        self.released = sequence.wrapping_add(1);
        Some(self.entries[self.place(sequence)].id)
    }

    /// How far the device is behind: the number of the next entry it will be given.
    pub(crate) fn taken(&self) -> u32 {
        self.taken
    }

    /// The number the next life of this slot begins with.
    pub(crate) fn next(&self) -> u32 {
        self.posted.wrapping_add(1)
    }

    /// Everything given to the device was reported or ended unsignalled.
    pub(crate) fn release_taken(&mut self) {
        self.released = self.taken;
    }

    /// The device will report nothing more: what it had is flushed like what it never got.
    pub(crate) fn abandon(&mut self) {
        self.taken = self.released;
    }

    /// Nothing is posted that was not reported.
    pub(crate) fn is_empty(&self) -> bool {
        self.released == self.posted
    }

    /// Flushes the next entry that the device never got, once it has none left.
    pub(crate) fn flush(&mut self) -> Option<WorkRequestId> {
        if self.released != self.taken || self.taken == self.posted {
            return None;
        }
        let id = self.entries[self.place(self.taken)].id;
        self.taken = self.taken.wrapping_add(1);
        self.released = self.taken;
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lunar_platform::{SendOperation, Sge};

    fn request(id: u64) -> SendRequest {
        SendRequest {
            id: WorkRequestId(id),
            operation: SendOperation::Send,
            local: Sge::default(),
            signaled: true,
        }
    }

    fn chain(ids: std::ops::Range<u64>) -> Vec<SendRequest> {
        ids.map(request).collect()
    }

    #[test]
    fn a_chain_is_taken_whole_or_not_at_all() {
        let mut queue = SendQueue::new(5, 0);
        assert_eq!(queue.post(&chain(0..3)), Ok(()));
        assert_eq!(queue.post(&chain(3..6)), Err(PostError::Full));
        assert_eq!(queue.room(), 2);
        assert!(queue.waiting(2).is_some_and(|(sequence, request)| {
            sequence == 2 && request.id == WorkRequestId(2)
        }));
        assert!(queue.waiting(3).is_none());
        assert_eq!(queue.post(&chain(3..5)), Ok(()));
        assert_eq!(queue.room(), 0);
        assert_eq!(queue.post(&[]), Ok(()));
    }

    #[test]
    fn unsignalled_entries_hold_their_places_until_a_later_one_is_reported() {
        let mut queue = SendQueue::new(4, u32::MAX - 1); // the numbers wrap
        queue.post(&chain(0..4)).unwrap();
        queue.take(4);
        assert_eq!(queue.room(), 0);
        assert_eq!(queue.complete(0), Some(WorkRequestId(2))); // MAX-1, MAX, 0
        assert_eq!(queue.room(), 3);
        assert_eq!(queue.complete(1), Some(WorkRequestId(3)));
        assert!(queue.is_empty());
    }

    #[test]
    fn completions_of_nothing_and_of_earlier_lives_are_known() {
        let mut queue = SendQueue::new(4, 10);
        assert_eq!(queue.complete(10), None);
        queue.post(&chain(0..2)).unwrap();
        assert_eq!(queue.complete(10), None, "it waits for the doorbell");
        queue.take(1);
        assert_eq!(queue.complete(9), None);
        assert_eq!(queue.complete(11), None);
        assert_eq!(queue.complete(10), Some(WorkRequestId(0)));
        assert_eq!(queue.complete(10), None, "reported twice");
        assert_eq!(SendQueue::new(4, queue.next()).complete(queue.next() - 1), None);
    }

    #[test]
    fn what_the_device_never_got_is_flushed_after_what_it_got() {
        let mut queue = SendQueue::new(8, 0);
        queue.post(&chain(0..2)).unwrap();
        queue.take(2);
        queue.post(&chain(2..4)).unwrap();
        assert_eq!(queue.flush(), None);
        assert_eq!(queue.complete(1), Some(WorkRequestId(1)));
        assert_eq!(queue.flush(), Some(WorkRequestId(2)));
        assert_eq!(queue.flush(), Some(WorkRequestId(3)));
        assert_eq!(queue.flush(), None);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_dead_device_has_everything_flushed() {
        let mut queue = SendQueue::new(8, 0);
        queue.post(&chain(0..3)).unwrap();
        queue.take(2);
        queue.abandon();
        assert_eq!(queue.complete(1), None, "the device comes back to life");
        let flushed: Vec<_> = std::iter::from_fn(|| queue.flush()).map(|id| id.0).collect();
        assert_eq!(flushed, [0, 1, 2]);
        assert!(queue.is_empty());
    }

    #[test]
    fn the_marker_frees_what_ended_unsignalled() {
        let mut queue = SendQueue::new(4, 0);
        queue.post(&chain(0..3)).unwrap();
        queue.take(2);
        queue.release_taken();
        assert_eq!(queue.flush(), Some(WorkRequestId(2)));
        assert!(queue.is_empty());
        assert_eq!(queue.room(), 4);
    }
}
