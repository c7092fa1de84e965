//! Why a ring was given up: what the host did that it must not, or what the bus did.

use core::fmt;

use lunar_offload_proto::cursor;
use lunar_offload_proto::ring::{EntryError, Outcome};
use lunar_platform::DmaError;

/// The reason, in words by `Display`. The ring is closed; its operations stay in flight until
/// [`crate::ring::RingBackend::reset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFault {
    /// The host's word or an entry's sequence is impossible.
    Cursor(cursor::RingFault),
    /// A completion entry is malformed.
    Entry(EntryError),
    /// A completion for an operation that is not in flight.
    Token {
        /// The completion's token.
        token: u64,
    },
    /// A completion with an outcome that its operation cannot have.
    Outcome {
        /// The completion's token.
        token: u64,
        /// Its outcome.
        outcome: Outcome,
    },
    /// More bytes moved than were asked for.
    Transferred {
        /// The completion's token.
        token: u64,
        /// What it claims, in bytes.
        found: u32,
        /// What was asked for, in bytes.
        asked: u32,
    },
    /// Sense data without a forwarded command's status.
    Sense {
        /// The completion's token.
        token: u64,
        /// Its outcome.
        outcome: Outcome,
    },
    /// The DMA engine refused or failed.
    Dma(DmaError),
}

impl From<cursor::RingFault> for RingFault {
    fn from(fault: cursor::RingFault) -> Self {
        Self::Cursor(fault)
    }
}

impl From<EntryError> for RingFault {
    fn from(error: EntryError) -> Self {
        Self::Entry(error)
    }
}

impl fmt::Display for RingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cursor(fault) => write!(f, "the host broke the ring: {fault}"),
            Self::Entry(error) => write!(f, "the host sent a malformed completion: {error}"),
            Self::Token { token } => {
                write!(f, "the host completed operation {token:#x}, which is not in flight")
            }
            Self::Outcome { token, outcome } => {
                write!(
                    f,
                    "the host ended operation {token:#x} with an impossible outcome: {outcome}"
                )
            }
            Self::Transferred { token, found, asked } => write!(
                f,
                "the host moved {found} bytes for operation {token:#x}, which asked for {asked}"
            ),
            Self::Sense { token, outcome } => write!(
                f,
                "the host sent sense data for operation {token:#x}, which ended with: {outcome}"
            ),
            Self::Dma(DmaError::Full) => {
                f.write_str("the DMA engine had less room than it had announced")
            }
            Self::Dma(DmaError::Protection) => {
                f.write_str("the DMA engine may not touch the ring or its data any more")
            }
            Self::Dma(DmaError::Gone) => f.write_str("the host is gone from the bus"),
        }
    }
}

impl core::error::Error for RingFault {}
