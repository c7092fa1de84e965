//! The commands that are measured: what they look like on the wire. How they are driven may not live
//! here.

use lunar_initiator::cdbs::{Transfer, read10, write10};
use lunar_initiator::{Data, Shape};
use lunar_srp::descriptor::Descriptor;
use lunar_srp::iu::BufferLayout;
use lunar_target::configuration::Configuration;

/// Bytes that each command moves.
pub const BYTES: u32 = 4096;

/// Logical blocks that each command moves: the unit has blocks of 512 bytes.
const BLOCKS: u32 = 8;

/// Commands outstanding at a time.
pub const DEPTH: u64 = 32;

/// Commands before those that are measured: they take the new nexus's unit attention and fill the
/// buffer cache.
pub const WARM_UP: u64 = 1000;

/// What the card serves, with a credit for each of [`DEPTH`] commands and the one that an initiator
/// keeps for task management.
pub fn configuration(generation: u32) -> Configuration {
    let mut configuration = lunar_scenario::configuration(generation);
    for target in &mut configuration.targets {
        target.request_limit = DEPTH as u32 + 1;
    }
    configuration
}

/// Pieces of an indirect list.
const PIECES: u32 = 8;

/// One kind of command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Case {
    /// READ(10) with one direct descriptor.
    Read,
    /// WRITE(10) with one direct descriptor.
    Write,
    /// READ(10) into a list of eight ranges.
    ReadIndirect,
}

impl Case {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::ReadIndirect];

    /// Its name in the committed figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::ReadIndirect => "read-indirect",
        }
    }

    /// Its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Read => "READ",
            Self::Write => "WRITE",
            Self::ReadIndirect => "READ, list of 8",
        }
    }

    /// Its CDB.
    pub fn cdb(self, lba: u64) -> [u8; 10] {
        let transfer = Transfer::new(lba, BLOCKS);
        match self {
            Self::Read | Self::ReadIndirect => read10(transfer),
            Self::Write => write10(transfer),
        }
    }

    /// The ranges of its data buffer at `address`.
    pub fn pieces(self, address: u64) -> Vec<Descriptor> {
        let count = if self == Self::ReadIndirect { PIECES } else { 1 };
        let length = BYTES / count;
        (0..count)
            .map(|piece| Descriptor {
                address: address + u64::from(piece * length),
                key: 7,
                length,
            })
            .collect()
    }

    /// Data-in and data-out buffer as an IU describes them.
    pub fn layouts(self, pieces: &[Descriptor]) -> (BufferLayout<'_>, BufferLayout<'_>) {
        match (self, pieces) {
            (Self::Read, [piece]) => (BufferLayout::Direct(*piece), BufferLayout::None),
            (Self::Write, [piece]) => (BufferLayout::None, BufferLayout::Direct(*piece)),
            _ => (
                BufferLayout::Indirect { table_address: 0, table_key: 7, pieces },
                BufferLayout::None,
            ),
        }
    }

    /// The same for the model initiator.
    pub fn data(self, offset: usize) -> (Data, Shape) {
        match self {
            Self::Read => (Data::In { offset, bytes: BYTES }, Shape::Direct),
            Self::Write => (Data::Out { offset, bytes: BYTES }, Shape::Direct),
            Self::ReadIndirect => {
                (Data::In { offset, bytes: BYTES }, Shape::Indirect { pieces: PIECES as u8 })
            }
        }
    }
}
