//! What crosses between the poll groups (each on its core) and the coordinator (on the control
//! core), over single-producer single-consumer queues.

use std::sync::Arc;

use lunar_offload_proto::ring::RingLayout;
use lunar_platform::{PeerAddress, Platform};
use lunar_srp::login::{LoginReject, LoginRequest, PortId};

use crate::configuration::Configuration;
use crate::statistics::GroupStatistics;

/// Why a gate on a logical unit is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateCause {
    /// LOGICAL UNIT RESET (SAM-6 7.7): every task of the unit is aborted, every nexus gets a unit
    /// attention.
    LogicalUnitReset,
    /// CLEAR TASK SET with TST = 0 (SAM-6 7.6): every task is aborted; nexuses other than `origin`
    /// get COMMANDS CLEARED BY ANOTHER INITIATOR.
    ClearTaskSet {
        /// Handle of the nexus that asked.
        origin: u32,
    },
    /// A task that is not SIMPLE with TST = 0 (SAM-6 8.2): nothing is aborted, and the gate is closed until the task
    /// is over.
    Alone,
}

/// One ring pair in host memory, for one poll group.
#[derive(Clone, Debug)]
pub struct RingAttachment {
    /// Which of the agent's offers it is from; comes back with the answer.
    pub offer: u64,
    /// Export blob of the arena that holds both rings.
    pub ring_blob: Vec<u8>,
    /// Export blob of the arena that holds the data area.
    pub data_blob: Vec<u8>,
    /// The ring pair's number on the host.
    pub ring: u16,
    /// Both rings' size.
    pub layout: RingLayout,
    /// Offset of the submission ring in its arena, in bytes.
    pub submission_offset: u64,
    /// Offset of the completion ring in its arena, in bytes.
    pub completion_offset: u64,
    /// Offset of this group's data area in its arena, in bytes.
    pub data_offset: u64,
    /// Length of the data area in bytes.
    pub data_bytes: u64,
    /// Sequence of the next submission.
    pub submission_sequence: u32,
    /// Sequence of the next completion.
    pub completion_sequence: u32,
}

/// From the coordinator to a poll group.
pub enum ToGroup<P: Platform> {
    /// A connection request whose nexus belongs on this group.
    Login {
        /// The connection to accept or reject.
        connection: P::Connection,
        /// The parsed request.
        request: LoginRequest,
        /// Who asks.
        peer: PeerAddress,
    },
    /// A new configuration snapshot.
    Configure(Arc<Configuration>),
    /// Close the gate of `unit`: hold new tasks, carry out `cause`, acknowledge when drained.
    CloseGate {
        /// Name of this gate.
        gate: u32,
        /// Handle of the unit.
        unit: u32,
        /// Why.
        cause: GateCause,
    },
    /// Open it again.
    OpenGate {
        /// Name of the gate.
        gate: u32,
        /// Handle of the unit.
        unit: u32,
    },
    /// The gate that this group asked for did its work in every group: the function may answer.
    CompleteGate {
        /// The group's name for the function.
        request: u64,
    },
    /// The host's rings are there (first time, or again after an agent restart).
    AttachRing(Box<RingAttachment>),
    /// The agent is gone: keep operations in flight, hold new ones for a bounded time.
    DetachRing,
    /// The host agreed on every operation in flight; the ring may run again.
    ResumeRing,
    /// The host's memory is gone or an arena was revoked: operations in flight are lost.
    ResetRing,
    /// The host's memory is about to go: use it no more, and say when nothing of it is in use.
    ReleaseRing,
    /// Close every channel of a nexus (handle).
    CloseNexus {
        /// Its handle.
        nexus: u32,
    },
    /// Fill this and send it back.
    Statistics(Box<GroupStatistics>),
    /// Close every channel of a target (handle), or of all.
    CloseChannels {
        /// Handle of the target, `None` for all.
        target: Option<u32>,
    },
}

/// Something the agent's log should tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new nexus.
    Login {
        /// Its handle.
        nexus: u32,
        /// Initiator port.
        initiator: PortId,
        /// Handle of the target.
        target: u32,
        /// The peer's address.
        peer: PeerAddress,
    },
    /// A nexus's last channel is gone.
    Logout {
        /// Its handle.
        nexus: u32,
    },
    /// A login was refused.
    Rejected {
        /// Who asked.
        peer: PeerAddress,
        /// Initiator port, where the request could be read.
        initiator: Option<PortId>,
        /// The reason code.
        reason: LoginReject,
        /// The reason in words.
        text: String,
    },
    /// A channel was closed by the target.
    ChannelClosed {
        /// Handle of its nexus.
        nexus: u32,
        /// Why.
        reason: CloseReason,
    },
    /// The ring was closed because the host wrote something impossible.
    RingFault {
        /// Group whose ring it is.
        group: u16,
        /// The reason in words.
        text: String,
    },
    /// The way to the host's memory was cut; the ring rests until the host offers its memory again.
    RingCut {
        /// Group whose ring it is.
        group: u16,
    },
    /// The device died; every channel is lost.
    DeviceFatal,
}

/// Why the target closed a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer disconnected or vanished.
    PeerGone,
    /// The initiator logged out (SRP_I_LOGOUT).
    Logout,
    /// An IU that is no SRP IU.
    MalformedIu,
    /// An IU longer than the login allowed, or shorter than its type.
    IuLength,
    /// More commands than credits.
    CreditOverrun,
    /// The same initiator port logged in again with multichannel action SINGLE.
    Replaced,
    /// A work request failed.
    WorkRequestFailed,
    /// The management closed it.
    Administrative,
    /// Aborted tasks did not let go of the queue pair in time.
    Stuck,
}

impl CloseReason {
    /// The reason in words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::PeerGone => "the peer disconnected",
            Self::Logout => "the initiator logged out",
            Self::MalformedIu => "an information unit could not be understood",
            Self::IuLength => {
                "an information unit was longer than the login allowed, or shorter than its type"
            }
            Self::CreditOverrun => "the initiator sent more commands than its request limit",
            Self::Replaced => "the initiator logged in again with a single channel",
            Self::WorkRequestFailed => "a work request failed",
            Self::Administrative => "the target was disabled or the channel closed by management",
            Self::Stuck => "aborted tasks did not release the channel in time",
        }
    }
}

/// From a poll group to the coordinator.
pub enum FromGroup {
    /// The configuration with this generation is in force in the group, and nothing decided under
    /// an older one is outstanding where that matters.
    Configured {
        /// Its generation.
        generation: u32,
    },
    /// A task management function needs a gate over all groups.
    RequestGate {
        /// The group's name for the function that asks; comes back when the gate did its work.
        request: u64,
        /// Handle of the unit.
        unit: u32,
        /// Why.
        cause: GateCause,
    },
    /// The task is over that a gate was closed for.
    GateOver {
        /// The group's name for it, as in its request.
        request: u64,
    },
    /// The group's shard of the unit is quiet.
    GateClosed {
        /// Name of the gate.
        gate: u32,
    },
    /// For the log.
    Event(Event),
    /// Filled statistics.
    Statistics(Box<GroupStatistics>),
    /// The host's memory is not used any more.
    RingReleased,
    /// The ring was attached, with what is in flight: (token, sequence) pairs.
    RingAttached {
        /// The offer that is answered.
        offer: u64,
        /// The ring's number.
        ring: u16,
        /// Operations in flight.
        in_flight: Vec<(u64, u32)>,
        /// Why the attachment failed, in words.
        error: Option<String>,
    },
}
