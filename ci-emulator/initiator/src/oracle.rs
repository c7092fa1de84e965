//! What each block of a logical unit may contain: the judge of the simulator's and the tests' reads.
//!
//! A [`ModelDisk`] is told when each write and read begins and ends, as the initiator sees it. It
//! knows nothing of the target. For each block it keeps the *candidates*: the versions that the
//! medium may hold now. A read is right when every block holds a version that was a candidate at
//! some moment between the read's begin and end.
//!
//! * A write makes a candidate when it begins: it may reach the medium at any time from then on.
//! * A write that ended well supersedes every version whose write had ended before it began. Of
//!   writes that overlapped in time either may have come last.
//! * A write that ended in an error or was aborted may have happened or not, in part too, but it is
//!   over: it supersedes nothing and stays a candidate until a later write ends well. If it reaches
//!   the medium after its end was reported, that later write's content is gone, and a read tells.
//! * A read that saw version `x` proves that everything which had ended before the read began and is
//!   not `x` is superseded: a block does not flip back.
//!
//! Contents are made from (LUN, LBA, version), so a block says what it is, and data that went to the
//! wrong place or was mixed of two writes is recognised as such. A write may also leave zeros, or the
//! content of its first block in all of them ([`Filling`]); where several versions look the same, seeing
//! them proves only that one of them is there.
//!
//! A comparison is a read whose data the initiator names beforehand: GOOD says that it was there
//! ([`ModelDisk::end_read`]), a miscompare that something else was ([`ModelDisk::end_miscompare`]).

use std::collections::BTreeMap;
use std::fmt;

/// The first eight bytes of every block with content.
const MAGIC: u64 = u64::from_be_bytes(*b"lunarblk");
/// Magic, LUN, LBA, version.
const HEADER_BYTES: usize = 32;

/// Which write a block's content is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(pub u64);

impl Version {
    /// What was there before the first write.
    pub const INITIAL: Self = Self(0);
}

/// What the bytes of one block say they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing but zeros.
    Zeros,
    /// The content of this block and version.
    Block {
        /// The logical unit's number.
        lun: u16,
        /// The block's address.
        lba: u64,
        /// The write it is from.
        version: Version,
    },
    /// Neither: foreign bytes, or a mixture.
    Foreign {
        /// Offset in the block of the first byte that does not fit.
        at: usize,
    },
}

/// Fills `block` (at least 32 bytes) with the content of (`lun`, `lba`, `version`).
pub fn fill_block(lun: u16, lba: u64, version: Version, block: &mut [u8]) {
    let (header, body) = block.split_at_mut(HEADER_BYTES.min(block.len()));
    let words = [MAGIC, lun.into(), lba, version.0];
    for (to, word) in header.chunks_mut(8).zip(words) {
        to.copy_from_slice(&word.to_be_bytes()[..to.len()]);
    }
    let mut stream = Stream::new(lun, lba, version);
    for to in body.chunks_mut(8) {
        to.copy_from_slice(&stream.next().to_be_bytes()[..to.len()]);
    }
}

/// Tells what `block` is.
#[must_use]
pub fn identify(block: &[u8]) -> Content {
    if block.iter().all(|byte| *byte == 0) {
        return Content::Zeros;
    }
    if block.len() < HEADER_BYTES {
        return Content::Foreign { at: 0 };
    }
    let (header, body) = block.split_at(HEADER_BYTES);
    let word = |n: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[8 * n..8 * n + 8]);
        u64::from_be_bytes(bytes)
    };
    let (Ok(lun), lba, version) = (u16::try_from(word(1)), word(2), Version(word(3))) else {
        return Content::Foreign { at: 8 };
    };
    if word(0) != MAGIC {
        return Content::Foreign { at: 0 };
    }
    let mut stream = Stream::new(lun, lba, version);
    for (n, found) in body.chunks(8).enumerate() {
        if *found != stream.next().to_be_bytes()[..found.len()] {
            return Content::Foreign { at: HEADER_BYTES + 8 * n };
        }
    }
    Content::Block { lun, lba, version }
}

/// SplitMix64 over the block's name: cheap, and different for each.
struct Stream(u64);

impl Stream {
    fn new(lun: u16, lba: u64, version: Version) -> Self {
        let name = lba.rotate_left(20) ^ u64::from(lun).rotate_left(48);
        Self(name ^ version.0.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// What the medium holds before the first write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial {
    /// Zeros.
    Zeros,
    /// Each block's content in version [`Version::INITIAL`].
    Generated,
    /// Something that is not judged.
    Unknown,
}

/// What a write leaves in its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filling {
    /// In each its own content: WRITE.
    Own,
    /// In all of them the content of the first: WRITE SAME.
    Same,
    /// Zeros: WRITE SAME without data, UNMAP.
    Zeros,
}

/// How a write ended, as the initiator knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteEnd {
    /// GOOD.
    Done,
    /// It may have happened or not, but it is over: CHECK CONDITION after a failed transfer, an abort
    /// that was confirmed, a channel death followed by an accepted SINGLE login.
    Unknown,
    /// It was refused before anything happened: BUSY, TASK SET FULL, WRITE PROTECTED, ...
    Refused,
}

/// A write that began. Give it back with [`ModelDisk::end_write`].
#[derive(Debug)]
#[must_use]
pub struct Write {
    lba: u64,
    blocks: u32,
    version: Version,
    begin: u64,
}

impl Write {
    /// The version it writes.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// First block and number of blocks.
    #[must_use]
    pub fn range(&self) -> (u64, u32) {
        (self.lba, self.blocks)
    }
}

/// A read that began. Give it back with [`ModelDisk::end_read`] or [`ModelDisk::abandon_read`].
#[derive(Debug)]
#[must_use]
pub struct Read {
    lba: u64,
    blocks: u32,
    begin: u64,
}

impl Read {
    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.blocks
    }
}

/// A read that cannot be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The logical unit.
    pub lun: u16,
    /// The block.
    pub lba: u64,
    /// What was read.
    pub found: Content,
    /// What would have been right.
    pub allowed: Vec<Version>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LUN {} LBA {}: read ", self.lun, self.lba)?;
        match self.found {
            Content::Zeros => f.write_str("zeros")?,
            Content::Block { lun, lba, version } if (lun, lba) == (self.lun, self.lba) => {
                write!(f, "version {}", version.0)?;
            }
            Content::Block { lun, lba, version } => {
                write!(f, "the content of LUN {lun} LBA {lba}, version {}", version.0)?;
            }
            Content::Foreign { at } => write!(f, "bytes that are no content from byte {at} on")?,
        }
        f.write_str(", but only these versions are possible:")?;
        self.allowed.iter().try_for_each(|version| write!(f, " {}", version.0))
    }
}

impl std::error::Error for Mismatch {}

/// Moments are numbered by a counter that each begin and end moves.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    version: Version,
    /// What the block holds then; `None` for what was there at first.
    content: Option<Content>,
    /// When its write ended, in whatever way; `None` while it runs.
    ended: Option<u64>,
    /// From when on it cannot be read any more; kept for reads that began before.
    superseded: Option<u64>,
}

const INITIAL: Candidate =
    Candidate { version: Version::INITIAL, content: None, ended: Some(0), superseded: None };

/// The model of one logical unit. Memory grows with the blocks that were written, not with the disk.
#[derive(Clone, Debug)]
pub struct ModelDisk {
    lun: u16,
    block_bytes: usize,
    initial: Initial,
    moment: u64,
    versions: u64,
    written: BTreeMap<u64, Vec<Candidate>>,
    /// Begins of the reads that run, with their number.
    reads: BTreeMap<u64, u32>,
}

impl ModelDisk {
    /// A logical unit with blocks of `block_bytes` (at least 32) bytes, nothing written yet.
    #[must_use]
    pub fn new(lun: u16, block_bytes: usize, initial: Initial) -> Self {
        Self {
            lun,
            block_bytes: block_bytes.max(HEADER_BYTES),
            initial,
            moment: 0,
            versions: 0,
            written: BTreeMap::new(),
            reads: BTreeMap::new(),
        }
    }

    /// Block length in bytes.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// A write of `blocks` blocks from `lba` is about to be submitted.
    pub fn begin_write(&mut self, lba: u64, blocks: u32) -> Write {
        self.begin_filling(lba, blocks, Filling::Own)
    }

    /// As [`Self::begin_write`], of a write that leaves what `filling` says.
    pub fn begin_filling(&mut self, lba: u64, blocks: u32, filling: Filling) -> Write {
        self.versions += 1;
        let version = Version(self.versions);
        let begin = self.tick();
        for block in lba..lba + u64::from(blocks) {
            let content = match filling {
                Filling::Own => Content::Block { lun: self.lun, lba: block, version },
                Filling::Same => Content::Block { lun: self.lun, lba, version },
                Filling::Zeros => Content::Zeros,
            };
            let content = Some(content);
            let candidate = Candidate { version, content, ended: None, superseded: None };
            self.written.entry(block).or_insert_with(|| vec![INITIAL]).push(candidate);
        }
        Write { lba, blocks, version, begin }
    }

    /// Fills `data` with what `write` writes: all of its blocks, or the one that a WRITE SAME sends.
    pub fn fill(&self, write: &Write, data: &mut [u8]) {
        for (lba, block) in (write.lba..).zip(data.chunks_mut(self.block_bytes)) {
            fill_block(self.lun, lba, write.version, block);
        }
    }

    /// The write ended.
    pub fn end_write(&mut self, write: Write, end: WriteEnd) {
        let moment = self.tick();
        let oldest_read = self.oldest_read();
        for block in write.lba..write.lba + u64::from(write.blocks) {
            let Some(candidates) = self.written.get_mut(&block) else { continue };
            if end == WriteEnd::Refused {
                candidates.retain(|candidate| candidate.version != write.version);
                continue;
            }
            for candidate in candidates.iter_mut() {
                if candidate.version == write.version {
                    candidate.ended = Some(moment);
                } else if end == WriteEnd::Done && candidate.ended_before(write.begin) {
                    candidate.superseded.get_or_insert(moment);
                }
            }
            forget(candidates, oldest_read);
        }
    }

    /// A read of `blocks` blocks from `lba` is about to be submitted.
    pub fn begin_read(&mut self, lba: u64, blocks: u32) -> Read {
        let begin = self.tick();
        *self.reads.entry(begin).or_default() += 1;
        Read { lba, blocks, begin }
    }

    /// The read ended without data that could be judged.
    pub fn abandon_read(&mut self, read: Read) {
        self.reads.remove(&read.begin);
    }

    /// The read ended well with `data`. Judges every whole block of it.
    ///
    /// # Errors
    /// The first block that cannot be explained.
    pub fn end_read(&mut self, read: Read, data: &[u8]) -> Result<(), Mismatch> {
        let moment = self.tick();
        self.reads.remove(&read.begin);
        let oldest_read = self.oldest_read();
        let blocks = read.lba..read.lba + u64::from(read.blocks);
        for (lba, block) in blocks.zip(data.chunks_exact(self.block_bytes)) {
            self.judge(lba, block, read.begin, moment, oldest_read)?;
        }
        Ok(())
    }

    /// Fills `data` with what the blocks from `lba` on probably hold: the newest content of each. For a
    /// comparison.
    pub fn guess(&self, lba: u64, data: &mut [u8]) {
        for (lba, block) in (lba..).zip(data.chunks_mut(self.block_bytes)) {
            let candidates = self.written.get(&lba).map_or(&[][..], Vec::as_slice);
            let newest = candidates.iter().rev().find(|candidate| candidate.superseded.is_none());
            let content = newest.and_then(|candidate| candidate.content);
            match content.or_else(|| self.initial.content(self.lun, lba)) {
                Some(Content::Block { lun, lba, version }) => fill_block(lun, lba, version, block),
                _ => block.fill(0),
            }
        }
    }

    /// A comparison ended with a difference to `data`.
    ///
    /// # Errors
    /// No difference was possible: the first block, with the content that it certainly had.
    pub fn end_miscompare(&mut self, read: Read, data: &[u8]) -> Result<(), Mismatch> {
        self.reads.remove(&read.begin);
        let differs = |lba: u64, block: &[u8]| {
            let found = identify(block);
            let Some(candidates) = self.written.get(&lba) else {
                return !self.initial.matches(self.lun, lba, found);
            };
            let mut possible =
                candidates.iter().filter(|candidate| candidate.is_possible(read.begin));
            possible.any(|candidate| !candidate.matches(self.initial, self.lun, lba, found))
        };
        let mut blocks = (read.lba..).zip(data.chunks_exact(self.block_bytes));
        if blocks.by_ref().take(read.blocks as usize).any(|(lba, block)| differs(lba, block)) {
            return Ok(());
        }
        let first = data.get(..self.block_bytes).unwrap_or(data);
        let allowed = self.candidates(read.lba);
        Err(Mismatch { lun: self.lun, lba: read.lba, found: identify(first), allowed })
    }

    fn judge(
        &mut self,
        lba: u64,
        block: &[u8],
        begin: u64,
        moment: u64,
        oldest_read: u64,
    ) -> Result<(), Mismatch> {
        let found = identify(block);
        let Some(candidates) = self.written.get_mut(&lba) else {
            if self.initial.matches(self.lun, lba, found) {
                return Ok(());
            }
            let (lun, allowed) = (self.lun, vec![Version::INITIAL]);
            return Err(Mismatch { lun, lba, found, allowed });
        };
        let (lun, initial) = (self.lun, self.initial);
        let matches = |candidate: &Candidate| candidate.matches(initial, lun, lba, found);
        let possible = || candidates.iter().filter(|candidate| candidate.is_possible(begin));
        let Some(seen) = possible().find(|candidate| matches(candidate)) else {
            let allowed = possible().map(|candidate| candidate.version).collect();
            return Err(Mismatch { lun, lba, found, allowed });
        };
        // What cannot be told from other versions proves nothing.
        if seen.version != Version::INITIAL || initial != Initial::Unknown {
            for candidate in candidates.iter_mut() {
                if !matches(candidate) && candidate.ended_before(begin) {
                    candidate.superseded.get_or_insert(moment);
                }
            }
            forget(candidates, oldest_read);
        }
        Ok(())
    }

    /// The versions block `lba` may hold now, oldest first.
    #[must_use]
    pub fn candidates(&self, lba: u64) -> Vec<Version> {
        match self.written.get(&lba) {
            None => vec![Version::INITIAL],
            Some(candidates) => candidates
                .iter()
                .filter(|candidate| candidate.superseded.is_none())
                .map(|candidate| candidate.version)
                .collect(),
        }
    }

    /// The blocks that were ever written, ascending.
    pub fn written(&self) -> impl Iterator<Item = u64> {
        self.written.keys().copied()
    }

    fn tick(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// Begin of the oldest read that runs; now, when none does.
    fn oldest_read(&self) -> u64 {
        self.reads.first_key_value().map_or(self.moment, |(begin, _)| *begin)
    }
}

impl Candidate {
    /// Whether a read that began at `begin` and runs may see it.
    fn is_possible(&self, begin: u64) -> bool {
        self.superseded.is_none_or(|at| at > begin)
    }

    fn matches(&self, initial: Initial, lun: u16, lba: u64, found: Content) -> bool {
        self.content.map_or_else(|| initial.matches(lun, lba, found), |content| content == found)
    }

    fn ended_before(&self, moment: u64) -> bool {
        self.ended.is_some_and(|ended| ended < moment)
    }
}

/// Drops superseded candidates that no running read can still have seen.
fn forget(candidates: &mut Vec<Candidate>, oldest_read: u64) {
    candidates.retain(|candidate| candidate.superseded.is_none_or(|at| at > oldest_read));
}

impl Initial {
    /// What a block holds at first, if that is known.
    fn content(self, lun: u16, lba: u64) -> Option<Content> {
        match self {
            Self::Zeros => Some(Content::Zeros),
            Self::Generated => Some(Content::Block { lun, lba, version: Version::INITIAL }),
            Self::Unknown => None,
        }
    }

    fn matches(self, lun: u16, lba: u64, found: Content) -> bool {
        match self {
            Self::Zeros => found == Content::Zeros,
            Self::Generated => found == Content::Block { lun, lba, version: Version::INITIAL },
            // Bytes that were there before may be anything but a version that was never written here.
            Self::Unknown => !matches!(found, Content::Block { .. }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: usize = 64;
    const LBA: u64 = 7;

    fn disk() -> ModelDisk {
        ModelDisk::new(3, BYTES, Initial::Zeros)
    }

    fn content(version: Version) -> Vec<u8> {
        let mut block = vec![0; BYTES];
        if version != Version::INITIAL {
            fill_block(3, LBA, version, &mut block);
        }
        block
    }

    fn read(disk: &mut ModelDisk, version: Version) -> Result<(), Mismatch> {
        let read = disk.begin_read(LBA, 1);
        disk.end_read(read, &content(version))
    }

    fn written(disk: &mut ModelDisk, end: WriteEnd) -> Version {
        let write = disk.begin_write(LBA, 1);
        let version = write.version();
        disk.end_write(write, end);
        version
    }

    #[test]
    fn acknowledged_write_must_be_read_back() {
        let mut disk = disk();
        let version = written(&mut disk, WriteEnd::Done);
        assert_eq!(disk.candidates(LBA), [version]);
        assert_eq!(read(&mut disk, version), Ok(()));
        let mismatch = read(&mut disk, Version::INITIAL).unwrap_err();
        assert_eq!(
            mismatch.to_string(),
            "LUN 3 LBA 7: read zeros, but only these versions are possible: 1"
        );
    }

    #[test]
    fn running_write_may_be_seen_or_not_until_it_was_seen() {
        let mut disk = disk();
        let write = disk.begin_write(LBA, 1);
        let version = write.version();
        assert_eq!(read(&mut disk, Version::INITIAL), Ok(()));
        assert_eq!(read(&mut disk, version), Ok(()));
        assert!(read(&mut disk, Version::INITIAL).is_err(), "a block does not flip back");
        disk.end_write(write, WriteEnd::Done);
        assert_eq!(read(&mut disk, version), Ok(()));
    }

    #[test]
    fn of_overlapping_writes_either_may_be_last() {
        let mut disk = disk();
        let first = disk.begin_write(LBA, 1);
        let second = disk.begin_write(LBA, 1);
        let versions = [first.version(), second.version()];
        disk.end_write(second, WriteEnd::Done);
        disk.end_write(first, WriteEnd::Done);
        assert_eq!(disk.candidates(LBA), versions);
        assert_eq!(read(&mut disk, versions[0]), Ok(()));
        assert!(read(&mut disk, versions[1]).is_err(), "the first read decided which was last");
    }

    #[test]
    fn aborted_write_may_have_happened_but_may_not_land_after_the_next_one() {
        let mut disk = disk();
        let aborted = written(&mut disk, WriteEnd::Unknown);
        assert_eq!(disk.candidates(LBA), [Version::INITIAL, aborted]);
        assert_eq!(read(&mut disk, aborted), Ok(()));
        let retry = written(&mut disk, WriteEnd::Done);
        assert_eq!(read(&mut disk, retry), Ok(()));
        assert!(read(&mut disk, aborted).is_err(), "a late write landed after its retry");
    }

    #[test]
    fn refused_write_must_not_be_seen() {
        let mut disk = disk();
        let refused = written(&mut disk, WriteEnd::Refused);
        assert_eq!(read(&mut disk, Version::INITIAL), Ok(()));
        assert!(read(&mut disk, refused).is_err());
    }

    #[test]
    fn read_that_runs_beside_a_write_may_see_either() {
        let mut disk = disk();
        let old = written(&mut disk, WriteEnd::Done);
        let (early, later) = (disk.begin_read(LBA, 1), disk.begin_read(LBA, 1));
        let new = written(&mut disk, WriteEnd::Done);
        assert_eq!(disk.end_read(early, &content(old)), Ok(()));
        assert_eq!(disk.end_read(later, &content(new)), Ok(()));
        assert!(read(&mut disk, old).is_err());
    }

    #[test]
    fn data_of_another_place_and_mixtures_are_recognised() {
        let mut disk = disk();
        let version = written(&mut disk, WriteEnd::Done);
        let mut block = vec![0; BYTES];
        fill_block(3, LBA + 1, version, &mut block);
        let misplaced = disk.begin_read(LBA, 1);
        let mismatch = disk.end_read(misplaced, &block).unwrap_err();
        assert_eq!(mismatch.found, Content::Block { lun: 3, lba: LBA + 1, version });
        let mut torn = content(version);
        torn[40..].copy_from_slice(&block[40..]);
        let read = disk.begin_read(LBA, 1);
        assert_eq!(disk.end_read(read, &torn).unwrap_err().found, Content::Foreign { at: 40 });
    }

    #[test]
    fn generated_and_unknown_initial_contents() {
        let mut generated = ModelDisk::new(3, BYTES, Initial::Generated);
        assert!(read(&mut generated, Version::INITIAL).is_err(), "zeros were never there");
        let mut block = vec![0; BYTES];
        fill_block(3, LBA, Version::INITIAL, &mut block);
        let begun = generated.begin_read(LBA, 1);
        assert_eq!(generated.end_read(begun, &block), Ok(()));
        let mut unknown = ModelDisk::new(3, BYTES, Initial::Unknown);
        let begun = unknown.begin_read(LBA, 1);
        assert_eq!(unknown.end_read(begun, &[0x5a; BYTES]), Ok(()));
        written(&mut unknown, WriteEnd::Done);
        let begun = unknown.begin_read(LBA, 1);
        assert!(unknown.end_read(begun, &[0x5a; BYTES]).is_err());
    }

    #[test]
    fn a_write_same_leaves_its_first_block_or_zeros_in_all() {
        let mut disk = disk();
        let same = disk.begin_filling(LBA - 1, 2, Filling::Same);
        let mut block = vec![0; BYTES];
        disk.fill(&same, &mut block);
        disk.end_write(same, WriteEnd::Done);
        let begun = disk.begin_read(LBA, 1);
        assert_eq!(disk.end_read(begun, &block), Ok(()));
        let mut guess = vec![0xee; BYTES];
        disk.guess(LBA, &mut guess);
        assert_eq!(guess, block);
        let unmapped = disk.begin_filling(LBA, 1, Filling::Zeros);
        disk.end_write(unmapped, WriteEnd::Done);
        assert_eq!(read(&mut disk, Version::INITIAL), Ok(()), "zeros are zeros");
        let begun = disk.begin_read(LBA, 1);
        assert!(disk.end_read(begun, &block).is_err());
    }

    #[test]
    fn zeros_of_two_writes_prove_only_that_one_of_them_was() {
        let mut disk = disk();
        let own = disk.begin_write(LBA, 1);
        let zeros = [Filling::Zeros; 2].map(|filling| disk.begin_filling(LBA, 1, filling));
        let version = own.version();
        for write in zeros.into_iter().chain([own]) {
            disk.end_write(write, WriteEnd::Done);
        }
        assert_eq!(read(&mut disk, Version::INITIAL), Ok(()));
        assert_eq!(disk.candidates(LBA).len(), 2, "either of the two");
        assert!(read(&mut disk, version).is_err(), "a block does not flip back");
    }

    #[test]
    fn a_miscompare_needs_something_else_to_have_been_there() {
        let mut disk = disk();
        let version = written(&mut disk, WriteEnd::Done);
        let compare = disk.begin_read(LBA, 1);
        assert!(disk.end_miscompare(compare, &content(version)).is_err());
        let compare = disk.begin_read(LBA, 1);
        assert_eq!(disk.end_miscompare(compare, &content(Version::INITIAL)), Ok(()));
        // A write beside it may have come before or after.
        let compare = disk.begin_read(LBA, 1);
        let newer = written(&mut disk, WriteEnd::Done);
        assert_eq!(disk.end_miscompare(compare, &content(version)), Ok(()));
        let compare = disk.begin_read(LBA, 1);
        assert!(disk.end_miscompare(compare, &content(newer)).is_err());
    }

    #[test]
    fn forgotten_candidates_do_not_pile_up() {
        let mut disk = disk();
        for _ in 0..1000 {
            let version = written(&mut disk, WriteEnd::Done);
            read(&mut disk, version).unwrap();
        }
        assert_eq!(disk.written[&LBA].len(), 1);
        assert_eq!(disk.reads.len(), 0);
    }

    proptest! {
        #[test]
        fn content_says_what_it_is(lun: u16, lba: u64, version: u64, words in 4_usize..64) {
            let mut block = vec![0; 8 * words];
            fill_block(lun, lba, Version(version), &mut block);
            let expected = Content::Block { lun, lba, version: Version(version) };
            prop_assert_eq!(identify(&block), expected);
            let last = block.len() - 1;
            block[last] ^= 1;
            prop_assert_ne!(identify(&block), expected);
        }

        /// A medium that carries each write out at one moment between its begin and end, and each
        /// read at one moment between its begin and end, is never accused, whatever the order; and
        /// its final content is a candidate.
        #[test]
        fn every_atomic_history_is_explained(steps in prop::collection::vec((0_u8..7, any::<prop::sample::Index>()), 0..300)) {
            let mut disk = disk();
            let mut medium = Version::INITIAL;
            // Running writes: the write and whether it was carried out. Reads: what it got, if carried out.
            let mut writes: Vec<(Write, bool)> = Vec::new();
            let mut reads: Vec<(Read, Option<Version>)> = Vec::new();
            for (step, pick) in steps {
                match step {
                    0 => writes.push((disk.begin_write(LBA, 1), false)),
                    1 if !writes.is_empty() => {
                        let at = pick.index(writes.len());
                        let (write, carried_out) = &mut writes[at];
                        if !*carried_out {
                            *carried_out = true;
                            medium = write.version();
                        }
                    }
                    2 if !writes.is_empty() => {
                        let (write, carried_out) = writes.swap_remove(pick.index(writes.len()));
                        let end = if carried_out { WriteEnd::Done } else { WriteEnd::Refused };
                        disk.end_write(write, end);
                    }
                    3 if !writes.is_empty() => {
                        let (write, _) = writes.swap_remove(pick.index(writes.len()));
                        disk.end_write(write, WriteEnd::Unknown);
                    }
                    4 => reads.push((disk.begin_read(LBA, 1), None)),
                    5 if !reads.is_empty() => {
                        let at = pick.index(reads.len());
                        reads[at].1.get_or_insert(medium);
                    }
                    6 if !reads.is_empty() => {
                        let (read, got) = reads.swap_remove(pick.index(reads.len()));
                        match got {
                            Some(version) => {
                                let judged = disk.end_read(read, &content(version));
                                prop_assert!(judged.is_ok(), "{:?}", judged);
                            }
                            None => disk.abandon_read(read),
                        }
                    }
                    _ => {}
                }
                prop_assert!(disk.candidates(LBA).contains(&medium));
            }
        }

        /// A write that lands after its end was reported is found out by the next read of a block
        /// that was written again in between.
        #[test]
        fn late_writes_are_always_found_out(before in 0_usize..4, between in 1_usize..4) {
            let mut disk = disk();
            for _ in 0..before {
                written(&mut disk, WriteEnd::Done);
            }
            let late = written(&mut disk, WriteEnd::Unknown);
            for _ in 0..between {
                written(&mut disk, WriteEnd::Done);
            }
            prop_assert!(read(&mut disk, late).is_err());
        }
    }
}
