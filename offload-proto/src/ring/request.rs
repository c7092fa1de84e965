//! What an operation is, apart from its data and names: [`BlockRequest`], and how it lies in a
//! [`SubmissionEntry`]. The card writes with [`BlockRequest::encode`] what the agent reads with
//! [`BlockRequest::decode`], so the two cannot differ.
//!
//! The amount of data is the entry's `data_bytes`, and says what it stands for where more than one
//! amount is possible ([`BlockRequest::Compare`], [`BlockRequest::WriteSame`]). Block lengths are the
//! unit's affair and not known here.

use super::{
    FLAG_DATA_OUT, FLAG_FUA, FLAG_SIDE, FLAG_UNMAP, FLAG_VERIFY, Operation, SubmissionEntry,
};

/// What a backend is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockRequest {
    /// Fill the data range with blocks of the unit (data-in).
    Read {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks.
        blocks: u32,
    },
    /// Write the data range to the unit (data-out).
    Write {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks.
        blocks: u32,
        /// Force unit access (SBC-4 5.40): on stable storage before the outcome.
        fua: bool,
    },
    /// Write the data range (data-out), put it on stable storage, read it back and compare (SBC-4
    /// WRITE AND VERIFY). A difference is `Miscompare`.
    WriteAndVerify {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks.
        blocks: u32,
    },
    /// Make completed writes of the range durable (SBC-4 5.26).
    Flush {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks; 0 means to the end.
        blocks: u32,
    },
    /// Compare the unit's blocks with data-out: as many bytes as the blocks have (VERIFY, BYTCHK 01b),
    /// or one block that each is compared with (BYTCHK 11b). Without data the blocks are read and
    /// nothing is compared (BYTCHK 00b).
    Compare {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks.
        blocks: u32,
    },
    /// Compare the unit's blocks with the first half of data-out and, when equal, write the second
    /// half, with no other write to the blocks between (SBC-4 COMPARE AND WRITE).
    CompareAndWrite {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks; data-out has twice as many.
        blocks: u32,
        /// As for [`Self::Write`].
        fua: bool,
    },
    /// Write one block of data-out to every block of the range; without data, zeroes (SBC-4 WRITE
    /// SAME, NDOB).
    WriteSame {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks; 0 means to the end.
        blocks: u32,
        /// The blocks may be deallocated instead, where they then read as the data.
        unmap: bool,
    },
    /// Deallocate the ranges in the side record, at most [`super::UNMAP_RANGES_MAX`].
    Unmap,
    /// Replace the blocks by themselves OR data-out, with no other write to them between (SBC-4
    /// ORWRITE).
    OrWrite {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks.
        blocks: u32,
        /// As for [`Self::Write`].
        fua: bool,
    },
    /// Bring the blocks into the backing's cache, where it has one (SBC-4 PRE-FETCH). Done means that
    /// they fit, not that they have arrived.
    Prefetch {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks; 0 means to the end.
        blocks: u32,
    },
    /// Fill the data range with [`super::LbaRun`]s, from `lba` on and without gaps, until it is full
    /// or the range has ended (SBC-4 GET LBA STATUS). The completion's `transferred_bytes` tell how
    /// many there are; at least one.
    LbaStatus {
        /// First logical block.
        lba: u64,
        /// Number of logical blocks; 0 means to the end.
        blocks: u32,
    },
    /// Execute the CDB in the side record for the nexus. The completion has status and sense.
    Forward {
        /// Whether the data range holds data-out; else it takes data-in.
        data_out: bool,
    },
}

impl BlockRequest {
    /// The operation's name.
    #[must_use]
    pub const fn operation(&self) -> Operation {
        match self {
            Self::Read { .. } => Operation::Read,
            Self::Write { .. } | Self::WriteAndVerify { .. } => Operation::Write,
            Self::Flush { .. } => Operation::Flush,
            Self::Compare { .. } => Operation::Compare,
            Self::CompareAndWrite { .. } => Operation::CompareAndWrite,
            Self::WriteSame { .. } => Operation::WriteSame,
            Self::Unmap => Operation::Unmap,
            Self::OrWrite { .. } => Operation::OrWrite,
            Self::Prefetch { .. } => Operation::Prefetch,
            Self::LbaStatus { .. } => Operation::LbaStatus,
            Self::Forward { .. } => Operation::Forward,
        }
    }

    /// Whether the data range, if there is one, goes to the unit.
    #[must_use]
    pub const fn is_data_out(&self) -> bool {
        match self {
            Self::Write { .. }
            | Self::WriteAndVerify { .. }
            | Self::Compare { .. }
            | Self::CompareAndWrite { .. }
            | Self::WriteSame { .. }
            | Self::OrWrite { .. } => true,
            Self::Read { .. }
            | Self::Flush { .. }
            | Self::Unmap
            | Self::Prefetch { .. }
            | Self::LbaStatus { .. } => false,
            Self::Forward { data_out } => *data_out,
        }
    }

    /// Sets the entry's operation, flags, LBA and number of blocks.
    #[inline]
    pub fn encode(&self, entry: &mut SubmissionEntry) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let (lba, blocks, flags) = match *self {
            Self::Write { lba, blocks, fua }
            | Self::CompareAndWrite { lba, blocks, fua }
            | Self::OrWrite { lba, blocks, fua } => (lba, blocks, flag(fua, FLAG_FUA)),
            Self::WriteAndVerify { lba, blocks } => (lba, blocks, FLAG_VERIFY),
            Self::WriteSame { lba, blocks, unmap } => (lba, blocks, flag(unmap, FLAG_UNMAP)),
            Self::Read { lba, blocks }
            | Self::Flush { lba, blocks }
            | Self::Compare { lba, blocks }
            | Self::Prefetch { lba, blocks }
            | Self::LbaStatus { lba, blocks } => (lba, blocks, 0),
            Self::Unmap => (0, 0, FLAG_SIDE),
            Self::Forward { data_out } => (0, 0, FLAG_SIDE | flag(data_out, FLAG_DATA_OUT)),
        };
        entry.operation = self.operation().code();
        entry.flags = flags;
        entry.lba.set(lba);
        entry.blocks.set(blocks);
    }

    /// What the entry asks for; `None` for CANCEL and for an operation this version does not know.
    /// The entry was checked ([`SubmissionEntry::check`]), so its flags fit its operation.
    #[must_use]
    pub fn decode(entry: &SubmissionEntry) -> Option<Self> {
        let (lba, blocks) = (entry.lba.get(), entry.blocks.get());
        let fua = entry.has(FLAG_FUA);
        Some(match entry.operation() {
            Operation::Read => Self::Read { lba, blocks },
            Operation::Write if entry.has(FLAG_VERIFY) => Self::WriteAndVerify { lba, blocks },
            Operation::Write => Self::Write { lba, blocks, fua },
            Operation::Flush => Self::Flush { lba, blocks },
            Operation::Compare => Self::Compare { lba, blocks },
            Operation::CompareAndWrite => Self::CompareAndWrite { lba, blocks, fua },
            Operation::WriteSame => Self::WriteSame { lba, blocks, unmap: entry.has(FLAG_UNMAP) },
            Operation::Unmap => Self::Unmap,
            Operation::OrWrite => Self::OrWrite { lba, blocks, fua },
            Operation::Prefetch => Self::Prefetch { lba, blocks },
            Operation::LbaStatus => Self::LbaStatus { lba, blocks },
            Operation::Forward => Self::Forward { data_out: entry.has(FLAG_DATA_OUT) },
            Operation::Cancel | Operation::Unknown(_) => return None,
        })
    }
}
