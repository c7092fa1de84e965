//! The card-local null backend (SCST's vdisk_nullio without a host): every operation is carried out by
//! doing nothing. READ gives whatever the buffer held, WRITE forgets.

use std::collections::VecDeque;

use crate::NoRoom;

/// Operations that wait for the next [`NullBackend::poll`], oldest first.
#[derive(Debug)]
pub struct NullBackend {
    ended: VecDeque<u64>,
    capacity: usize,
}

impl NullBackend {
    /// A backend that holds up to `capacity` operations.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        let capacity = capacity as usize;
        Self { ended: VecDeque::with_capacity(capacity), capacity }
    }

    /// Takes an operation; its data stays with the backend until the outcome.
    ///
    /// # Errors
    /// [`NoRoom`] beyond the capacity.
    #[inline]
    pub fn submit(&mut self, token: u64) -> Result<(), NoRoom> {
        if self.ended.len() == self.capacity {
            return Err(NoRoom);
        }
        self.ended.push_back(token);
        Ok(())
    }

    /// The next operation that is done, in order of submission.
    #[inline]
    pub fn poll(&mut self) -> Option<u64> {
        self.ended.pop_front()
    }

    /// Operations submitted and not polled.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.ended.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_end_in_order_within_the_capacity() {
        let mut null = NullBackend::new(2);
        assert_eq!(null.poll(), None);
        null.submit(5).unwrap();
        null.submit(3).unwrap();
        assert_eq!(null.submit(4), Err(NoRoom));
        assert_eq!(null.outstanding(), 2);
        assert_eq!(null.poll(), Some(5));
        null.submit(4).unwrap();
        assert_eq!((null.poll(), null.poll(), null.poll()), (Some(3), Some(4), None));
    }
}
