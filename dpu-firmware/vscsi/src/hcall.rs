//! What the hypervisor's return codes mean for a server (PAPR, hypervisor call functions). Only numbers
//! and their reading; who makes the calls is the caller's business.

/// Return codes of the calls that VSCSI makes.
pub mod code {
    /// H_SUCCESS.
    pub const SUCCESS: i64 = 0;
    /// H_BUSY: call again. QEMU's H_SEND_CRQ gives it when the partner's queue is full.
    pub const BUSY: i64 = 1;
    /// H_CLOSED: the partner has no queue. To H_REG_CRQ that is no error.
    pub const CLOSED: i64 = 2;
    /// H_IN_PROGRESS: call again.
    pub const IN_PROGRESS: i64 = 14;
    /// H_LONG_BUSY_ORDER_1_MSEC: call again in about a millisecond. The five codes above it are about
    /// ten times longer each.
    pub const LONG_BUSY_FIRST: i64 = 9900;
    /// H_LONG_BUSY_ORDER_100_SEC.
    pub const LONG_BUSY_LAST: i64 = 9905;
    /// H_HARDWARE.
    pub const HARDWARE: i64 = -1;
    /// H_PARAMETER: an argument is wrong; for H_SEND_CRQ also that the caller has no queue.
    pub const PARAMETER: i64 = -4;
    /// H_NOT_FOUND.
    pub const NOT_FOUND: i64 = -7;
    /// H_PERMISSION: the partner's window is closed to us.
    pub const PERMISSION: i64 = -11;
    /// H_DROPPED: the partner's queue is full.
    pub const DROPPED: i64 = -12;
    /// H_SOURCE_PARM: the source of a copy is wrong.
    pub const SOURCE_PARM: i64 = -13;
    /// H_DEST_PARM: the destination of a copy is wrong.
    pub const DEST_PARM: i64 = -14;
    /// H_REMOTE_PARM: the partner's adapter is wrong.
    pub const REMOTE_PARM: i64 = -15;
    /// H_RESOURCE: to H_REG_CRQ, a queue is registered already.
    pub const RESOURCE: i64 = -16;
}

/// Nanoseconds in a millisecond.
const MILLISECOND_NS: u64 = 1_000_000;

/// How long the hypervisor wants to be left alone, in nanoseconds, when it is busy.
fn busy_ns(rc: i64) -> Option<u64> {
    match rc {
        code::BUSY | code::IN_PROGRESS => Some(MILLISECOND_NS),
        code::LONG_BUSY_FIRST..=code::LONG_BUSY_LAST => {
            let order = u32::try_from(rc.saturating_sub(code::LONG_BUSY_FIRST)).unwrap_or(0);
            Some(10_u64.saturating_pow(order).saturating_mul(MILLISECOND_NS))
        }
        _ => None,
    }
}

/// What H_REG_CRQ came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// The queue is registered, and so is the client's.
    PartnerThere,
    /// The queue is registered; the client has none.
    PartnerAbsent,
    /// A queue is registered already: an earlier server of this adapter left it.
    AlreadyRegistered,
    /// To be repeated after so many nanoseconds.
    Busy(u64),
    /// The call fails, with this code.
    Failed(i64),
}

impl Registered {
    /// Reads the return code.
    #[must_use]
    pub fn from_code(rc: i64) -> Self {
        match rc {
            code::SUCCESS => Self::PartnerThere,
            code::CLOSED => Self::PartnerAbsent,
            code::RESOURCE => Self::AlreadyRegistered,
            _ => busy_ns(rc).map_or(Self::Failed(rc), Self::Busy),
        }
    }
}

/// What H_FREE_CRQ came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freed {
    /// The queue is free.
    Done,
    /// To be repeated after so many nanoseconds.
    Busy(u64),
    /// The call fails, with this code.
    Failed(i64),
}

impl Freed {
    /// Reads the return code. An adapter without a queue is as free as one can be.
    #[must_use]
    pub fn from_code(rc: i64) -> Self {
        match rc {
            code::SUCCESS | code::NOT_FOUND => Self::Done,
            _ => busy_ns(rc).map_or(Self::Failed(rc), Self::Busy),
        }
    }
}

/// What H_SEND_CRQ came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The entry is in the client's queue.
    Delivered,
    /// The client has no queue (any more).
    PartnerAbsent,
    /// The client's queue is full: the same entry is to be sent again.
    QueueFull,
    /// The call fails, with this code.
    Failed(i64),
}

impl Sent {
    /// Reads the return code.
    #[must_use]
    pub fn from_code(rc: i64) -> Self {
        match rc {
            code::SUCCESS => Self::Delivered,
            code::CLOSED => Self::PartnerAbsent,
            code::DROPPED | code::BUSY => Self::QueueFull,
            _ => Self::Failed(rc),
        }
    }
}

/// What H_COPY_RDMA came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// All bytes are there.
    Done,
    /// The range is not, or not with the access it needs, in the client's I/O window: the client's fault,
    /// and its command's error.
    OutsideWindow,
    /// The client's window is closed: the connection is broken, and an FF entry says why, now or soon.
    WindowClosed,
    /// The call fails, with this code.
    Failed(i64),
}

impl Copied {
    /// Reads the return code of a copy to or from the client's window. `to_client`: which of the two ends
    /// is the client's.
    #[must_use]
    pub fn from_code(rc: i64, to_client: bool) -> Self {
        match (rc, to_client) {
            (code::SUCCESS, _) => Self::Done,
            (code::PERMISSION, _) => Self::WindowClosed,
            (code::DEST_PARM, true) | (code::SOURCE_PARM, false) => Self::OutsideWindow,
            _ => Self::Failed(rc),
        }
    }
}
