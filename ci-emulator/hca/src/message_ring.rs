//! The two message rings of a connection: SENDs of any length up to half a ring, one writer and one
//! reader each. Cursors run freely and count bytes; a message begins at a multiple of a cache line
//! and takes at least one. Its header, which says that it is there and how long it is, lies apart
//! (`shared`). The reader trusts nothing it reads.

use lunar_pcie::Resolved;

use crate::shared::{LINE, Lie, QueuePairMemory};

/// Ring bytes that a message of `length` bytes takes.
fn footprint(length: u32) -> u32 {
    length.max(1).next_multiple_of(LINE as u32)
}

/// The longest message that a ring of `ring_bytes` carries.
pub(crate) fn message_bytes_max(ring_bytes: u32) -> u32 {
    ring_bytes / 2
}

/// Splits `length` bytes at `cursor` of a ring where it wraps: offset and length of the first part;
/// the second part begins at the ring's first byte.
fn split(cursor: u32, length: u32, ring_bytes: u32) -> (u64, u32) {
    let at = cursor & (ring_bytes - 1);
    (u64::from(at), length.min(ring_bytes - at))
}

/// The sending side.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OutRing {
    /// Where the next message goes.
    tail: u32,
    /// Up to where the peer has taken messages, as last seen.
    consumed: u32,
    sequence: u64,
}

impl OutRing {
    #[cfg(test)]
    pub(crate) fn starting_at(cursor: u32) -> Self {
        Self { tail: cursor, consumed: cursor, sequence: 0 }
    }

    /// Looks how far the peer is; gives whether that moved.
    pub(crate) fn observe(&mut self, memory: &QueuePairMemory) -> Result<bool, Lie> {
        let consumed = memory.peer_consumed();
        if consumed == self.consumed {
            return Ok(false);
        }
        let unread = self.tail.wrapping_sub(self.consumed);
        if consumed.wrapping_sub(self.consumed) > unread {
            return Err(Lie);
        }
        self.consumed = consumed;
        Ok(true)
    }

    /// Whether the peer's word differs from what was last observed.
    pub(crate) fn has_news(&self, memory: &QueuePairMemory) -> bool {
        memory.peer_consumed() != self.consumed
    }

    /// Whether the message that ends at `end` was taken.
    pub(crate) fn is_acknowledged(&self, end: u32) -> bool {
        // `end` and `consumed` are at most one ring apart, and a ring is at most 16 MiB.
        self.consumed.wrapping_sub(end) < 1 << 31
    }

    /// Whether a message of `length` bytes fits now.
    pub(crate) fn has_room(&self, memory: &QueuePairMemory, length: u32) -> bool {
        let used = self.tail.wrapping_sub(self.consumed);
        footprint(length) <= memory.ring_bytes.saturating_sub(used)
    }

    /// Writes a message and makes it visible; gives the cursor of its end. `from` is `None` for an
    /// empty message. `None` when the local memory vanished: nothing was sent.
    pub(crate) fn send(
        &mut self,
        memory: &QueuePairMemory,
        from: Option<&Resolved<'_>>,
        length: u32,
    ) -> Option<u32> {
        if let Some(from) = from {
            let (at, first) = split(self.tail, length, memory.ring_bytes);
            let copied = from.copy_out(0, &memory.segment, memory.out_ring + at, first as usize)
                && (first == length
                    || from.copy_out(
                        u64::from(first),
                        &memory.segment,
                        memory.out_ring,
                        (length - first) as usize,
                    ));
            if !copied {
                return None;
            }
        }
        memory.publish(self.sequence, length);
        self.sequence += 1;
        self.tail = self.tail.wrapping_add(footprint(length));
        Some(self.tail)
    }
}

/// The receiving side.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InRing {
    head: u32,
    sequence: u64,
}

impl InRing {
    #[cfg(test)]
    pub(crate) fn starting_at(cursor: u32) -> Self {
        Self { head: cursor, sequence: 0 }
    }

    /// Whether a message waits, or what the peer says makes no sense.
    pub(crate) fn has_news(&self, memory: &QueuePairMemory) -> bool {
        memory.peer_published(self.sequence) != Ok(None)
    }

    /// Length of the next message, if one waits.
    pub(crate) fn peek(&self, memory: &QueuePairMemory) -> Result<Option<u32>, Lie> {
        match memory.peer_published(self.sequence)? {
            Some(length) if length > message_bytes_max(memory.ring_bytes) => Err(Lie),
            length => Ok(length),
        }
    }

    /// Copies the next message, whose length [`Self::peek`] gave, to the start of `to`. False when the
    /// local memory vanished.
    pub(crate) fn copy(&self, memory: &QueuePairMemory, to: &Resolved<'_>, length: u32) -> bool {
        let (at, first) = split(self.head, length, memory.ring_bytes);
        to.copy_in(0, &memory.segment, memory.in_ring + at, first as usize)
            && (first == length
                || to.copy_in(
                    u64::from(first),
                    &memory.segment,
                    memory.in_ring,
                    (length - first) as usize,
                ))
    }

    /// Steps over the next message; [`Self::acknowledge`] tells the peer.
    pub(crate) fn advance(&mut self, length: u32) {
        self.head = self.head.wrapping_add(footprint(length));
        self.sequence += 1;
    }

    /// Tells the peer how far this side is.
    pub(crate) fn acknowledge(&self, memory: &QueuePairMemory) {
        memory.acknowledge(self.head);
    }
}
