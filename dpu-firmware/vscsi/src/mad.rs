//! Management datagrams: what a client asks about the server before it logs in, and may ask later.
//!
//! A datagram is a header of 16 bytes in the information unit, and for some types a payload in a buffer
//! of the client's. So an answer takes up to four copies, which are the caller's: fetch the unit
//! ([`Mad::parse`], [`Mad::begin`]), fetch the payload, put the payload back ([`Mad::fill`]), put the
//! header back ([`Mad::answer_header`]: its 16 bytes and nothing behind them), and then send
//! [`Mad::answer_entry`].

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crq::{Answer, CrqStatus, Entry, IuKind};

/// Bytes of a datagram's header, which is all that is put back of it.
pub const HEADER_BYTES: usize = size_of::<Header>();
/// Bytes of the payload of [`MadKind::AdapterInformation`].
pub const ADAPTER_INFORMATION_BYTES: usize = size_of::<AdapterInformationWire>();
/// Most bytes of the payload of [`MadKind::Capabilities`].
pub const CAPABILITIES_BYTES_MAX: usize = 92;
/// Bytes of that payload before its list, and so the fewest.
pub const CAPABILITIES_BYTES_MIN: usize = size_of::<CapabilitiesHead>();
/// Most payload bytes that a datagram makes the server fetch.
pub const PAYLOAD_BYTES_MAX: usize = ADAPTER_INFORMATION_BYTES;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    kind: U32,
    status: U16,
    payload_bytes: U16,
    tag: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AdapterInformationWire {
    srp_version: [u8; 8],
    partition_name: [u8; PartitionName::BYTES],
    partition_number: U32,
    mad_version: U32,
    os_type: U32,
    port_transfer_bytes_max: [U32; 8],
}
const _: () = assert!(ADAPTER_INFORMATION_BYTES == 148);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct CapabilitiesHead {
    flags: U32,
    name: [u8; 32],
    location: [u8; 32],
}
const _: () = assert!(CAPABILITIES_BYTES_MIN == 68);

/// An element of the capability list; `bytes` counts it whole.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Capability {
    kind: U32,
    bytes: U16,
    server_support: U16,
    /// MIGRATION: the effective capability level; RESERVE: the kind of reservation.
    value: U32,
}

/// Flags of a capabilities payload.
pub mod capability_flag {
    /// The client partition was moved since its last login.
    pub const CLIENT_MIGRATED: u32 = 0x1;
    /// The client connects again.
    pub const CLIENT_RECONNECT: u32 = 0x2;
    /// The sender understands the capability list.
    pub const LIST_SUPPORTED: u32 = 0x4;
    /// The list holds an answer.
    pub const LIST_DATA: u32 = 0x8;
}

/// Types of capability list elements.
mod capability {
    pub const MIGRATION: u32 = 1;
    pub const RESERVE: u32 = 2;
    /// The value of a RESERVE element: the RESERVE and RELEASE commands of SCSI-2.
    pub const RESERVE_SCSI_2: u32 = 1;
}

/// Datagram types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MadKind {
    /// 1: the client parks a unit for a server that may have something to say. This one never has.
    EmptyIu,
    /// 2: the client has an error to be logged.
    ErrorLog,
    /// 3: who is there?
    AdapterInformation,
    /// 4: how is the server configured? (older)
    HostConfiguration,
    /// 5: what can the server do?
    Capabilities,
    /// 8: fail fast, see [`crate::response::crq_status`].
    EnableFastFail,
    /// Any other.
    Other(u32),
}

impl MadKind {
    /// All types that have a name.
    pub const ALL: [Self; 6] = [
        Self::EmptyIu,
        Self::ErrorLog,
        Self::AdapterInformation,
        Self::HostConfiguration,
        Self::Capabilities,
        Self::EnableFastFail,
    ];

    /// The type with this code.
    #[must_use]
    pub fn from_code(code: u32) -> Self {
        Self::ALL.into_iter().find(|kind| kind.code() == code).unwrap_or(Self::Other(code))
    }

    /// The code on the wire.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::EmptyIu => 1,
            Self::ErrorLog => 2,
            Self::AdapterInformation => 3,
            Self::HostConfiguration => 4,
            Self::Capabilities => 5,
            Self::EnableFastFail => 8,
            Self::Other(code) => code,
        }
    }
}

/// A datagram's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum MadStatus {
    /// It was carried out.
    Success = 0x00,
    /// The type is not supported.
    NotSupported = 0xF1,
    /// It failed: a length that it may not have, a payload out of reach, a wrong moment.
    Failed = 0xF7,
}

/// A datagram's header and the place of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mad {
    /// What it asks.
    pub kind: MadKind,
    /// Bytes of the payload, as the client says; of the header for a type without one.
    pub payload_bytes: u16,
    /// Echoed in the answer.
    pub tag: u64,
    /// The payload's I/O address in the client's window; `None` when the unit ends before it.
    pub payload_address: Option<u64>,
}

/// What to do with a datagram that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Answer it with this status.
    Answer(MadStatus),
    /// Fetch the payload, let [`Mad::fill`] make the answer of it and put it back.
    Exchange {
        /// Its I/O address in the client's window.
        address: u64,
        /// 1 to [`PAYLOAD_BYTES_MAX`].
        bytes: u16,
    },
}

impl Mad {
    /// Reads a datagram; `None` when the unit is shorter than a header: it has no tag and so no answer.
    #[must_use]
    pub fn parse(iu: &[u8]) -> Option<Self> {
        let (header, rest) = Header::read_from_prefix(iu).ok()?;
        Some(Self {
            kind: MadKind::from_code(header.kind.get()),
            payload_bytes: header.payload_bytes.get(),
            tag: header.tag.get(),
            payload_address: U64::read_from_prefix(rest).ok().map(|(address, _)| address.get()),
        })
    }

    /// Writes the datagram as a client sends it, and gives its length in bytes; `None` when it does not fit.
    #[must_use]
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        let header = self.header(MadStatus::Success);
        let address = U64::from(self.payload_address.unwrap_or(0));
        let (head, rest) = out.split_at_mut_checked(HEADER_BYTES)?;
        head.copy_from_slice(header.as_bytes());
        if self.payload_address.is_none() {
            return Some(HEADER_BYTES);
        }
        rest.get_mut(..size_of::<U64>())?.copy_from_slice(address.as_bytes());
        HEADER_BYTES.checked_add(size_of::<U64>())
    }

    /// What to do first. `logged_in`: whether the client has logged in; then it is too late for fast-fail.
    #[must_use]
    pub fn begin(&self, logged_in: bool) -> Step {
        let (bytes_min, bytes_max) = match self.kind {
            MadKind::AdapterInformation => (1, ADAPTER_INFORMATION_BYTES),
            MadKind::Capabilities => (CAPABILITIES_BYTES_MIN, CAPABILITIES_BYTES_MAX),
            MadKind::EnableFastFail if logged_in => return Step::Answer(MadStatus::Failed),
            MadKind::EnableFastFail => return Step::Answer(MadStatus::Success),
            // There is nothing to tell a client later, no log of its errors here and no text about the
            // configuration: a client does without.
            MadKind::EmptyIu
            | MadKind::ErrorLog
            | MadKind::HostConfiguration
            | MadKind::Other(_) => return Step::Answer(MadStatus::NotSupported),
        };
        let allowed = (bytes_min..=bytes_max).contains(&self.payload_bytes.into());
        match self.payload_address {
            Some(address) if allowed => Step::Exchange { address, bytes: self.payload_bytes },
            _ => Step::Answer(MadStatus::Failed),
        }
    }

    /// Turns the client's payload into the server's. After [`MadStatus::Success`] it is put back; otherwise
    /// it stays at the client as it was.
    #[must_use]
    pub fn fill(&self, server: &ServerPartition, payload: &mut [u8]) -> MadStatus {
        match self.kind {
            MadKind::AdapterInformation => {
                let ours = server.adapter_information().to_bytes();
                // As much as the client has room for.
                for (to, from) in payload.iter_mut().zip(ours) {
                    *to = from;
                }
                MadStatus::Success
            }
            MadKind::Capabilities => fill_capabilities(server, payload),
            _ => MadStatus::NotSupported,
        }
    }

    /// The header to put back: the client's with a status.
    #[must_use]
    pub fn answer_header(&self, status: MadStatus) -> [u8; HEADER_BYTES] {
        zerocopy::transmute!(self.header(status))
    }

    /// The entry to send when everything is in its place.
    #[must_use]
    pub fn answer_entry(&self) -> Entry {
        Entry::answer(Answer {
            kind: IuKind::Mad,
            status: CrqStatus::Ok,
            iu_bytes: HEADER_BYTES as u16,
            tag: self.tag,
        })
    }

    fn header(&self, status: MadStatus) -> Header {
        Header {
            kind: self.kind.code().into(),
            status: (status as u16).into(),
            payload_bytes: self.payload_bytes.into(),
            tag: self.tag.into(),
        }
    }
}

/// Reads the status and the tag of an answer, for a client; `None` when it is too short.
#[must_use]
pub fn parse_answer(iu: &[u8]) -> Option<(u16, u64)> {
    let (header, _) = Header::read_from_prefix(iu).ok()?;
    Some((header.status.get(), header.tag.get()))
}

/// Says in each element of the client's list whether the server has it. A list that lies about its
/// lengths is refused.
fn fill_capabilities(server: &ServerPartition, payload: &mut [u8]) -> MadStatus {
    let Ok((head, mut list)) = CapabilitiesHead::mut_from_prefix(payload) else {
        return MadStatus::Failed;
    };
    head.flags = (capability_flag::LIST_SUPPORTED | capability_flag::LIST_DATA).into();
    while !list.is_empty() {
        let Ok((capability, _)) = Capability::mut_from_prefix(list) else {
            return MadStatus::Failed;
        };
        let bytes = usize::from(capability.bytes.get());
        let supported = match (capability.kind.get(), capability.value.get()) {
            (capability::MIGRATION, _) => server.migration,
            (capability::RESERVE, capability::RESERVE_SCSI_2) => server.reserve,
            _ => false,
        };
        capability.server_support = u16::from(supported).into();
        // A step of at least one element: the list ends.
        if bytes < size_of::<Capability>() {
            return MadStatus::Failed;
        }
        let Some((_, rest)) = list.split_at_mut_checked(bytes) else {
            return MadStatus::Failed;
        };
        list = rest;
    }
    MadStatus::Success
}

/// An operating system, as partitions tell each other. A Linux client asks for fast-fail and capabilities
/// only a server that says [`OsType::AIX`], as IBM's do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OsType(pub u32);

impl OsType {
    /// OS/400, IBM i.
    pub const OS400: Self = Self(1);
    /// Linux.
    pub const LINUX: Self = Self(2);
    /// AIX and IBM's VIOS.
    pub const AIX: Self = Self(3);
    /// Open Firmware: SLOF.
    pub const OPEN_FIRMWARE: Self = Self(4);
}

/// A partition's name: at most 95 bytes and a NUL.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PartitionName([u8; Self::BYTES]);

impl PartitionName {
    /// Bytes on the wire.
    pub const BYTES: usize = 96;

    /// `name`, which may have 95 bytes and no NUL; `None` when it cannot be one.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        if name.len() >= Self::BYTES || name.contains('\0') {
            return None;
        }
        let mut bytes = [0; Self::BYTES];
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        Some(Self(bytes))
    }

    /// The name up to its first NUL; what a client sends need not be text.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.split(|byte| *byte == 0).next().unwrap_or(&[])
    }
}

impl core::fmt::Debug for PartitionName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

/// What the server says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerPartition {
    /// Its partition's name.
    pub name: PartitionName,
    /// Its partition's number.
    pub number: u32,
    /// What it says it runs on.
    pub os_type: OsType,
    /// Most bytes of data that one command may move.
    pub transfer_bytes_max: u32,
    /// Whether the platform can move partitions: the capability MIGRATION.
    pub migration: bool,
    /// Whether the logical units know the RESERVE and RELEASE commands of SCSI-2: the capability RESERVE.
    pub reserve: bool,
}

impl ServerPartition {
    /// The payload that answers [`MadKind::AdapterInformation`].
    #[must_use]
    pub fn adapter_information(&self) -> AdapterInformation {
        AdapterInformation {
            srp_version: SRP_VERSION,
            partition_name: self.name,
            partition_number: self.number,
            mad_version: 1,
            os_type: self.os_type,
            transfer_bytes_max: self.transfer_bytes_max,
        }
    }
}

/// The version of SRP that is spoken. (With "1.6a" and less, AIX's clients use short lists.)
pub const SRP_VERSION: [u8; 8] = *b"16.a\0\0\0\0";

/// The payload of [`MadKind::AdapterInformation`], either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterInformation {
    /// Text, NUL-padded.
    pub srp_version: [u8; 8],
    /// The sender's partition.
    pub partition_name: PartitionName,
    /// The sender's partition; all ones when it does not know.
    pub partition_number: u32,
    /// 1.
    pub mad_version: u32,
    /// What the sender runs on.
    pub os_type: OsType,
    /// Most bytes of data that one command may move, at the adapter's first port; an adapter here has one.
    pub transfer_bytes_max: u32,
}

impl AdapterInformation {
    /// The payload in these bytes; `None` when there are not enough.
    #[must_use]
    pub fn from_bytes(payload: &[u8]) -> Option<Self> {
        let (wire, _) = AdapterInformationWire::read_from_prefix(payload).ok()?;
        let [transfer_bytes_max, ..] = wire.port_transfer_bytes_max;
        Some(Self {
            srp_version: wire.srp_version,
            partition_name: PartitionName(wire.partition_name),
            partition_number: wire.partition_number.get(),
            mad_version: wire.mad_version.get(),
            os_type: OsType(wire.os_type.get()),
            transfer_bytes_max: transfer_bytes_max.get(),
        })
    }

    /// The payload's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ADAPTER_INFORMATION_BYTES] {
        let none = U32::new(0);
        let first = self.transfer_bytes_max.into();
        let wire = AdapterInformationWire {
            srp_version: self.srp_version,
            partition_name: self.partition_name.0,
            partition_number: self.partition_number.into(),
            mad_version: self.mad_version.into(),
            os_type: self.os_type.0.into(),
            port_transfer_bytes_max: [first, none, none, none, none, none, none, none],
        };
        zerocopy::transmute!(wire)
    }
}
