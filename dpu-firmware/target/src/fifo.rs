//! First-in first-out lists of tasks that wait for one resource.
//!
//! A task waits in at most one list at a time, so one link per slot is enough and the lists need no
//! memory of their own. Removal from the middle walks the list: only aborts do that.

/// The end of a list.
pub(crate) const NONE: u32 = u32::MAX;

/// One link per slot of the poll group.
pub(crate) struct Links(Box<[u32]>);

impl Links {
    pub(crate) fn new(slots: usize) -> Self {
        Self(vec![NONE; slots].into_boxed_slice())
    }

    fn next(&self, index: u32) -> u32 {
        self.0.get(index as usize).copied().unwrap_or(NONE)
    }

    fn set(&mut self, index: u32, next: u32) {
        if let Some(link) = self.0.get_mut(index as usize) {
            *link = next;
        }
    }
}

/// A list of slot indexes; the links live in [`Links`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fifo {
    head: u32,
    tail: u32,
    length: u32,
}

impl Default for Fifo {
    fn default() -> Self {
        Self { head: NONE, tail: NONE, length: 0 }
    }
}

impl Fifo {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head == NONE
    }

    #[inline]
    pub(crate) fn head(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    /// Members.
    pub(crate) fn len(&self) -> u32 {
        self.length
    }

    pub(crate) fn push(&mut self, links: &mut Links, index: u32) {
        links.set(index, NONE);
        if self.tail == NONE {
            self.head = index;
        } else {
            links.set(self.tail, index);
        }
        self.tail = index;
        self.length += 1;
    }

    pub(crate) fn pop(&mut self, links: &mut Links) -> Option<u32> {
        let index = self.head()?;
        self.head = links.next(index);
        if self.head == NONE {
            self.tail = NONE;
        }
        self.length -= 1;
        links.set(index, NONE);
        Some(index)
    }

    /// Takes `index` out wherever it is; `false` when it is not in this list.
    pub(crate) fn remove(&mut self, links: &mut Links, index: u32) -> bool {
        let mut previous = NONE;
        let mut current = self.head;
        while current != NONE {
            let next = links.next(current);
            if current == index {
                if previous == NONE {
                    self.head = next;
                } else {
                    links.set(previous, next);
                }
                if self.tail == index {
                    self.tail = previous;
                }
                self.length -= 1;
                links.set(index, NONE);
                return true;
            }
            previous = current;
            current = next;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_survives_removal_anywhere() {
        let mut links = Links::new(4);
        let mut fifo = Fifo::default();
        for index in 0..4 {
            fifo.push(&mut links, index);
        }
        assert!(fifo.remove(&mut links, 3), "tail");
        assert!(fifo.remove(&mut links, 1), "middle");
        assert!(!fifo.remove(&mut links, 1), "twice");
        fifo.push(&mut links, 1);
        assert!(fifo.remove(&mut links, 0), "head");
        assert_eq!(fifo.pop(&mut links), Some(2));
        assert_eq!(fifo.pop(&mut links), Some(1));
        assert_eq!(fifo.pop(&mut links), None);
        assert!(fifo.is_empty());
    }
}
