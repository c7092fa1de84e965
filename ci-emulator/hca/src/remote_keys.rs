//! Remote keys: which of a group's memory its peers may touch. The owner keeps the truth in its own
//! memory and publishes it in the group segment; a poster looks it up there for each RDMA operation,
//! so an invalidation counts from the next operation on, on every connection.
//!
//! An operation that a peer on another core began before the invalidation may still finish its copy
//! afterwards (hardware would hold the invalidation up instead); with one thread there is no such
//! moment.

use std::io;
use std::sync::atomic::Ordering;

use lunar_pcie::Segment;

use crate::shared::{OwnGroup, PeerGroup};

/// What a peer may do with a registered range. RDMA READ and WRITE are separate rights (IBTA 10.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteAccess {
    /// The peer may read it.
    pub read: bool,
    /// The peer may write it.
    pub write: bool,
}

impl RemoteAccess {
    /// Both rights.
    pub const READ_WRITE: Self = Self { read: true, write: true };
    /// RDMA READ only: data-out.
    pub const READ: Self = Self { read: true, write: false };
    /// RDMA WRITE only: data-in.
    pub const WRITE: Self = Self { read: false, write: true };

    fn encode(self) -> u32 {
        u32::from(self.read) | u32::from(self.write) << 1
    }

    fn covers(granted: u32, wanted: Self) -> bool {
        granted & wanted.encode() == wanted.encode()
    }
}

/// A registered range as its peers name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteKey {
    /// The key, never 0.
    pub rkey: u32,
    /// Address of the range's first byte.
    pub base: u64,
}

const RKEY: u64 = 0;
const ACCESS: u64 = 4;
const BASE: u64 = 8;
const LENGTH: u64 = 16;
const SEGMENT: u64 = 24;
const OFFSET: u64 = 32;

/// Segments one group can have registered ranges in, over its life.
pub(crate) const SEGMENTS_MAX: usize = 1024;

/// The owner's side of the table.
#[derive(Debug)]
pub(crate) struct RemoteKeys {
    free: Vec<u32>,
    /// The key each entry has or had last; its upper half is the generation.
    last: Vec<u32>,
    /// Every segment that was ever registered; its index is what entries name it by.
    segments: Vec<Segment>,
}

impl RemoteKeys {
    pub(crate) fn new(count: u32) -> Self {
        Self {
            free: (0..count).rev().collect(),
            last: vec![0; count as usize],
            segments: Vec::new(),
        }
    }

    /// The segments a peer has to map, in index order.
    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The index of `segment`, and whether it is new (so that peers must be told).
    pub(crate) fn segment_index(&mut self, segment: &Segment) -> io::Result<(u32, bool)> {
        if let Some(index) = self.segments.iter().position(|known| known.same_as(segment)) {
            return Ok((index as u32, false));
        }
        if self.segments.len() >= SEGMENTS_MAX {
            return Err(io::Error::other(format!(
                "a group can expose {SEGMENTS_MAX} segments; register larger ones"
            )));
        }
        self.segments.push(segment.clone());
        Ok((self.segments.len() as u32 - 1, true))
    }

    /// Publishes `length` bytes from `offset` of segment `segment`.
    pub(crate) fn publish(
        &mut self,
        group: &OwnGroup,
        segment: u32,
        offset: u64,
        length: u64,
        access: RemoteAccess,
    ) -> io::Result<RemoteKey> {
        let inside = self.segments.get(segment as usize).is_some_and(|segment| {
            let bytes = segment.len() as u64;
            length <= bytes && offset <= bytes - length
        });
        if !inside {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{length} bytes from {offset} are not inside the segment"),
            ));
        }
        let Some(index) = self.free.pop() else {
            return Err(io::Error::other(format!(
                "all {} remote keys are in use; raise remote_keys_max",
                self.last.len()
            )));
        };
        let generation = (self.last[index as usize] >> 16).wrapping_add(1) & 0xffff;
        let rkey = index | generation.max(1) << 16;
        self.last[index as usize] = rkey;
        // Ranges do not touch: an overrun of one never lands in the next one's addresses.
        let base = (u64::from(index) + 1) << 40;
        let entry = group.layout.remote_key_offset(index);
        let fields = [(BASE, base), (LENGTH, length), (OFFSET, offset)];
        for (field, value) in fields {
            if let Some(word) = group.segment.atomic_u64(entry + field) {
                word.store(value, Ordering::Relaxed);
            }
        }
        for (field, value) in [(ACCESS, access.encode()), (SEGMENT, segment)] {
            if let Some(word) = group.segment.atomic_u32(entry + field) {
                word.store(value, Ordering::Relaxed);
            }
        }
        if let Some(word) = group.segment.atomic_u32(entry + RKEY) {
            word.store(rkey, Ordering::Release);
        }
        Ok(RemoteKey { rkey, base })
    }

    /// Takes `rkey` back; whether it was valid.
    pub(crate) fn invalidate(&mut self, group: &OwnGroup, rkey: u32) -> bool {
        let index = rkey & 0xffff;
        let known = rkey != 0
            && self.last.get(index as usize) == Some(&rkey)
            && !self.free.contains(&index);
        if known {
            if let Some(word) =
                group.segment.atomic_u32(group.layout.remote_key_offset(index) + RKEY)
            {
                word.store(0, Ordering::SeqCst);
            }
            self.free.push(index);
        }
        known
    }
}

/// Where a peer's remote address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RemoteRange {
    /// Index among the segments the peer passed.
    pub(crate) segment: u32,
    /// Offset in that segment.
    pub(crate) offset: u64,
}

/// Looks a remote range up in the peer's table: key, bounds and rights. The segment's own bounds are
/// checked again by the copy.
pub(crate) fn look_up(
    peer: &PeerGroup,
    rkey: u32,
    address: u64,
    length: u32,
    wanted: RemoteAccess,
) -> Option<RemoteRange> {
    let index = rkey & 0xffff;
    if rkey == 0 || index >= peer.layout.remote_keys {
        return None;
    }
    let entry = peer.layout.remote_key_offset(index);
    let key_word = peer.segment.atomic_u32(entry + RKEY)?;
    let load_u64 = |field| Some(peer.segment.atomic_u64(entry + field)?.load(Ordering::Acquire));
    let load_u32 = |field| Some(peer.segment.atomic_u32(entry + field)?.load(Ordering::Acquire));
    if key_word.load(Ordering::Acquire) != rkey {
        return None;
    }
    let (base, extent, first) = (load_u64(BASE)?, load_u64(LENGTH)?, load_u64(OFFSET)?);
    let (access, segment) = (load_u32(ACCESS)?, load_u32(SEGMENT)?);
    // The entry may have been taken back and given anew while it was read: the generation tells.
    if key_word.load(Ordering::Acquire) != rkey {
        return None;
    }
    let at = address.checked_sub(base)?;
    let inside = u64::from(length) <= extent && at <= extent - u64::from(length);
    (inside && RemoteAccess::covers(access, wanted))
        .then_some(())
        .and_then(|()| first.checked_add(at))
        .map(|offset| RemoteRange { segment, offset })
}
