//! Arenas: host memory that the card, the keeper and the agent share, and windows into them.
//!
//! Here live raw pointers, and nowhere else in this crate but in `uring`. A mapping is never seen
//! as a Rust slice, because another process or the HCA may write to it at any time: bytes are
//! copied in and out, moved by the kernel, or accessed as atomic words.
#![allow(unsafe_code)] // shared mappings have no safe form; the module is the boundary

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapMut, MmapOptions, MmapRaw};

/// Bytes that are copied out of an arena to be looked at: two of them fit a first-level cache.
const CHUNK_BYTES: usize = 4096;

/// A shared mapping. Cloning shares it; it is unmapped when the last clone and the last
/// [`HostBuffer`] in it are gone.
#[derive(Clone)]
pub struct Arena {
    mapping: Arc<MmapRaw>,
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Arena({} bytes)", self.length())
    }
}

impl Arena {
    /// Maps `length_bytes` (above 0) of zeroed memory that only this process sees.
    ///
    /// # Errors
    /// What mmap(2) said.
    pub fn anonymous(length_bytes: usize) -> io::Result<Self> {
        let mapping = MmapMut::map_anon(length_bytes)?;
        Ok(Self { mapping: Arc::new(mapping.into()) })
    }

    /// Maps the first `length_bytes` of `file` (a memfd of the keeper) shared and writable.
    ///
    /// The file must not shrink while mapped; the keeper seals its memfds against that.
    ///
    /// # Errors
    /// What mmap(2) said, or [`io::ErrorKind::InvalidInput`] when the file is shorter.
    pub fn from_fd(file: BorrowedFd<'_>, length_bytes: usize) -> io::Result<Self> {
        let file_bytes = rustix::fs::fstat(file)?.st_size;
        if u64::try_from(file_bytes).unwrap_or(0) < length_bytes as u64 {
            let text = format!(
                "an arena of {length_bytes} bytes needs a file of that length, this one has {file_bytes}"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mapping = MmapOptions::new().len(length_bytes).map_raw(file.as_raw_fd())?;
        Ok(Self { mapping: Arc::new(mapping) })
    }

    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// The window of `length` bytes from `offset`; `None` when it does not lie inside.
    #[must_use]
    pub fn window(&self, offset: u64, length: u32) -> Option<HostBuffer> {
        let end = offset.checked_add(u64::from(length))?;
        if end > self.length() {
            return None;
        }
        let offset = usize::try_from(offset).ok()?;
        Some(HostBuffer { arena: self.clone(), offset, length })
    }

    /// Copies `out.len()` bytes from `offset`. `false`, and nothing copied, when out of bounds.
    #[must_use]
    pub fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        let Some(from) = self.pointer(offset, out.len()) else {
            return false;
        };
        // SAFETY: `pointer` checked that `out.len()` bytes from `from` lie inside the mapping, which
        // lives as long as `self`; `out` is a private slice that cannot overlap the mapping.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        true
    }

    /// Copies `bytes` to `offset`. `false`, and nothing copied, when out of bounds.
    #[must_use]
    pub fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        let Some(to) = self.pointer(offset, bytes.len()) else {
            return false;
        };
        // SAFETY: as in `read`, with the directions swapped; the mapping is writable.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        true
    }

    /// Loads the 32-bit word at `offset` with acquire ordering; `None` when it is misaligned or out
    /// of bounds.
    #[must_use]
    pub fn load_acquire(&self, offset: u64) -> Option<u32> {
        Some(self.word(offset)?.load(Ordering::Acquire))
    }

    /// Stores the 32-bit word at `offset` with release ordering. `false` when it is misaligned or
    /// out of bounds.
    #[must_use]
    pub fn store_release(&self, offset: u64, value: u32) -> bool {
        self.word(offset).map(|word| word.store(value, Ordering::Release)).is_some()
    }

    fn word(&self, offset: u64) -> Option<&AtomicU32> {
        let pointer = self.pointer(offset, size_of::<AtomicU32>())?.cast::<u32>();
        if !pointer.is_aligned() {
            return None;
        }
        // SAFETY: four aligned bytes inside the mapping, which the returned lifetime keeps alive;
        // every byte pattern is a valid u32, and this crate never makes a plain reference to the
        // mapping that the atomic could conflict with.
        Some(unsafe { AtomicU32::from_ptr(pointer) })
    }

    fn pointer(&self, offset: u64, length: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(length)?;
        if end > self.mapping.len() {
            return None;
        }
        // SAFETY: `offset` is at most the mapping's length, so the result is inside it or one past.
        Some(unsafe { self.mapping.as_mut_ptr().add(offset) })
    }
}

/// A contiguous window of an [`Arena`], which it keeps mapped. The bounds were checked when it was
/// made.
#[derive(Clone)]
pub struct HostBuffer {
    arena: Arena,
    offset: usize,
    length: u32,
}

impl std::fmt::Debug for HostBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostBuffer({} bytes at {})", self.length, self.offset)
    }
}

impl HostBuffer {
    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.length
    }

    /// Copies `out.len()` bytes from `skip`. `false`, and nothing copied, beyond the window.
    #[must_use]
    pub fn read(&self, skip: u32, out: &mut [u8]) -> bool {
        self.holds(skip, out.len()) && self.arena.read(self.offset as u64 + u64::from(skip), out)
    }

    /// Copies `bytes` to `skip`. `false`, and nothing copied, beyond the window.
    #[must_use]
    pub fn write(&self, skip: u32, bytes: &[u8]) -> bool {
        self.holds(skip, bytes.len())
            && self.arena.write(self.offset as u64 + u64::from(skip), bytes)
    }

    /// Zeroes the whole window.
    pub fn zero(&self) {
        // SAFETY: the window lies inside the mapping, which `self.arena` keeps alive.
        unsafe { std::ptr::write_bytes(self.pointer(), 0, self.length as usize) };
    }

    /// The part of `length` bytes behind the first `skip`; shorter, or empty, where the window ends.
    #[must_use]
    pub(crate) fn part(&self, skip: u32, length: u32) -> Self {
        let skip = skip.min(self.length);
        Self {
            arena: self.arena.clone(),
            offset: self.offset + skip as usize,
            length: length.min(self.length - skip),
        }
    }

    /// How many bytes at the start of this window and of `other` are equal. Goes through them in
    /// small copies, because what lies in an arena may change under any reader.
    #[must_use]
    pub(crate) fn equal_bytes(&self, other: &Self) -> u32 {
        let (mut mine, mut theirs) = ([0; CHUNK_BYTES], [0; CHUNK_BYTES]);
        let length = self.length.min(other.length);
        let mut at = 0;
        while at < length {
            let chunk = (length - at).min(CHUNK_BYTES as u32) as usize;
            let (mine, theirs) = (&mut mine[..chunk], &mut theirs[..chunk]);
            if !self.read(at, mine) || !other.read(at, theirs) {
                break;
            }
            if mine != theirs {
                let same = mine.iter().zip(theirs.iter()).take_while(|(one, two)| one == two);
                return at + same.count() as u32;
            }
            at += chunk as u32;
        }
        at
    }

    /// Sets every bit here that is set in `other`, byte by byte, as far as both reach.
    pub(crate) fn or(&self, other: &Self) {
        let (mut mine, mut theirs) = ([0; CHUNK_BYTES], [0; CHUNK_BYTES]);
        let length = self.length.min(other.length);
        let mut at = 0;
        while at < length {
            let chunk = (length - at).min(CHUNK_BYTES as u32) as usize;
            let (mine, theirs) = (&mut mine[..chunk], &mut theirs[..chunk]);
            if !self.read(at, mine) || !other.read(at, theirs) {
                return;
            }
            mine.iter_mut().zip(theirs.iter()).for_each(|(one, two)| *one |= two);
            if !self.write(at, mine) {
                return;
            }
            at += chunk as u32;
        }
    }

    /// Fills the window with copies of `block`.
    pub(crate) fn fill(&self, block: &[u8]) {
        for skip in (0..self.length as usize).step_by(block.len().max(1)) {
            let length = block.len().min(self.length as usize - skip);
            let _ = self.write(skip as u32, &block[..length]);
        }
    }

    /// The first byte's address, for the kernel alone. Valid while `self` (or a clone) lives.
    pub(crate) fn pointer(&self) -> *mut u8 {
        // SAFETY: the window lies inside the mapping: checked by `Arena::window`.
        unsafe { self.arena.mapping.as_mut_ptr().add(self.offset) }
    }

    /// pread(2) straight into the window; gives the bytes that arrived (fewer at the end of file).
    ///
    /// # Errors
    /// What pread(2) said.
    pub(crate) fn pread(&self, file: impl AsFd, file_offset: u64) -> io::Result<usize> {
        let offset = file_position(file_offset)?;
        // SAFETY: the kernel writes at most `length` bytes into the window, which lies inside a
        // writable mapping that `self.arena` keeps alive during the call.
        let got = unsafe {
            libc::pread(
                file.as_fd().as_raw_fd(),
                self.pointer().cast(),
                self.length as usize,
                offset,
            )
        };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// pwritev2(2) straight from the window, with RWF_DSYNC when `durable`; gives the bytes that
    /// were written.
    ///
    /// # Errors
    /// What pwritev2(2) said.
    pub(crate) fn pwrite(
        &self,
        file: impl AsFd,
        file_offset: u64,
        durable: bool,
    ) -> io::Result<usize> {
        let offset = file_position(file_offset)?;
        let piece = libc::iovec { iov_base: self.pointer().cast(), iov_len: self.length as usize };
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        // SAFETY: `piece` names the window, which lies inside a mapping that `self.arena` keeps
        // alive during the call; the kernel only reads it.
        let put =
            unsafe { libc::pwritev2(file.as_fd().as_raw_fd(), &raw const piece, 1, offset, flags) };
        usize::try_from(put).map_err(|_| io::Error::last_os_error())
    }

    fn holds(&self, skip: u32, length: usize) -> bool {
        (skip as usize).checked_add(length).is_some_and(|end| end <= self.length as usize)
    }
}

fn file_position(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_beyond_the_arena_is_refused() {
        let arena = Arena::anonymous(8192).expect("memory");
        assert!(arena.window(8192, 0).is_some());
        assert!(arena.window(8191, 2).is_none());
        assert!(arena.window(u64::MAX, 2).is_none());
        assert!(arena.window(0, 8192).is_some());
    }

    #[test]
    fn copies_stay_inside_their_window() {
        let arena = Arena::anonymous(4096).expect("memory");
        let window = arena.window(512, 512).expect("window");
        assert!(window.write(510, &[1, 2]));
        assert!(!window.write(511, &[1, 2]));
        let mut seen = [0; 4];
        assert!(arena.read(1022, &mut seen));
        assert_eq!(seen, [1, 2, 0, 0]);
        window.zero();
        assert!(arena.read(1022, &mut seen));
        assert_eq!(seen, [0; 4]);
    }

    #[test]
    fn words_need_alignment_and_room() {
        let arena = Arena::anonymous(4096).expect("memory");
        assert!(arena.store_release(4092, 7));
        assert_eq!(arena.load_acquire(4092), Some(7));
        assert_eq!(arena.load_acquire(4093), None);
        assert!(!arena.store_release(4096, 7));
    }

    #[test]
    fn two_mappings_of_one_file_see_each_other() {
        let file = tempfile::tempfile().expect("file");
        file.set_len(4096).expect("length");
        let one = Arena::from_fd(file.as_fd(), 4096).expect("mapping");
        let other = Arena::from_fd(file.as_fd(), 4096).expect("mapping");
        assert!(one.write(100, b"lunar"));
        let mut seen = [0; 5];
        assert!(other.read(100, &mut seen));
        assert_eq!(&seen, b"lunar");
        assert!(Arena::from_fd(file.as_fd(), 8192).is_err(), "longer than the file");
    }
}
