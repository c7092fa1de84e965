//! A shared mapping, and the only place of this crate that touches raw memory.
//!
//! Unsafe is needed because what hardware does to memory (write to it behind the owner's back, from
//! another thread or another process) has no safe expression. Every method checks its range; none
//! hands out a pointer. Plain copies that race with the other side give unspecified bytes, as they
//! do on the real bus; whoever needs order uses [`Segment::atomic_u32`] or the ring protocol.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// A range of memory that may be shared between threads and, when it has a descriptor, between
/// processes. Cloning shares the mapping.
#[derive(Clone)]
pub struct Segment(Arc<Mapping>);

struct Mapping {
    first: NonNull<u8>,
    bytes: usize,
    descriptor: Option<OwnedFd>,
}

// SAFETY: the mapping is plain memory that lives until drop, and no method gives out access that
// depends on the thread. Racing accesses are the nature of the thing: see the methods.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `first` and `bytes` are what mmap gave, and the last user is gone. A failure leaks
        // address space, which is harmless.
        let _ = unsafe { rustix::mm::munmap(self.first.as_ptr().cast::<c_void>(), self.bytes) };
    }
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment")
            .field("bytes", &self.0.bytes)
            .field("shared", &self.0.descriptor.is_some())
            .finish()
    }
}

fn refuse(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

impl Segment {
    /// `length` zeroed bytes of this process alone.
    ///
    /// # Errors
    /// A length of zero, or what mmap(2) says.
    pub fn anonymous(length: usize) -> io::Result<Self> {
        if length == 0 {
            return Err(refuse("a segment needs at least one byte"));
        }
        // SAFETY: a new mapping at an address the kernel chooses touches nothing that exists.
        let first = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        Self::adopt(first, length, None)
    }

    /// `length` zeroed bytes behind a new descriptor called `name`, sealed against shrinking.
    ///
    /// # Errors
    /// A length of zero, or what memfd_create(2) and mmap(2) say.
    pub fn memfd(name: &str, length: usize) -> io::Result<Self> {
        let descriptor =
            rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&descriptor, length as u64)?;
        Self::from_fd(descriptor, length)
    }

    /// Maps the first `length` bytes of a memory file that somebody else made.
    ///
    /// # Errors
    /// A length of zero or beyond the file's end, a file that cannot be sealed against shrinking
    /// (its maker could kill this process by truncating it; memfd_create(2) with
    /// `MFD_ALLOW_SEALING` makes one that can), or what mmap(2) says.
    pub fn from_fd(descriptor: OwnedFd, length: usize) -> io::Result<Self> {
        if length == 0 {
            return Err(refuse("a segment needs at least one byte"));
        }
        let sealed = rustix::fs::fcntl_get_seals(&descriptor)
            .is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        if !sealed && rustix::fs::fcntl_add_seals(&descriptor, SealFlags::SHRINK).is_err() {
            return Err(refuse("the memory file cannot be sealed against shrinking"));
        }
        let file_bytes = rustix::fs::fstat(&descriptor)?.st_size;
        if u64::try_from(file_bytes).unwrap_or(0) < length as u64 {
            return Err(refuse("the memory file is shorter than the segment"));
        }
        // SAFETY: a new mapping at an address the kernel chooses touches nothing that exists. The
        // file cannot shrink below `length`, so accesses do not fault.
        let first = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &descriptor,
                0,
            )?
        };
        Self::adopt(first, length, Some(descriptor))
    }

    fn adopt(first: *mut c_void, bytes: usize, descriptor: Option<OwnedFd>) -> io::Result<Self> {
        let first = NonNull::new(first.cast::<u8>())
            .ok_or_else(|| refuse("the kernel mapped the segment at address zero"))?;
        Ok(Self(Arc::new(Mapping { first, bytes, descriptor })))
    }

    /// The descriptor to pass to another process; `None` for an anonymous segment.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.descriptor.as_ref().map(AsFd::as_fd)
    }

    /// Length in bytes, at least 1.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.0.bytes
    }

    /// Whether both are the same mapping.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The address of byte `offset` when `length` bytes from there lie inside.
    #[inline]
    fn at(&self, offset: u64, length: usize) -> Option<NonNull<u8>> {
        let offset = usize::try_from(offset).ok()?;
        if length > self.0.bytes || offset > self.0.bytes - length {
            return None;
        }
        // SAFETY: offset <= bytes, so the result is inside the mapping or one past its end.
        Some(unsafe { self.0.first.add(offset) })
    }

    /// Copies `out.len()` bytes from `offset` out. False, and nothing is copied, when the range is
    /// not inside.
    #[inline]
    pub fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        let Some(from) = self.at(offset, out.len()) else { return false };
        // SAFETY: `from` has out.len() bytes inside the mapping; `out` is exclusive and therefore
        // elsewhere. Formally a data race when the other side writes; the bytes are then unspecified
        // and the ring protocol does not look at them.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), out.as_mut_ptr(), out.len()) };
        true
    }

    /// Copies `bytes` in at `offset`. False, and nothing is copied, when the range is not inside.
    #[inline]
    pub fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        let Some(to) = self.at(offset, bytes.len()) else { return false };
        // SAFETY: `to` has bytes.len() bytes inside the mapping. `bytes` may be a view of the same
        // mapping (a card region), hence the overlapping copy. Racing readers as in `read`.
        unsafe { std::ptr::copy(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        true
    }

    /// Copies `length` bytes from `offset` to `to_offset` of `to`, which may be this segment. False,
    /// and nothing is copied, when either range is not inside.
    #[inline]
    pub fn copy_to(&self, offset: u64, to: &Self, to_offset: u64, length: usize) -> bool {
        let (Some(from), Some(to)) = (self.at(offset, length), to.at(to_offset, length)) else {
            return false;
        };
        // SAFETY: both ranges are inside their mappings and may overlap. Racing sides as in `read`.
        unsafe { std::ptr::copy(from.as_ptr(), to.as_ptr(), length) };
        true
    }

    /// The word at `offset` for atomic access; `None` when it is not inside or not aligned.
    #[inline]
    #[must_use]
    pub fn atomic_u32(&self, offset: u64) -> Option<&AtomicU32> {
        let word = self.at(offset, 4)?.cast::<AtomicU32>();
        if !word.is_aligned() {
            return None;
        }
        // SAFETY: inside the mapping, aligned, valid for as long as self, and any bits are a u32.
        Some(unsafe { word.as_ref() })
    }

    /// The double word at `offset` for atomic access; `None` when it is not inside or not aligned.
    #[inline]
    #[must_use]
    pub fn atomic_u64(&self, offset: u64) -> Option<&AtomicU64> {
        let word = self.at(offset, 8)?.cast::<AtomicU64>();
        if !word.is_aligned() {
            return None;
        }
        // SAFETY: as in `atomic_u32`.
        Some(unsafe { word.as_ref() })
    }
}

/// The one holder of plain slices into a segment: what a [`lunar_platform::Region`] stands on.
#[derive(Debug)]
pub(crate) struct OwnedSegment(Segment);

impl OwnedSegment {
    /// Takes the owner's view. Hardware keeps clones of the segment; nobody else may make a second
    /// owner of it.
    pub(crate) fn new(segment: Segment) -> Self {
        Self(segment)
    }

    /// The segment, for hardware.
    pub(crate) fn segment(&self) -> &Segment {
        &self.0
    }

    /// `length` bytes from `offset`; empty when not inside.
    #[inline]
    pub(crate) fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        match self.0.at(offset as u64, length) {
            // SAFETY: inside the mapping and alive as long as self. Formally racy: hardware may write
            // while the slice exists, but `Region`'s contract keeps the owner away from ranges that
            // a posted work request covers.
            Some(first) => unsafe { std::slice::from_raw_parts(first.as_ptr(), length) },
            None => &[],
        }
    }

    /// As [`Self::bytes`], for writing.
    #[inline]
    pub(crate) fn bytes_mut(&mut self, offset: usize, length: usize) -> &mut [u8] {
        match self.0.at(offset as u64, length) {
            // SAFETY: as in `bytes`; `&mut self` of the one owner makes it the only slice.
            Some(first) => unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), length) },
            None => &mut [],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn ranges_outside_are_refused_and_touch_nothing() {
        let segment = Segment::anonymous(4096).unwrap();
        let other = Segment::anonymous(64).unwrap();
        let mut out = [7u8; 16];
        for offset in [4081, 4096, 4097, u64::MAX - 3, u64::MAX] {
            assert!(!segment.read(offset, &mut out));
            assert!(!segment.write(offset, &out));
            assert!(!segment.copy_to(offset, &other, 0, 16));
            assert!(!other.copy_to(0, &segment, offset, 16));
        }
        assert!(!segment.copy_to(0, &other, 0, 65));
        assert_eq!(out, [7; 16]);
        assert!(segment.read(4080, &mut out));
        assert_eq!(out, [0; 16]);
        assert!(segment.read(4096, &mut []));
    }

    #[test]
    fn a_memfd_is_shared_between_mappings() {
        let segment = Segment::memfd("test", 8192).unwrap();
        let descriptor = segment.fd().unwrap().try_clone_to_owned().unwrap();
        let again = Segment::from_fd(descriptor, 8192).unwrap();
        assert!(segment.write(100, b"lunar"));
        let mut out = [0; 5];
        assert!(again.read(100, &mut out));
        assert_eq!(&out, b"lunar");
        again.atomic_u32(4).unwrap().store(9, Ordering::Release);
        assert_eq!(segment.atomic_u32(4).unwrap().load(Ordering::Acquire), 9);
        assert!(segment.atomic_u32(5).is_none(), "not aligned");
        assert!(segment.atomic_u64(8188).is_none(), "not inside");
        assert!(!segment.same_as(&again));
    }

    #[test]
    fn a_descriptor_that_could_shrink_or_is_too_short_is_refused() {
        let unsealable = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&unsealable, 4096).unwrap();
        assert!(Segment::from_fd(unsealable, 4096).is_err());
        let short = Segment::memfd("test", 4096).unwrap();
        let descriptor = short.fd().unwrap().try_clone_to_owned().unwrap();
        assert!(rustix::fs::ftruncate(&descriptor, 0).is_err(), "sealed");
        assert!(Segment::from_fd(descriptor, 8192).is_err());
        assert!(Segment::anonymous(0).is_err());
    }
}
