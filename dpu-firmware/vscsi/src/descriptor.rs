//! A command's data in the client's I/O window, and the copies that move it.
//!
//! The descriptors are SRP's, and [`lunar_srp::descriptor`] parses them and refuses lists that lie. What
//! is VSCSI's: an address is an I/O address in the window that the client's TCE table maps, there are no
//! keys (clients send zero, and whatever they send is ignored), and a copy is bounded.

use core::fmt;

use lunar_srp::descriptor::{DataBuffer, Descriptor, Descriptors};

/// Most bytes that one H_COPY_RDMA moves. PAPR leaves the limit to the platform; every one takes this.
pub const COPY_BYTES_MAX: u32 = 128 * 1024;

/// The client's I/O window: the "remote" half of the adapter's `ibm,my-dma-window`. That its pages are
/// mapped, and for what, only the hypervisor knows, at each copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first I/O address.
    pub address: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Window {
    /// A window of all addresses, where the platform says nothing.
    pub const WHOLE: Self = Self { address: 0, bytes: u64::MAX };

    /// Whether the range lies in the window.
    #[inline]
    #[must_use]
    pub fn holds(&self, address: u64, bytes: u64) -> bool {
        let offset = address.checked_sub(self.address);
        let end = offset.and_then(|offset| offset.checked_add(bytes));
        end.is_some_and(|end| end <= self.bytes)
    }

    /// Checks every range of `buffer`, or the place of its list where that still has to be fetched. `list`
    /// is what [`DataBuffer::descriptors`] wants: the information unit, or the fetched list.
    ///
    /// # Errors
    /// The first range that is not in the window: no copy can be made of it.
    pub fn check(&self, buffer: &DataBuffer, list: &[u8]) -> Result<(), OutsideWindow> {
        let check = |range: Descriptor| {
            if self.holds(range.address, range.length.into()) {
                Ok(())
            } else {
                Err(OutsideWindow { address: range.address, bytes: range.length, window: *self })
            }
        };
        match *buffer {
            DataBuffer::External { table, .. } => check(table),
            _ => buffer.descriptors(list).try_for_each(check),
        }
    }
}

/// A descriptor names memory that is not in the client's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutsideWindow {
    /// The range's I/O address.
    pub address: u64,
    /// Its length in bytes.
    pub bytes: u32,
    /// The client's window.
    pub window: Window,
}

impl fmt::Display for OutsideWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes at I/O address {:#x} are not in the client's window of {:#x} bytes at {:#x}",
            self.bytes, self.address, self.window.bytes, self.window.address
        )
    }
}

impl core::error::Error for OutsideWindow {}

/// One call of H_COPY_RDMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Where it begins in the command's data, in bytes.
    pub offset: u32,
    /// The I/O address in the client's window.
    pub address: u64,
    /// 1 to [`COPY_BYTES_MAX`].
    pub bytes: u32,
}

/// The copies that move `bytes` of a command's data from `offset` on; fewer bytes when `buffer` holds
/// fewer. `list` as in [`Window::check`].
#[inline]
#[must_use]
pub fn copies<'a>(buffer: &DataBuffer, list: &'a [u8], offset: u32, bytes: u32) -> Copies<'a> {
    Copies {
        ranges: buffer.descriptors(list),
        rest: Descriptor::default(),
        skip_bytes: offset,
        offset,
        remaining_bytes: bytes,
    }
}

/// Iterator of [`copies`].
#[derive(Clone, Debug)]
pub struct Copies<'a> {
    ranges: Descriptors<'a>,
    /// What is left of the range that is being copied.
    rest: Descriptor,
    /// Bytes of data before the first copy that were not passed over yet.
    skip_bytes: u32,
    offset: u32,
    remaining_bytes: u32,
}

impl Iterator for Copies<'_> {
    type Item = Copy;

    #[inline]
    fn next(&mut self) -> Option<Copy> {
        if self.remaining_bytes == 0 {
            return None;
        }
        while self.rest.length == 0 {
            self.rest = self.ranges.next()?;
            let skipped = self.skip_bytes.min(self.rest.length);
            self.skip_bytes = self.skip_bytes.saturating_sub(skipped);
            self.pass(skipped);
        }
        let bytes = self.rest.length.min(self.remaining_bytes).min(COPY_BYTES_MAX);
        let copy = Copy { offset: self.offset, address: self.rest.address, bytes };
        self.pass(bytes);
        self.offset = self.offset.saturating_add(bytes);
        self.remaining_bytes = self.remaining_bytes.saturating_sub(bytes);
        Some(copy)
    }
}

impl Copies<'_> {
    /// Leaves `bytes` of the current range behind, which has as many.
    #[inline]
    fn pass(&mut self, bytes: u32) {
        self.rest.address = self.rest.address.saturating_add(bytes.into());
        self.rest.length = self.rest.length.saturating_sub(bytes);
    }
}
