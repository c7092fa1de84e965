//! What the demonstration and the initiator's process say to each other: one JSON object a line.

use serde::{Deserialize, Serialize};

/// From the demonstration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Log in.
    Login {
        /// Directory of the fabric.
        fabric: String,
        /// The initiator's address on the fabric: what access patterns see.
        address: String,
        /// Initiator port identifier.
        initiator_port: [u8; 16],
        /// Target port identifier.
        target_port: [u8; 16],
        /// Core to run on.
        core: Option<usize>,
    },
    /// REPORT LUNS.
    Luns,
    /// INQUIRY and READ CAPACITY of a LUN.
    Inspect {
        /// The LUN.
        lun: u16,
    },
    /// Read a whole LUN and hash it.
    Hash {
        /// The LUN.
        lun: u16,
    },
    /// Write a range and flush it.
    Write {
        /// The LUN.
        lun: u16,
        /// The range.
        range: Range,
        /// What to write.
        content: Content,
    },
    /// Measure.
    Measure(Workload),
    /// Log out and end.
    Logout,
}

/// A range of a LUN in bytes, multiples of its block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Zeros.
    Zeros,
    /// [`pattern`] with this seed.
    Pattern(u64),
}

impl Content {
    /// Fills `out`, whose first byte lies at `offset` of the LUN, a multiple of 8.
    pub fn fill(self, offset: u64, out: &mut [u8]) {
        match self {
            Self::Zeros => out.fill(0),
            Self::Pattern(seed) => {
                for (word, place) in out.chunks_mut(8).zip(0..) {
                    let bytes = pattern(seed, offset / 8 + place).to_le_bytes();
                    word.copy_from_slice(&bytes[..word.len()]);
                }
            }
        }
    }
}

/// Word `place` of the pattern with `seed`: SplitMix64, so that no two blocks are alike and a block
/// in a wrong place is seen.
#[must_use]
pub fn pattern(seed: u64, place: u64) -> u64 {
    let mut z = seed.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// The LUN.
    pub lun: u16,
    /// WRITE instead of READ.
    pub write: bool,
    /// In order instead of at random places.
    pub sequential: bool,
    /// Bytes of a command.
    pub transfer_bytes: u32,
    /// Commands outstanding.
    pub depth: u32,
    /// Where on the LUN.
    pub range: Range,
    /// How long, in nanoseconds.
    pub duration_ns: u64,
    /// Let others run when nothing has arrived: where there are fewer cores than busy threads.
    pub yields: bool,
}

/// From the initiator's process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// The login was accepted.
    LoggedIn {
        /// Commands the target takes at a time.
        request_limit: u32,
        /// Longest IU in bytes the target takes.
        it_iu_bytes_max: u32,
    },
    /// The LUNs.
    Luns(Vec<u16>),
    /// A LUN.
    Unit(Unit),
    /// SHA-256 of a whole LUN.
    Hash {
        /// The digest in hexadecimal.
        sha256: String,
        /// Bytes read.
        bytes: u64,
    },
    /// The range is written.
    Written,
    /// How far the request is, of 1000.
    Progress(u32),
    /// A measurement.
    Measured(Figures),
    /// Logged out. The process ends.
    LoggedOut,
    /// It could not be done.
    Failed(String),
}

/// What a LUN says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// T10 vendor identification.
    pub vendor: String,
    /// Product identification.
    pub product: String,
    /// Product revision level.
    pub revision: String,
    /// Unit serial number (VPD page 80h).
    pub serial: String,
    /// Block size.
    pub block_bytes: u32,
    /// Capacity in blocks.
    pub blocks: u64,
}

/// The result of a measurement. Latencies in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Commands that ended within the time.
    pub commands: u64,
    /// Commands a second.
    pub iops: f64,
    /// Megabytes (10^6) a second.
    pub megabytes_per_second: f64,
    /// Median latency.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// Commands that were answered BUSY or TASK SET FULL and sent again.
    pub retries: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_the_same_however_it_is_cut() {
        let mut whole = [0; 4096];
        Content::Pattern(7).fill(1 << 20, &mut whole);
        let mut tail = [0; 1024];
        Content::Pattern(7).fill((1 << 20) + 3072, &mut tail);
        assert_eq!(whole[3072..], tail);
        assert_ne!(whole[..8], whole[8..16]);
        let mut other = [0; 4096];
        Content::Pattern(8).fill(1 << 20, &mut other);
        assert_ne!(whole, other);
    }

    #[test]
    fn zeros_overwrite_what_was_there() {
        let mut bytes = [9; 24];
        Content::Zeros.fill(0, &mut bytes);
        assert_eq!(bytes, [0; 24]);
    }
}
