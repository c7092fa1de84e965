//! What the core wants done. The shell carries effects out in the order they come.

use std::borrow::Cow;

use lunar_handlers::Request;
use lunar_offload_proto::control::{Statistics, ToCard};
use lunar_offload_proto::ring::{CompletionEntry, SideRecord};
use lunar_scsi::reservations::record::Record;

use crate::forwarded::Forwarded;
use crate::operations::OperationId;
use crate::units::DeviceHandle;

/// A checked range of a ring's data area, or of the shell's memory for copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRange {
    /// The arena, or [`crate::COPY_ARENA`].
    pub arena: u16,
    /// Bytes from the arena's start.
    pub offset: u64,
    /// Length in bytes, above 0.
    pub length: u32,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send `message` to the card; dropped when there is no control channel.
    SendControl(Box<ToCard>),
    /// Close the control channel after what was sent; then [`crate::Core::on_control_lost`].
    CloseControl {
        /// Why, for the log.
        reason: String,
    },
    /// Give `request` to the handler; its end comes back through [`crate::Core::on_outcome`].
    Execute {
        /// Names it there.
        operation: OperationId,
        /// The handler.
        device: DeviceHandle,
        /// What to do.
        request: Request,
        /// Where the data lies; `None` for a flush.
        data: Option<DataRange>,
    },
    /// Ask the handler to cancel; its answer comes back through [`crate::Core::on_cancel_answer`].
    Cancel {
        /// The operation.
        operation: OperationId,
        /// The handler that has it.
        device: DeviceHandle,
    },
    /// Copy a parameter list out of the data area and bring it to [`crate::Core::on_parameters`].
    FetchParameters {
        /// The command that it is for.
        command: Box<Forwarded>,
        /// Where it lies.
        data: DataRange,
    },
    /// Copy parameter data into the data area, before the completion that comes next.
    StoreParameters {
        /// Where it goes.
        data: DataRange,
        /// The data, as long as the range.
        bytes: Vec<u8>,
    },
    /// Publish a completion (the sequence is set by the ring).
    Complete {
        /// Index of the ring.
        ring: u16,
        /// The entry.
        entry: CompletionEntry,
        /// Its side record, when it has sense data.
        side: Option<Box<SideRecord>>,
    },
    /// Stop polling the ring and publish nothing more in it.
    CloseRing {
        /// Index of the ring.
        ring: u16,
        /// Why.
        reason: String,
    },
    /// Empty the ring for a card that starts anew: all words and sequences 0. Nothing of the older
    /// epoch is outstanding.
    ResetRing {
        /// Index of the ring.
        ring: u16,
    },
    /// Keep these with the rings, where they outlive the agent, before the effects after this one:
    /// the next agent gives them to [`crate::CoreConfig`].
    RememberCard {
        /// The card's epoch.
        epoch: u64,
        /// The last configuration generation that was used.
        configuration_generation: u32,
    },
    /// Keep a unit's reservations where they outlive a loss of power, and bring the end to
    /// [`crate::Core::on_reservations_kept`]. There is one at a time for each unit.
    KeepReservations {
        /// Handle of the unit.
        unit: u32,
        /// Names this one there.
        keep: u64,
        /// What to keep.
        record: Box<Record>,
    },
    /// What [`crate::Core::clear_reservations`] or [`crate::Core::replace_reservations`] asked for is enforced by the
    /// card, or not possible, for a reason in words.
    ReservationsChanged {
        /// The name that it was asked under.
        id: u64,
        /// How it ended.
        result: Result<(), String>,
    },
    /// The card uses the arena no more, as [`crate::Core::revoke`] asked.
    ArenaRevoked {
        /// The arena.
        arena: u16,
    },
    /// The card's counters, as [`crate::Core::request_statistics`] asked. As the card wrote them.
    Statistics(Box<Statistics>),
    /// Write a log line.
    Log(LogEvent),
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For developers.
    Debug,
    /// Worth knowing.
    Info,
    /// Something is wrong and work goes on.
    Warning,
    /// Something failed and stays failed.
    Error,
}

/// A line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEvent {
    /// How much it matters.
    pub level: Level,
    /// Stable name of the kind of event, for filters.
    pub code: Cow<'static, str>,
    /// The text: object, value, reason.
    pub text: String,
}

impl LogEvent {
    pub(crate) fn new(level: Level, code: &'static str, text: impl Into<String>) -> Self {
        Self { level, code: Cow::Borrowed(code), text: text.into() }
    }
}
