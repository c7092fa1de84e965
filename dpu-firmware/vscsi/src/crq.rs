//! Entries of the command/response queue (PAPR, "CRQ"): 16 bytes that travel by H_SEND_CRQ, or that the
//! hypervisor itself puts into a queue. Parsing and encoding, for both ends.

use zerocopy::byteorder::big_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of an entry.
pub const ENTRY_BYTES: usize = size_of::<Wire>();

/// What the first byte of an entry says.
mod valid {
    /// No entry: the slot is free.
    pub const FREE: u8 = 0x00;
    /// A command or a response.
    pub const COMMAND: u8 = 0x80;
    /// The handshake of the two partners.
    pub const INITIALISATION: u8 = 0xC0;
    /// The hypervisor tells about the partner.
    pub const TRANSPORT_EVENT: u8 = 0xFF;
}

/// Formats of an initialisation entry.
mod initialisation {
    pub const INIT: u8 = 0x01;
    pub const INIT_COMPLETE: u8 = 0x02;
}

/// Payload formats on which the numberings agree.
mod format {
    pub const SRP: u8 = 0x01;
    pub const MAD: u8 = 0x02;
    /// "Message in CRQ" is 6 for PAPR's servers, 7 for QEMU and SLOF (which have LINUX at 6).
    pub const MESSAGE_IN_CRQ: [u8; 2] = [0x06, 0x07];
}

/// An entry's bytes. All of it is big-endian.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    valid: u8,
    format: u8,
    reserved_2: u8,
    status: u8,
    timeout_s: U16,
    iu_bytes: U16,
    pointer: U64,
}

/// An entry, field by field. [`Entry::read`] says what it means to a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// What kind of entry it is; zero in a free slot.
    pub valid: u8,
    /// What that kind carries.
    pub format: u8,
    /// Reserved: zero when sent, ignored when received, echoed in a PING RESPONSE.
    pub reserved: u8,
    /// The sender's verdict, see [`CrqStatus`].
    pub status: u8,
    /// Seconds that the client gives a request; zero in responses.
    pub timeout_s: u16,
    /// Bytes of the information unit.
    pub iu_bytes: u16,
    /// In a request: the I/O address of the information unit in the client's window. In a response: the
    /// tag of the information unit that it answers.
    pub pointer: u64,
}

impl Entry {
    /// INIT: the sender's queue is there; asks whether the partner's is.
    pub const INIT: Self = Self::initialisation(initialisation::INIT);
    /// INIT COMPLETE: answers INIT.
    pub const INIT_COMPLETE: Self = Self::initialisation(initialisation::INIT_COMPLETE);

    const fn initialisation(format: u8) -> Self {
        Self {
            valid: valid::INITIALISATION,
            format,
            reserved: 0,
            status: 0,
            timeout_s: 0,
            iu_bytes: 0,
            pointer: 0,
        }
    }

    /// The entry that the hypervisor makes of `event`.
    #[must_use]
    pub const fn transport(event: TransportEvent) -> Self {
        Self { valid: valid::TRANSPORT_EVENT, format: event.code(), ..Self::initialisation(0) }
    }

    /// A client's request.
    #[must_use]
    pub const fn request(request: Request) -> Self {
        Self {
            valid: valid::COMMAND,
            format: request.kind.code(),
            reserved: 0,
            status: 0,
            timeout_s: request.timeout_s,
            iu_bytes: request.iu_bytes,
            pointer: request.address,
        }
    }

    /// A server's answer: the answering information unit, of `iu_bytes`, lies in the place of the one
    /// that it answers, whose tag is `tag`.
    #[inline]
    #[must_use]
    pub const fn answer(answer: Answer) -> Self {
        Self {
            valid: valid::COMMAND,
            format: answer.kind.code(),
            reserved: 0,
            status: answer.status.code(),
            timeout_s: 0,
            iu_bytes: answer.iu_bytes,
            pointer: answer.tag,
        }
    }

    /// PING, in `numbering`'s format.
    #[must_use]
    pub const fn ping(numbering: Numbering) -> Self {
        Self {
            valid: valid::COMMAND,
            format: PayloadFormat::MessageInCrq.code_in(numbering),
            status: CrqStatus::Ping.code(),
            ..Self::initialisation(0)
        }
    }

    /// The PING RESPONSE to this PING: the same entry with another status.
    #[must_use]
    pub const fn ping_response(self) -> Self {
        Self { status: CrqStatus::PingResponse.code(), ..self }
    }

    /// The entry in these bytes.
    #[inline]
    #[must_use]
    pub fn from_bytes(bytes: [u8; ENTRY_BYTES]) -> Self {
        let wire: Wire = zerocopy::transmute!(bytes);
        Self {
            valid: wire.valid,
            format: wire.format,
            reserved: wire.reserved_2,
            status: wire.status,
            timeout_s: wire.timeout_s.get(),
            iu_bytes: wire.iu_bytes.get(),
            pointer: wire.pointer.get(),
        }
    }

    /// The entry's bytes. In the receiver's queue the first eight must appear last: the receiver takes the
    /// entry as soon as its first byte is not zero.
    #[inline]
    #[must_use]
    pub fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let wire = Wire {
            valid: self.valid,
            format: self.format,
            reserved_2: self.reserved,
            status: self.status,
            timeout_s: self.timeout_s.into(),
            iu_bytes: self.iu_bytes.into(),
            pointer: self.pointer.into(),
        };
        zerocopy::transmute!(wire)
    }

    /// The entry in the two register arguments of H_SEND_CRQ.
    #[must_use]
    pub fn from_words(high: u64, low: u64) -> Self {
        Self::from_bytes(((u128::from(high) << 64) | u128::from(low)).to_be_bytes())
    }

    /// The two register arguments of H_SEND_CRQ.
    #[must_use]
    pub fn to_words(self) -> (u64, u64) {
        let both = u128::from_be_bytes(self.to_bytes());
        ((both >> 64) as u64, both as u64)
    }

    /// What the entry means in a server's queue.
    #[inline]
    #[must_use]
    pub fn read(self) -> Incoming {
        match self.valid {
            valid::COMMAND => self.read_command(),
            valid::INITIALISATION => match self.format {
                initialisation::INIT => Incoming::Init,
                initialisation::INIT_COMPLETE => Incoming::InitComplete,
                _ => Incoming::Unknown,
            },
            valid::TRANSPORT_EVENT => Incoming::Transport(TransportEvent::from_code(self.format)),
            valid::FREE => Incoming::Free,
            _ => Incoming::Unknown,
        }
    }

    #[inline]
    fn read_command(self) -> Incoming {
        let kind = match self.format {
            format::SRP => IuKind::Srp,
            format::MAD => IuKind::Mad,
            code if format::MESSAGE_IN_CRQ.contains(&code) => {
                return match CrqStatus::from_code(self.status) {
                    CrqStatus::Ping => Incoming::Ping(self),
                    CrqStatus::PingResponse => Incoming::PingResponse,
                    _ => Incoming::Unknown,
                };
            }
            _ => return Incoming::Unknown,
        };
        Incoming::Request(Request {
            kind,
            timeout_s: self.timeout_s,
            iu_bytes: self.iu_bytes,
            address: self.pointer,
        })
    }

    /// The answer in a client's queue; `None` for every other entry, which [`Entry::read`] tells apart.
    #[must_use]
    pub fn read_answer(self) -> Option<Answer> {
        let kind = match (self.valid, self.format) {
            (valid::COMMAND, format::SRP) => IuKind::Srp,
            (valid::COMMAND, format::MAD) => IuKind::Mad,
            _ => return None,
        };
        let status = CrqStatus::from_code(self.status);
        Some(Answer { kind, status, iu_bytes: self.iu_bytes, tag: self.pointer })
    }
}

/// What an entry means in a server's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The slot is free.
    Free,
    /// The client's queue is there; it wants an INIT COMPLETE.
    Init,
    /// The client answers our INIT.
    InitComplete,
    /// The hypervisor tells what became of the client.
    Transport(TransportEvent),
    /// An information unit lies in the client's memory.
    Request(Request),
    /// The client asks whether anybody is there; [`Entry::ping_response`] answers it.
    Ping(Entry),
    /// The client answers a PING. (A server here sends none.)
    PingResponse,
    /// An entry, an initialisation or a payload format that a server does not know: OS400, AIX and LINUX
    /// formats have no public meaning.
    Unknown,
}

/// What an information unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IuKind {
    /// An IU of SRP.
    Srp,
    /// A management datagram.
    Mad,
}

impl IuKind {
    const fn code(self) -> u8 {
        match self {
            Self::Srp => format::SRP,
            Self::Mad => format::MAD,
        }
    }
}

/// A client's request: the place of an information unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What lies there.
    pub kind: IuKind,
    /// Seconds that the client gives it; zero = no limit. The client enforces it itself.
    pub timeout_s: u16,
    /// Its length in bytes, as the client says: not checked yet.
    pub iu_bytes: u16,
    /// Its I/O address in the client's window. The answer goes there too.
    pub address: u64,
}

/// A server's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What kind of request is answered.
    pub kind: IuKind,
    /// The transport's verdict; anything but OK makes the client fail the request.
    pub status: CrqStatus,
    /// Bytes of the answering information unit.
    pub iu_bytes: u16,
    /// The request's tag, which the client finds its request by.
    pub tag: u64,
}

/// What the hypervisor tells about the partner, in an entry of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportEvent {
    /// FF01: the partner partition failed.
    PartnerFailed,
    /// FF02: the partner freed its queue.
    PartnerDeregistered,
    /// FF06: the partner partition was moved.
    Migrated,
    /// FF09: the partner partition is going to be suspended; finish what is in flight.
    PrepareForSuspend,
    /// FF0A: the partner partition goes on.
    Resume,
    /// Any other, which must be ignored (FF00 is "unused").
    Other(u8),
}

impl TransportEvent {
    /// The event with this code.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code {
            0x01 => Self::PartnerFailed,
            0x02 => Self::PartnerDeregistered,
            0x06 => Self::Migrated,
            0x09 => Self::PrepareForSuspend,
            0x0A => Self::Resume,
            other => Self::Other(other),
        }
    }

    /// The code in the entry's format byte.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::PartnerFailed => 0x01,
            Self::PartnerDeregistered => 0x02,
            Self::Migrated => 0x06,
            Self::PrepareForSuspend => 0x09,
            Self::Resume => 0x0A,
            Self::Other(code) => code,
        }
    }
}

/// The status byte of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrqStatus {
    /// 00h.
    Ok,
    /// 99h: another good, which clients take as 00h.
    Ok2,
    /// 01h: an error that a retry does not mend.
    NonRecoverable,
    /// 02h: the transfer is longer than the server takes.
    ViolatesMaxTransfer,
    /// 03h: the sending partition panicked.
    PartnerPanic,
    /// 08h.
    Busy,
    /// 10h: the adapter failed; a client with fast-fail on tries another path.
    AdapterFail,
    /// 20h: an entry was overwritten in the queue.
    EntryOverwritten,
    /// F1h: the header's descriptor is wrong.
    HeaderDescriptorError,
    /// F5h.
    Ping,
    /// F6h.
    PingResponse,
    /// Any other.
    Other(u8),
}

impl CrqStatus {
    /// The status with this code.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code {
            0x00 => Self::Ok,
            0x99 => Self::Ok2,
            0x01 => Self::NonRecoverable,
            0x02 => Self::ViolatesMaxTransfer,
            0x03 => Self::PartnerPanic,
            0x08 => Self::Busy,
            0x10 => Self::AdapterFail,
            0x20 => Self::EntryOverwritten,
            0xF1 => Self::HeaderDescriptorError,
            0xF5 => Self::Ping,
            0xF6 => Self::PingResponse,
            other => Self::Other(other),
        }
    }

    /// The code on the wire.
    #[inline]
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0x00,
            Self::Ok2 => 0x99,
            Self::NonRecoverable => 0x01,
            Self::ViolatesMaxTransfer => 0x02,
            Self::PartnerPanic => 0x03,
            Self::Busy => 0x08,
            Self::AdapterFail => 0x10,
            Self::EntryOverwritten => 0x20,
            Self::HeaderDescriptorError => 0xF1,
            Self::Ping => 0xF5,
            Self::PingResponse => 0xF6,
            Self::Other(code) => code,
        }
    }

    /// Whether a client takes it as good.
    #[must_use]
    pub const fn is_ok(self) -> bool {
        matches!(self, Self::Ok | Self::Ok2)
    }
}

/// Who counts the payload formats. PAPR's servers have LINUX at 5 and messages in the entry at 6; QEMU and
/// SLOF have them at 6 and 7. SRP, MAD, OS400 and AIX are the same in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbering {
    /// 5 LINUX, 6 message in CRQ.
    Papr,
    /// 6 LINUX, 7 message in CRQ.
    Qemu,
}

/// Formats of a command or response entry's payload, for logs and for clients that speak one
/// [`Numbering`]. [`Entry::read`] needs none: PING is known by its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadFormat {
    /// An IU of SRP.
    Srp,
    /// A management datagram.
    Mad,
    /// OS/400's own.
    Os400,
    /// AIX's own.
    Aix,
    /// Linux's own.
    Linux,
    /// All of the message is in the entry.
    MessageInCrq,
}

impl PayloadFormat {
    /// All formats.
    pub const ALL: [Self; 6] =
        [Self::Srp, Self::Mad, Self::Os400, Self::Aix, Self::Linux, Self::MessageInCrq];

    /// The code of this format.
    #[must_use]
    pub const fn code_in(self, numbering: Numbering) -> u8 {
        match (self, numbering) {
            (Self::Srp, _) => format::SRP,
            (Self::Mad, _) => format::MAD,
            (Self::Os400, _) => 0x03,
            (Self::Aix, _) => 0x04,
            (Self::Linux, Numbering::Papr) => 0x05,
            (Self::Linux, Numbering::Qemu) => 0x06,
            (Self::MessageInCrq, Numbering::Papr) => 0x06,
            (Self::MessageInCrq, Numbering::Qemu) => 0x07,
        }
    }

    /// The format with this code; `None` when the numbering has none.
    #[must_use]
    pub fn from_code(code: u8, numbering: Numbering) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.code_in(numbering) == code)
    }
}
