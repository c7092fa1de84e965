//! The fixed little-endian layouts that cross PCIe: submission and completion entries, side records
//! and where they lie in a ring.
//!
//! Only layouts and their field checks live here. What an operation means for a unit is decided by
//! the host agent's core; how cursors move is decided in [`crate::cursor`].
//!
//! A ring is `[published line][consumed line][entries][side records]`. Submission and completion rings
//! have the same layout, and a pair has equal slot counts. The capacities are a sum:
//! an operation is outstanding from the publishing of its submission until the card consumed its
//! completion; the card keeps `outstanding <= slots` (CANCEL entries counted); each outstanding
//! operation has at most one completion in the ring, so the completion ring cannot overflow. The agent
//! checks the first term, because it trusts nobody.

mod request;

use core::fmt;

pub use request::BlockRequest;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a submission or completion entry: one cache line.
pub const ENTRY_BYTES: usize = 64;
/// Bytes of the side record that each slot owns.
pub const SIDE_BYTES: usize = 1024;
/// The longest CDB: an operation code 7Fh command has an 8-byte header and at most 252 more bytes
/// (SPC-6 4.2.3).
pub const CDB_BYTES_MAX: usize = 260;
/// The longest sense data (SPC-6 4.4.1: additional sense length at most 244).
pub const SENSE_BYTES_MAX: usize = 252;
/// Segments one side record holds.
pub const SEGMENTS_MAX: usize = 31;
/// Ranges one UNMAP can name: what a side record holds where others have their scatter list. MAXIMUM
/// UNMAP BLOCK DESCRIPTOR COUNT of the block limits page (SBC-4 6.6.4) is not above it.
pub const UNMAP_RANGES_MAX: usize = SEGMENTS_MAX;
/// Bytes of the lines that hold the `published` and `consumed` words, one line each, so that the two
/// sides do not write to one line.
pub const CURSOR_LINE_BYTES: u64 = 64;

/// [`SubmissionEntry::flags`]: force unit access, the WRITE is on stable storage before it completes
/// (SBC-4 5.40).
pub const FLAG_FUA: u8 = 1 << 0;
/// [`SubmissionEntry::flags`]: the slot's side record is valid.
pub const FLAG_SIDE: u8 = 1 << 1;
/// [`SubmissionEntry::flags`]: data lies where the side record's segments say, and `arena` and
/// `data_offset` mean nothing.
pub const FLAG_SEGMENTS: u8 = 1 << 2;
/// [`SubmissionEntry::flags`] of FORWARD: the data range holds data-out; without it, it takes data-in.
pub const FLAG_DATA_OUT: u8 = 1 << 3;
/// [`SubmissionEntry::flags`] of WRITE_SAME: the blocks may be deallocated instead, where they then
/// read as the data (SBC-4 WRITE SAME, UNMAP bit).
pub const FLAG_UNMAP: u8 = 1 << 4;
/// [`SubmissionEntry::flags`] of WRITE: on stable storage, read back and compared before it completes
/// (SBC-4 WRITE AND VERIFY).
pub const FLAG_VERIFY: u8 = 1 << 5;
/// All flags of this version. An entry with another flag set is refused.
pub const FLAGS_KNOWN: u8 =
    FLAG_FUA | FLAG_SIDE | FLAG_SEGMENTS | FLAG_DATA_OUT | FLAG_UNMAP | FLAG_VERIFY;

/// Declares an enum over one byte that keeps codes it does not know, so that they can be refused by
/// name instead of being lost. Zero is never a known code: cleared memory is no entry.
macro_rules! open_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)*
            /// A code this version does not know.
            Unknown(u8),
        }

        impl $name {
            /// Every known value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// What `code` stands for.
            #[must_use]
            pub const fn from_code(code: u8) -> Self {
                match code {
                    $($code => Self::$variant,)*
                    other => Self::Unknown(other),
                }
            }

            /// The code in the entry.
            #[must_use]
            pub const fn code(self) -> u8 {
                match self {
                    $(Self::$variant => $code,)*
                    Self::Unknown(code) => code,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant => f.write_str($word),)*
                    Self::Unknown(code) => write!(f, "unknown code {code:#04x}"),
                }
            }
        }
    };
}

open_enum! {
    /// What a submission asks for.
    Operation {
        /// Fill the data range with blocks of the unit.
        Read = 1 "READ",
        /// Write the data range to the unit; [`FLAG_FUA`] and [`FLAG_VERIFY`] as in SBC-4.
        Write = 2 "WRITE",
        /// Make earlier completed writes of the range durable; `blocks` 0 means to the end.
        Flush = 3 "FLUSH",
        /// Compare the data range with the unit's blocks; see [`BlockRequest::Compare`].
        Compare = 4 "COMPARE",
        /// Compare the first half of the data and, when equal, write the second half.
        CompareAndWrite = 5 "COMPARE_AND_WRITE",
        /// Write one block of data, or zeroes without data, to every block of the range; `blocks` 0
        /// means to the end. [`FLAG_UNMAP`].
        WriteSame = 6 "WRITE_SAME",
        /// Deallocate the side record's ranges ([`SideRecord::ranges`]).
        Unmap = 7 "UNMAP",
        /// Cancel the operation whose token is in `lba` ([`SubmissionEntry::cancelled_token`]). The
        /// cancelled operation still has a completion of its own.
        Cancel = 8 "CANCEL",
        /// Execute the CDB in the side record; the completion has status and sense.
        Forward = 9 "FORWARD",
        /// Replace the range's blocks by themselves OR the data range.
        OrWrite = 10 "OR_WRITE",
        /// Bring the range into the backing's cache; `blocks` 0 means to the end.
        Prefetch = 11 "PREFETCH",
        /// Fill the data range with [`LbaRun`]s; `blocks` 0 means to the end.
        LbaStatus = 12 "LBA_STATUS",
    }
}

open_enum! {
    /// How an operation ended.
    Outcome {
        /// Carried out. For CANCEL: the other operation will complete with [`Outcome::Cancelled`].
        Done = 1 "done",
        /// Unrecovered read error at the LBA in `detail`.
        MediumReadError = 2 "medium read error",
        /// Write error at the LBA in `detail`.
        MediumWriteError = 3 "medium write error",
        /// The backing is read only.
        WriteProtected = 4 "write protected",
        /// The backing has no room.
        NoSpace = 5 "no space",
        /// The range is not inside the unit.
        OutOfRange = 6 "out of range",
        /// A comparison found a difference: `detail` bytes after the first byte of the range. Nothing
        /// was written by COMPARE_AND_WRITE.
        Miscompare = 7 "miscompare",
        /// The backing cannot take the operation now; nothing was started.
        Unavailable = 8 "unavailable",
        /// The unit changes its asymmetric access state; nothing was started.
        Transitioning = 9 "transitioning",
        /// Nobody knows whether it was carried out (the agent restarted).
        Lost = 10 "lost",
        /// The backing failed in another way.
        HardwareError = 11 "hardware error",
        /// Ended by CANCEL; the data range is not touched any more.
        Cancelled = 12 "cancelled",
        /// Only for CANCEL: the other operation is over or cannot be stopped; it completes as usual.
        TooLate = 13 "too late",
        /// The entry was malformed, or named an unknown operation or unit; nothing was started.
        Refused = 14 "refused",
        /// Only for FORWARD: `status` and the side record's sense are valid.
        Forwarded = 15 "forwarded",
    }
}

impl Operation {
    /// The flags that mean something for it.
    #[must_use]
    pub const fn flags(self) -> u8 {
        const SCATTER: u8 = FLAG_SIDE | FLAG_SEGMENTS;
        match self {
            Self::Read | Self::Compare | Self::LbaStatus => SCATTER,
            Self::Write => SCATTER | FLAG_FUA | FLAG_VERIFY,
            Self::CompareAndWrite | Self::OrWrite => SCATTER | FLAG_FUA,
            Self::WriteSame => SCATTER | FLAG_UNMAP,
            Self::Forward => SCATTER | FLAG_DATA_OUT,
            Self::Unmap => FLAG_SIDE,
            Self::Flush | Self::Cancel | Self::Prefetch | Self::Unknown(_) => 0,
        }
    }

    /// Whether carrying it out once more, after it may or may not have been carried out, leaves the
    /// unit as once does, and tells the initiator the same. What is not, and whose fate is unknown
    /// ([`Outcome::Lost`]), must never be started again by this side of the initiator.
    #[must_use]
    pub const fn is_idempotent(self) -> bool {
        match self {
            Self::Read
            | Self::Write
            | Self::Flush
            | Self::Compare
            | Self::WriteSame
            | Self::Unmap
            | Self::Cancel
            | Self::OrWrite
            | Self::Prefetch
            | Self::LbaStatus => true,
            // The second time it compares with what the first has written. A command may do
            // anything (MODE SELECT establishes a unit attention, a copy reads what it wrote).
            Self::CompareAndWrite | Self::Forward | Self::Unknown(_) => false,
        }
    }
}

/// Asks the host for one operation. Written by the card, read by the agent.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct SubmissionEntry {
    /// The cursor value this entry was published under.
    pub sequence: U32,
    /// Code of an [`Operation`].
    pub operation: u8,
    /// `FLAG_*`.
    pub flags: u8,
    /// Arena of the data (`ArenaId`), when `data_bytes` is not 0.
    pub arena: U16,
    /// The card's name for the operation, opaque to the host; comes back in the completion.
    pub token: U64,
    /// Handle of the logical unit.
    pub unit: U32,
    /// Handle of the I_T nexus.
    pub nexus: U32,
    /// Generation of the configuration that the operation was checked under.
    pub configuration_generation: U32,
    /// Which life of `nexus`.
    pub nexus_generation: U32,
    /// First logical block; for CANCEL the token of the operation to cancel.
    pub lba: U64,
    /// Number of logical blocks.
    pub blocks: U32,
    /// Length of the data in bytes.
    pub data_bytes: U32,
    /// Where the data lies: bytes from the first byte of `arena`.
    pub data_offset: U64,
    /// Zero.
    pub reserved: [u8; 8],
}

/// Tells how one operation ended. Written by the agent, read by the card.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CompletionEntry {
    /// The cursor value this entry was published under.
    pub sequence: U32,
    /// Code of an [`Outcome`].
    pub outcome: u8,
    /// SCSI status (SAM-6 5.3.1), when the outcome is [`Outcome::Forwarded`]; else 0.
    pub status: u8,
    /// Bytes of sense data in this slot's side record, at most [`SENSE_BYTES_MAX`]; 0 means that the
    /// side record is not valid.
    pub sense_bytes: U16,
    /// The submission's token.
    pub token: U64,
    /// Generation of the configuration that the card must have applied before it answers the
    /// initiator; 0 asks for none.
    pub required_generation: U32,
    /// Bytes moved to or from the data range.
    pub transferred_bytes: U32,
    /// See the outcome: an LBA or a byte offset; else 0.
    pub detail: U64,
    /// Zero.
    pub reserved: [u8; 32],
}

/// One piece of a scatter list.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Segment {
    /// Arena of the piece.
    pub arena: U16,
    /// Zero.
    pub reserved: U16,
    /// Length in bytes.
    pub bytes: U32,
    /// Bytes from the first byte of `arena`.
    pub offset: U64,
}

/// Blocks that UNMAP names.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct BlockRange {
    /// First logical block.
    pub lba: U64,
    /// Number of logical blocks; 0 is allowed and names none.
    pub blocks: U32,
    /// Zero.
    pub reserved: U32,
}

impl BlockRange {
    /// `blocks` logical blocks from `lba`.
    #[must_use]
    pub fn new(lba: u64, blocks: u32) -> Self {
        Self { lba: U64::new(lba), blocks: U32::new(blocks), reserved: U32::ZERO }
    }
}

/// [`LbaRun::state`]: mapped, or nobody knows (SBC-4 GET LBA STATUS, PROVISIONING STATUS 0h).
pub const LBA_MAPPED: u8 = 0;
/// [`LbaRun::state`]: deallocated (PROVISIONING STATUS 1h); reads as zeroes.
pub const LBA_DEALLOCATED: u8 = 1;

/// Neighbouring blocks in one provisioning state, as LBA_STATUS puts them in the data range.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LbaRun {
    /// First logical block.
    pub lba: U64,
    /// Number of logical blocks, at least 1.
    pub blocks: U32,
    /// [`LBA_MAPPED`] or [`LBA_DEALLOCATED`].
    pub state: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

impl LbaRun {
    /// The run that these bytes of a data range are.
    #[must_use]
    pub fn from_data(bytes: [u8; size_of::<Self>()]) -> Self {
        zerocopy::transmute!(bytes)
    }
}

/// What does not fit in an entry: CDB, sense data and scatter list. Covered by the same publish as the
/// entry of its slot.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SideRecord {
    /// Valid bytes of `cdb`, at most [`CDB_BYTES_MAX`].
    pub cdb_bytes: U16,
    /// Valid bytes of `sense`, at most [`SENSE_BYTES_MAX`].
    pub sense_bytes: U16,
    /// Valid entries of `segments`, at most [`SEGMENTS_MAX`].
    pub segment_count: U16,
    /// Zero.
    pub reserved: U16,
    /// The CDB.
    pub cdb: [u8; CDB_BYTES_MAX],
    /// Sense data in the format the unit's D_SENSE bit asks for.
    pub sense: [u8; SENSE_BYTES_MAX],
    /// The scatter list; of UNMAP the ranges instead ([`SideRecord::ranges`]).
    pub segments: [Segment; SEGMENTS_MAX],
    /// Zero. Room for chaining a longer list: offset of its next part.
    pub next_segments: U64,
}

const _: () = assert!(size_of::<SubmissionEntry>() == ENTRY_BYTES);
const _: () = assert!(size_of::<CompletionEntry>() == ENTRY_BYTES);
const _: () = assert!(size_of::<Segment>() == 16);
// Ranges take the segments' places; a run replaces a range in the initiator's parameter data.
const _: () = assert!(size_of::<BlockRange>() == size_of::<Segment>());
const _: () = assert!(size_of::<LbaRun>() == 16);
const _: () = assert!(size_of::<SideRecord>() == SIDE_BYTES);
const _: () = assert!(align_of::<SubmissionEntry>() == 1 && align_of::<SideRecord>() == 1);

/// Why an entry or side record is malformed, whatever unit or nexus it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The operation code is not known to this version.
    #[error("operation code {code:#04x} is not known to this version")]
    UnknownOperation {
        /// The code.
        code: u8,
    },
    /// The outcome code is not known to this version.
    #[error("outcome code {code:#04x} is not known to this version")]
    UnknownOutcome {
        /// The code.
        code: u8,
    },
    /// A flag outside [`FLAGS_KNOWN`].
    #[error("flags {flags:#04x} has bits outside {FLAGS_KNOWN:#04x}")]
    UnknownFlags {
        /// All the flags.
        flags: u8,
    },
    /// A flag that means nothing for the operation.
    #[error("{operation} has flags {flags:#04x}, only {allowed:#04x} mean something there")]
    Flags {
        /// The operation.
        operation: Operation,
        /// All the flags.
        flags: u8,
        /// Those it can have.
        allowed: u8,
    },
    /// A reserved field is not zero.
    #[error("a reserved field is not zero")]
    Reserved,
    /// FORWARD, UNMAP, or segments, without a side record.
    #[error("{operation} needs the side record flag")]
    SideMissing {
        /// The operation.
        operation: Operation,
    },
    /// A count in a side record or entry is above its limit.
    #[error("{field} is {value}, at most {limit} is possible")]
    TooLong {
        /// Which count.
        field: &'static str,
        /// Its value.
        value: u16,
        /// The limit.
        limit: usize,
    },
}

/// An entry of either ring: knows its sequence and checks its own fields.
pub trait Entry: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {
    /// The sequence in the entry.
    fn sequence(&self) -> u32;
    /// Sets the sequence.
    fn set_sequence(&mut self, sequence: u32);
}

impl Entry for SubmissionEntry {
    fn sequence(&self) -> u32 {
        self.sequence.get()
    }
    fn set_sequence(&mut self, sequence: u32) {
        self.sequence.set(sequence);
    }
}

impl Entry for CompletionEntry {
    fn sequence(&self) -> u32 {
        self.sequence.get()
    }
    fn set_sequence(&mut self, sequence: u32) {
        self.sequence.set(sequence);
    }
}

impl SubmissionEntry {
    /// An entry for `operation` with every other field zero.
    #[must_use]
    pub fn new(operation: Operation, token: u64) -> Self {
        let mut entry = Self::new_zeroed();
        entry.operation = operation.code();
        entry.token.set(token);
        entry
    }

    /// A CANCEL, itself named `token`, of the operation named `cancelled_token`.
    #[must_use]
    pub fn cancel(token: u64, cancelled_token: u64) -> Self {
        let mut entry = Self::new(Operation::Cancel, token);
        entry.lba.set(cancelled_token);
        entry
    }

    /// The operation.
    #[must_use]
    pub fn operation(&self) -> Operation {
        Operation::from_code(self.operation)
    }

    /// For CANCEL: the token of the operation to cancel. Meaningless for others.
    #[must_use]
    pub fn cancelled_token(&self) -> u64 {
        self.lba.get()
    }

    /// Whether all bits of `flag` are set.
    #[must_use]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag == flag
    }

    /// Checks what can be checked without knowing units, nexuses and arenas.
    ///
    /// # Errors
    /// [`EntryError`] names the field. The entry is answered with [`Outcome::Refused`].
    pub fn check(&self) -> Result<(), EntryError> {
        if let Operation::Unknown(code) = self.operation() {
            return Err(EntryError::UnknownOperation { code });
        }
        if self.flags & !FLAGS_KNOWN != 0 {
            return Err(EntryError::UnknownFlags { flags: self.flags });
        }
        if self.reserved != [0; 8] {
            return Err(EntryError::Reserved);
        }
        let operation = self.operation();
        let allowed = operation.flags();
        if self.flags & !allowed != 0 {
            return Err(EntryError::Flags { operation, flags: self.flags, allowed });
        }
        let needs_side =
            matches!(operation, Operation::Forward | Operation::Unmap) || self.has(FLAG_SEGMENTS);
        if needs_side && !self.has(FLAG_SIDE) {
            return Err(EntryError::SideMissing { operation });
        }
        Ok(())
    }
}

impl CompletionEntry {
    /// A completion with every other field zero.
    #[must_use]
    pub fn new(token: u64, outcome: Outcome) -> Self {
        let mut entry = Self::new_zeroed();
        entry.outcome = outcome.code();
        entry.token.set(token);
        entry
    }

    /// The outcome.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::from_code(self.outcome)
    }

    /// Checks what can be checked without knowing the submission.
    ///
    /// # Errors
    /// [`EntryError`] names the field. The agent broke the contract: the ring is closed.
    pub fn check(&self) -> Result<(), EntryError> {
        if let Outcome::Unknown(code) = self.outcome() {
            return Err(EntryError::UnknownOutcome { code });
        }
        if self.reserved != [0; 32] {
            return Err(EntryError::Reserved);
        }
        within("sense_bytes", self.sense_bytes, SENSE_BYTES_MAX)
    }
}

fn within(field: &'static str, value: U16, limit: usize) -> Result<(), EntryError> {
    let value = value.get();
    if usize::from(value) > limit {
        return Err(EntryError::TooLong { field, value, limit });
    }
    Ok(())
}

impl SideRecord {
    /// A record with nothing in it.
    #[must_use]
    pub fn empty() -> Self {
        Self::new_zeroed()
    }

    /// Puts `cdb` in.
    ///
    /// # Errors
    /// [`EntryError::TooLong`] above [`CDB_BYTES_MAX`]; nothing changed.
    pub fn set_cdb(&mut self, cdb: &[u8]) -> Result<(), EntryError> {
        self.cdb_bytes = put("cdb", cdb, &mut self.cdb)?;
        Ok(())
    }

    /// Puts `sense` in.
    ///
    /// # Errors
    /// [`EntryError::TooLong`] above [`SENSE_BYTES_MAX`]; nothing changed.
    pub fn set_sense(&mut self, sense: &[u8]) -> Result<(), EntryError> {
        self.sense_bytes = put("sense", sense, &mut self.sense)?;
        Ok(())
    }

    /// The CDB.
    ///
    /// # Errors
    /// [`EntryError::TooLong`] when the count is above [`CDB_BYTES_MAX`].
    pub fn cdb(&self) -> Result<&[u8], EntryError> {
        taken("cdb_bytes", self.cdb_bytes, &self.cdb)
    }

    /// The sense data.
    ///
    /// # Errors
    /// [`EntryError::TooLong`] when the count is above [`SENSE_BYTES_MAX`].
    pub fn sense(&self) -> Result<&[u8], EntryError> {
        taken("sense_bytes", self.sense_bytes, &self.sense)
    }

    /// The scatter list.
    ///
    /// # Errors
    /// [`EntryError::TooLong`] when the count is above [`SEGMENTS_MAX`].
    pub fn segments(&self) -> Result<&[Segment], EntryError> {
        taken("segment_count", self.segment_count, &self.segments)
    }

    /// Puts an UNMAP's `ranges` in the scatter list's place.
    ///
    /// # Errors
    /// [`EntryError::TooLong`] above [`UNMAP_RANGES_MAX`]; nothing changed.
    pub fn set_ranges(&mut self, ranges: &[BlockRange]) -> Result<(), EntryError> {
        let places = <[BlockRange]>::mut_from_bytes(self.segments.as_mut_bytes());
        self.segment_count = put("ranges", ranges, places.unwrap_or_default())?;
        Ok(())
    }

    /// The ranges of an UNMAP.
    ///
    /// # Errors
    /// [`EntryError::TooLong`] when the count is above [`UNMAP_RANGES_MAX`].
    pub fn ranges(&self) -> Result<&[BlockRange], EntryError> {
        let places = <[BlockRange]>::ref_from_bytes(self.segments.as_bytes());
        taken("segment_count", self.segment_count, places.unwrap_or_default())
    }
}

impl fmt::Debug for SideRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SideRecord")
            .field("cdb", &self.cdb())
            .field("sense", &self.sense())
            .field("segments", &self.segments())
            .finish_non_exhaustive()
    }
}

fn put<T: Copy>(field: &'static str, from: &[T], to: &mut [T]) -> Result<U16, EntryError> {
    let limit = to.len();
    let value = u16::try_from(from.len()).unwrap_or(u16::MAX);
    let Some(to) = to.get_mut(..from.len()) else {
        return Err(EntryError::TooLong { field, value, limit });
    };
    to.copy_from_slice(from);
    Ok(U16::new(value))
}

fn taken<'a, T>(field: &'static str, count: U16, from: &'a [T]) -> Result<&'a [T], EntryError> {
    let (value, limit) = (count.get(), from.len());
    from.get(..usize::from(value)).ok_or(EntryError::TooLong { field, value, limit })
}

/// Where things lie in one ring. Offsets are in bytes from the ring's first byte, which is aligned to
/// 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    slots: u32,
}

impl RingLayout {
    /// The most slots a ring may have.
    pub const SLOTS_MAX: u32 = 1 << 16;

    /// A ring with `slots` slots; `None` unless `slots` is a power of two from 2 to
    /// [`Self::SLOTS_MAX`].
    #[must_use]
    pub const fn new(slots: u32) -> Option<Self> {
        if slots.is_power_of_two() && slots >= 2 && slots <= Self::SLOTS_MAX {
            Some(Self { slots })
        } else {
            None
        }
    }

    /// Slots of the ring.
    #[must_use]
    pub const fn slots(self) -> u32 {
        self.slots
    }

    /// Bytes of the whole ring. Not above 70 MiB, so none of the sums below can overflow.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.side_base().saturating_add((self.slots as u64).saturating_mul(SIDE_BYTES as u64))
    }

    /// Where the producer's word lies: the sequence of the next entry it will publish.
    #[must_use]
    pub const fn published_offset(self) -> u64 {
        0
    }

    /// Where the consumer's word lies: the sequence of the next entry whose slot it still needs.
    #[must_use]
    pub const fn consumed_offset(self) -> u64 {
        CURSOR_LINE_BYTES
    }

    /// The slot of `sequence`.
    #[must_use]
    pub const fn slot(self, sequence: u32) -> u32 {
        sequence & self.slots.saturating_sub(1)
    }

    /// Where the entry of `sequence` lies.
    #[must_use]
    pub const fn entry_offset(self, sequence: u32) -> u64 {
        self.entry_base()
            .saturating_add((self.slot(sequence) as u64).saturating_mul(ENTRY_BYTES as u64))
    }

    /// Where the side record of `sequence` lies.
    #[must_use]
    pub const fn side_offset(self, sequence: u32) -> u64 {
        self.side_base()
            .saturating_add((self.slot(sequence) as u64).saturating_mul(SIDE_BYTES as u64))
    }

    const fn entry_base(self) -> u64 {
        CURSOR_LINE_BYTES.saturating_mul(2)
    }

    const fn side_base(self) -> u64 {
        self.entry_base().saturating_add((self.slots as u64).saturating_mul(ENTRY_BYTES as u64))
    }
}

#[cfg(test)]
mod tests;
