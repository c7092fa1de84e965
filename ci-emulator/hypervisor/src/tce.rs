//! A TCE table (PAPR, translation control entries): which page of a partition's memory lies behind each
//! page of its I/O window, and what the partner may do with it. No memory is touched here.

use crate::pair::PAGE_BYTES;

/// Bit of a TCE: the partner may read the page (the client's data-out).
pub const SERVER_MAY_READ: u64 = 0x1;
/// Bit of a TCE: the partner may write the page (the client's data-in).
pub const SERVER_MAY_WRITE: u64 = 0x2;

/// The table of one window, which begins at I/O address zero.
#[derive(Clone, Debug)]
pub struct TceTable {
    entries: Vec<u64>,
}

impl TceTable {
    /// An empty table for a window of `window_bytes`.
    #[must_use]
    pub fn new(window_bytes: u64) -> Self {
        let pages = usize::try_from(window_bytes / PAGE_BYTES).unwrap_or(usize::MAX);
        Self { entries: vec![0; pages] }
    }

    /// Sets the entry of the page at `address`; false when that is no page of the window.
    #[must_use]
    pub fn put(&mut self, address: u64, tce: u64) -> bool {
        if !address.is_multiple_of(PAGE_BYTES) {
            return false;
        }
        let index = usize::try_from(address / PAGE_BYTES).unwrap_or(usize::MAX);
        match self.entries.get_mut(index) {
            Some(entry) => {
                *entry = tce;
                true
            }
            None => false,
        }
    }

    /// The ranges of partition memory behind `bytes` at `address`, as (real address, bytes), no longer than a
    /// page each. `None` when a page is outside the window, or lacks a bit of `access`; no bit at all means
    /// that it is not mapped.
    #[must_use]
    pub fn translate(&self, address: u64, bytes: u64, access: u64) -> Option<Vec<(u64, u64)>> {
        let end = address.checked_add(bytes)?;
        let mut ranges = Vec::new();
        let mut at = address;
        while at < end {
            let entry = *self.entries.get(usize::try_from(at / PAGE_BYTES).ok()?)?;
            let mapped = entry & (SERVER_MAY_READ | SERVER_MAY_WRITE) != 0;
            if !mapped || entry & access != access {
                return None;
            }
            let offset = at % PAGE_BYTES;
            let length = (PAGE_BYTES - offset).min(end - at);
            ranges.push(((entry & !(PAGE_BYTES - 1)) + offset, length));
            at += length;
        }
        Some(ranges)
    }
}
