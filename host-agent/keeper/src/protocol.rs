//! The messages between the keeper and its clients: fixed little-endian records, one a packet of a SOCK_SEQPACKET Unix
//! socket. Bytes in, values out; descriptors travel beside them and are the business of server and client.

/// Distinguishes a client of ours from somebody who connected to the wrong socket: "LKPR".
const MAGIC: [u8; 4] = *b"LKPR";

/// Version of these messages.
const VERSION: u16 = 1;

/// Bytes of a request, a notice and a refusal.
pub const SHORT_BYTES: usize = 12;

/// Bytes of the longest request.
pub const REQUEST_BYTES_MAX: usize = SHORT_BYTES + 2 * RDMA_BLOB_BYTES;

/// Bytes of an offer, at most: with the RDMA blobs.
pub const OFFER_BYTES: usize = OFFER_PLAIN_BYTES + 2 * RDMA_BLOB_BYTES;

/// Bytes of an offer without RDMA blobs.
const OFFER_PLAIN_BYTES: usize = 88;

/// Bytes of an export blob for RDMA (`lunar_verbs_ibv::ExportBlob`).
pub const RDMA_BLOB_BYTES: usize = 64;

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// For the offer: layout, secrets and descriptors.
    Attach,
    /// To take an arena's export back: its secret changes, and every other client is told.
    Revoke {
        /// The arena.
        arena: u16,
    },
    /// The exporter's alone, after an attach and after each revoke: how the card reaches the memory over RDMA. Not answered.
    Exported(RdmaBlobs),
}

/// The export blobs of the data arena and of the ring segment, where the memory is exported over RDMA.
pub type RdmaBlobs = [[u8; RDMA_BLOB_BYTES]; 2];

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not a request of this version.
    Malformed,
    /// There is no such arena.
    NoSuchArena,
}

/// What the keeper says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // lives on the stack, for a moment
pub enum Reply {
    /// Answer to [`Request::Attach`].
    Offer(OfferRecord),
    /// Answer to [`Request::Revoke`].
    RevokeDone {
        /// The arena.
        arena: u16,
    },
    /// Unasked: an arena's export was taken back by another client.
    Revoked {
        /// The arena.
        arena: u16,
    },
    /// The request was refused; the keeper closes the connection after a malformed one.
    Refused(Refusal),
}

/// The plain part of an offer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OfferRecord {
    /// Names this life of the memory: with another one, the rings are new and empty.
    pub keeper_id: [u8; 16],
    /// Poll groups.
    pub groups: u32,
    /// Slots of each ring.
    pub ring_slots: u32,
    /// Length of the data arena in bytes.
    pub arena_bytes: u64,
    /// Length of the ring segment in bytes.
    pub rings_bytes: u64,
    /// Secret of the data arena's export.
    pub arena_secret: [u8; 16],
    /// Secret of the ring segment's export.
    pub rings_secret: [u8; 16],
    /// Where the memory is exported over RDMA: the blobs for that.
    pub rdma: Option<RdmaBlobs>,
}

impl std::fmt::Debug for OfferRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the secrets: they are never logged.
        f.debug_struct("OfferRecord")
            .field("groups", &self.groups)
            .field("ring_slots", &self.ring_slots)
            .field("arena_bytes", &self.arena_bytes)
            .finish_non_exhaustive()
    }
}

mod kind {
    pub const ATTACH: u16 = 1;
    pub const REVOKE: u16 = 2;
    pub const EXPORTED: u16 = 3;
    pub const OFFER: u16 = 0x81;
    pub const REVOKE_DONE: u16 = 0x82;
    pub const REVOKED: u16 = 0xc0;
    pub const REFUSED: u16 = 0xff;
}

impl Request {
    /// The packet of this request.
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Attach => short(kind::ATTACH, 0).to_vec(),
            Self::Revoke { arena } => short(kind::REVOKE, u32::from(arena)).to_vec(),
            Self::Exported(blobs) => {
                let mut packet = short(kind::EXPORTED, 0).to_vec();
                packet.extend(blobs.iter().flatten());
                packet
            }
        }
    }

    /// The request in a packet; `None` when it is none.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        match (parse_short(packet)?, packet.len()) {
            ((kind::ATTACH, 0), SHORT_BYTES) => Some(Self::Attach),
            ((kind::REVOKE, arena), SHORT_BYTES) => {
                Some(Self::Revoke { arena: u16::try_from(arena).ok()? })
            }
            ((kind::EXPORTED, 0), REQUEST_BYTES_MAX) => Some(Self::Exported([
                field(packet, SHORT_BYTES)?,
                field(packet, SHORT_BYTES + RDMA_BLOB_BYTES)?,
            ])),
            _ => None,
        }
    }
}

impl Reply {
    /// The packet of this reply.
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Self::Offer(offer) => {
                let mut packet = short(kind::OFFER, 0).to_vec();
                packet.extend(offer.groups.to_le_bytes());
                packet.extend(offer.ring_slots.to_le_bytes());
                packet.extend([0; 4]);
                packet.extend(offer.arena_bytes.to_le_bytes());
                packet.extend(offer.rings_bytes.to_le_bytes());
                packet.extend(offer.arena_secret);
                packet.extend(offer.rings_secret);
                packet.extend(offer.keeper_id);
                debug_assert_eq!(packet.len(), OFFER_PLAIN_BYTES);
                packet.extend(offer.rdma.iter().flatten().flatten());
                packet
            }
            Self::RevokeDone { arena } => short(kind::REVOKE_DONE, u32::from(arena)).to_vec(),
            Self::Revoked { arena } => short(kind::REVOKED, u32::from(arena)).to_vec(),
            Self::Refused(refusal) => {
                let code = match refusal {
                    Refusal::Malformed => 1,
                    Refusal::NoSuchArena => 2,
                };
                short(kind::REFUSED, code).to_vec()
            }
        }
    }

    /// The reply in a packet; `None` when it is none.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let (kind, argument) = parse_short(packet)?;
        if kind != kind::OFFER && packet.len() != SHORT_BYTES {
            return None;
        }
        match kind {
            kind::OFFER => Some(Self::Offer(OfferRecord {
                groups: u32::from_le_bytes(field(packet, 12)?),
                ring_slots: u32::from_le_bytes(field(packet, 16)?),
                arena_bytes: u64::from_le_bytes(field(packet, 24)?),
                rings_bytes: u64::from_le_bytes(field(packet, 32)?),
                arena_secret: field(packet, 40)?,
                rings_secret: field(packet, 56)?,
                keeper_id: field(packet, 72)?,
                rdma: match packet.len() {
                    OFFER_PLAIN_BYTES => None,
                    OFFER_BYTES => Some([
                        field(packet, OFFER_PLAIN_BYTES)?,
                        field(packet, OFFER_PLAIN_BYTES + RDMA_BLOB_BYTES)?,
                    ]),
                    _ => return None,
                },
            })),
            kind::REVOKE_DONE => Some(Self::RevokeDone { arena: u16::try_from(argument).ok()? }),
            kind::REVOKED => Some(Self::Revoked { arena: u16::try_from(argument).ok()? }),
            kind::REFUSED => match argument {
                1 => Some(Self::Refused(Refusal::Malformed)),
                2 => Some(Self::Refused(Refusal::NoSuchArena)),
                _ => None,
            },
            _ => None,
        }
    }
}

fn short(kind: u16, argument: u32) -> [u8; SHORT_BYTES] {
    let mut packet = [0; SHORT_BYTES];
    packet[..4].copy_from_slice(&MAGIC);
    packet[4..6].copy_from_slice(&VERSION.to_le_bytes());
    packet[6..8].copy_from_slice(&kind.to_le_bytes());
    packet[8..].copy_from_slice(&argument.to_le_bytes());
    packet
}

fn parse_short(packet: &[u8]) -> Option<(u16, u32)> {
    let magic: [u8; 4] = field(packet, 0)?;
    let version = u16::from_le_bytes(field(packet, 4)?);
    (magic == MAGIC && version == VERSION).then_some(())?;
    Some((u16::from_le_bytes(field(packet, 6)?), u32::from_le_bytes(field(packet, 8)?)))
}

fn field<const N: usize>(packet: &[u8], offset: usize) -> Option<[u8; N]> {
    packet.get(offset..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_reads_back_as_itself_and_no_shorter() {
        let exported = Request::Exported([[6; 64], [7; 64]]);
        for request in [Request::Attach, Request::Revoke { arena: 65535 }, exported] {
            let packet = request.encode();
            assert_eq!(Request::parse(&packet), Some(request));
            assert_eq!(Request::parse(&packet[..packet.len() - 1]), None);
        }
        let offer = OfferRecord {
            keeper_id: [1; 16],
            groups: 2,
            ring_slots: 256,
            arena_bytes: 1 << 33,
            rings_bytes: 7,
            arena_secret: [2; 16],
            rings_secret: [3; 16],
            rdma: None,
        };
        let replies = [
            Reply::Offer(offer),
            Reply::Offer(OfferRecord { rdma: Some([[4; 64], [5; 64]]), ..offer }),
            Reply::RevokeDone { arena: 1 },
            Reply::Revoked { arena: 0 },
            Reply::Refused(Refusal::Malformed),
            Reply::Refused(Refusal::NoSuchArena),
        ];
        for reply in replies {
            let packet = reply.encode();
            assert_eq!(Reply::parse(&packet), Some(reply));
            assert_eq!(Reply::parse(&packet[..packet.len() - 1]), None);
        }
    }

    #[test]
    fn other_magic_version_and_kind_are_no_request() {
        let packet = Request::Attach.encode();
        for index in 0..8 {
            let mut other = packet.clone();
            other[index] ^= 0x40;
            assert_eq!(Request::parse(&other), None, "byte {index}");
        }
    }
}
