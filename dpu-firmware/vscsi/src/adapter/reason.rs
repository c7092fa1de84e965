//! Why a connection ended, in words for the log.

use core::fmt;

use lunar_srp::iu::Malformed;

use super::{CALL_PATIENCE_NS, SEND_PATIENCE_NS};
use crate::IU_BYTES_MAX;

const SECOND_NS: u64 = 1_000_000_000;

/// Why a connection ended, or why the adapter was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The configuration disabled the adapter.
    Disabled,
    /// FF01.
    PartnerFailed,
    /// FF02.
    PartnerDeregistered,
    /// FF06.
    PartnerMigrated,
    /// The client's queue is gone, and its FF entry did not arrive yet.
    PartnerAbsent,
    /// The client's I/O window is closed.
    WindowClosed,
    /// The client sent INIT again.
    ClientInitialises,
    /// The client sent SRP_I_LOGOUT.
    LoggedOut,
    /// An entry has an IU length that no IU can have, in bytes.
    IuLength(u16),
    /// An entry is of no known kind.
    UnknownEntry,
    /// An IU's place is not in the client's window, or not with the access it needs.
    IuOutsideWindow,
    /// A datagram was sent before the last one was answered.
    SecondMad,
    /// A datagram is shorter than its header; its bytes.
    ShortMad(u16),
    /// An IU other than a login came before the login; its type.
    BeforeLogin(u8),
    /// An IU of a type that this server asks nobody for; its type.
    UnexpectedIu(u8),
    /// An IU is none.
    Malformed(Malformed),
    /// The reserved bits of an SRP_CMD's additional CDB length are set; the field.
    ReservedCdbBits(u8),
    /// More requests than the limit allows, which is this.
    OverLimit(u32),
    /// The client does not read its queue.
    QueueStaysFull,
    /// Requests came while the client was to be suspended, and were dropped.
    MissedWhileSuspended,
    /// H_SEND_CRQ failed with this code.
    SendFailed(i64),
    /// H_COPY_RDMA failed with this code.
    CopyFailed(i64),
    /// H_REG_CRQ failed with this code.
    RegisterFailed(i64),
    /// H_REG_CRQ stays busy.
    RegisterBusy,
    /// H_FREE_CRQ failed with this code.
    FreeFailed(i64),
    /// H_FREE_CRQ stays busy.
    FreeBusy,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Disabled => f.write_str("the adapter was disabled"),
            Self::PartnerFailed => f.write_str("the client partition failed (FF01)"),
            Self::PartnerDeregistered => f.write_str("the client freed its queue (FF02)"),
            Self::PartnerMigrated => f.write_str("the client partition was moved (FF06)"),
            Self::PartnerAbsent => f.write_str("the client has no queue any more (H_CLOSED)"),
            Self::WindowClosed => {
                f.write_str("the client's I/O window is closed to us (H_PERMISSION)")
            }
            Self::ClientInitialises => f.write_str("the client started over (INIT)"),
            Self::LoggedOut => f.write_str("the client logged out"),
            Self::IuLength(bytes) => write!(
                f,
                "the client announced an IU of {bytes} bytes; VSCSI's have 1 to {IU_BYTES_MAX}"
            ),
            Self::UnknownEntry => {
                f.write_str("the client sent a queue entry of no known kind or format")
            }
            Self::IuOutsideWindow => f.write_str(
                "the client's IU lies where its I/O window maps nothing, or not for us to read and write",
            ),
            Self::SecondMad => f.write_str(
                "the client sent a management datagram before it had the answer to the last one",
            ),
            Self::ShortMad(bytes) => {
                write!(f, "the client sent a management datagram of {bytes} bytes; a header has 16")
            }
            Self::BeforeLogin(code) => {
                write!(f, "the client sent an IU of type {code:#04x} before it logged in")
            }
            Self::UnexpectedIu(code) => {
                write!(f, "the client sent an IU of type {code:#04x}, which nobody asked for")
            }
            Self::Malformed(malformed) => write!(f, "the client sent a wrong IU: {malformed}"),
            Self::ReservedCdbBits(field) => write!(
                f,
                "the client sent a command with an additional CDB length of {field:#04x}, whose low two \
                 bits are reserved"
            ),
            Self::OverLimit(limit) => {
                write!(f, "the client sent more requests than its limit of {limit} allows")
            }
            Self::QueueStaysFull => write!(
                f,
                "the client has not read its full queue for {} s",
                SEND_PATIENCE_NS / SECOND_NS
            ),
            Self::MissedWhileSuspended => f.write_str(
                "requests that the client sent while it was to be suspended were dropped: it is to \
                 connect again and to repeat them",
            ),
            Self::SendFailed(code) => failed(f, "H_SEND_CRQ", code),
            Self::CopyFailed(code) => failed(f, "H_COPY_RDMA", code),
            Self::RegisterFailed(code) => failed(f, "H_REG_CRQ", code),
            Self::FreeFailed(code) => failed(f, "H_FREE_CRQ", code),
            Self::RegisterBusy => stays_busy(f, "H_REG_CRQ"),
            Self::FreeBusy => stays_busy(f, "H_FREE_CRQ"),
        }
    }
}

fn failed(f: &mut fmt::Formatter<'_>, call: &str, code: i64) -> fmt::Result {
    write!(f, "{call} failed with {code}; does the unit address belong to a v-scsi-host adapter?")
}

fn stays_busy(f: &mut fmt::Formatter<'_>, call: &str) -> fmt::Result {
    write!(
        f,
        "{call} was busy for {} s; enable the adapter again when the hypervisor has calmed down",
        CALL_PATIENCE_NS / SECOND_NS
    )
}
