//! What an initiator sends on a live channel: SRP_CMD, SRP_TSK_MGMT, SRP_I_LOGOUT, SRP_CRED_RSP and
//! SRP_AER_RSP.

use core::fmt;

use lunar_scsi::task_set::{TaskAttribute, TaskManagementFunction};
use zerocopy::IntoBytes;

use super::{CDB_BYTES_MAX, Malformed, header, put};
use crate::descriptor::{self, BufferFault, DESCRIPTOR_BYTES, DataBuffer, Descriptor};
use crate::wire::{self, opcode};

/// Bytes of the CDB inside SRP_CMD's fixed part.
pub const FIXED_CDB_BYTES: usize = 16;
/// Where the CDB starts, in bytes from the IU's first byte (SRP 6.8); additional CDB bytes follow its 16.
pub const CDB_OFFSET: u16 = 32;
/// The formats byte of a command without data.
const NO_DATA: u8 = 0;
/// The formats byte of a command with one direct data-in descriptor.
const DIRECT_IN: u8 = wire::format::DIRECT;
/// The formats byte of a command with one direct data-out descriptor.
const DIRECT_OUT: u8 = wire::format::DIRECT << 4;
const _: () = assert!(CDB_OFFSET as usize == core::mem::offset_of!(wire::Command, cdb));

/// An IU from an initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// SRP_CMD.
    Command(Command<'a>),
    /// SRP_TSK_MGMT.
    TaskManagement(TaskManagement),
    /// SRP_I_LOGOUT: the initiator wants the channel closed.
    Logout {
        /// The IU's tag.
        tag: u64,
    },
    /// SRP_CRED_RSP: answers an SRP_CRED_REQ.
    CredResponse {
        /// The tag of the request that is answered.
        tag: u64,
    },
    /// SRP_AER_RSP: answers an SRP_AER_REQ.
    AerResponse {
        /// The tag of the request that is answered.
        tag: u64,
    },
}

/// An SRP_CMD (SRP 6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// Chosen by the initiator; echoed in the response and meaningless otherwise.
    pub tag: u64,
    /// The LUN field as it came (SAM-6 4.7).
    pub lun: [u8; 8],
    /// Task attribute; unknown codes count as ORDERED, the strictest.
    pub attribute: TaskAttribute,
    /// When the initiator wants a solicited event for the response.
    pub solicited: SolicitedNotification,
    /// 16 bytes and the additional ones: at most [`CDB_BYTES_MAX`].
    pub cdb: &'a [u8],
    /// Data from the initiator.
    pub data_out: DataBuffer,
    /// Data to the initiator.
    pub data_in: DataBuffer,
}

/// An SRP_TSK_MGMT (SRP 6.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagement {
    /// Chosen by the initiator; echoed in the response.
    pub tag: u64,
    /// The LUN field as it came.
    pub lun: [u8; 8],
    /// What to do; `None` for a code that SRP does not define.
    pub function: Option<TaskManagementFunction>,
    /// The task to abort, for ABORT TASK.
    pub task_tag: u64,
    /// When the initiator wants a solicited event for the response.
    pub solicited: SolicitedNotification,
}

/// The requester's wish for solicited events (SRP 5.2): the bits of the IU's byte for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SolicitedNotification(u8);

impl SolicitedNotification {
    /// SCSOLNT: for a successful end.
    const SUCCESS: u8 = 0x02;
    /// UCSOLNT: for an unsuccessful end.
    const FAILURE: u8 = 0x04;

    /// A wish for events at successful and at unsuccessful ends.
    #[must_use]
    pub const fn new(on_success: bool, on_failure: bool) -> Self {
        let success = if on_success { Self::SUCCESS } else { 0 };
        let failure = if on_failure { Self::FAILURE } else { 0 };
        Self(success | failure)
    }

    #[inline]
    fn from_wire(byte: u8) -> Self {
        Self(byte & (Self::SUCCESS | Self::FAILURE))
    }

    #[inline]
    fn to_wire(self) -> u8 {
        self.0
    }

    /// Whether a response with this outcome is to raise a solicited event.
    #[inline]
    #[must_use]
    pub fn wanted(self, success: bool) -> bool {
        self.0 & if success { Self::SUCCESS } else { Self::FAILURE } != 0
    }
}

/// Why an IU was not parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IuError {
    /// Not answerable: close the channel.
    Malformed(Malformed),
    /// An SRP_CMD whose header is sound, so that it can be answered and refused. It took a credit.
    Command {
        /// The command's tag.
        tag: u64,
        /// The command's LUN field.
        lun: [u8; 8],
        /// When the initiator wants a solicited event for the response.
        solicited: SolicitedNotification,
        /// What is wrong with it.
        reason: CommandFault,
    },
}

impl fmt::Display for IuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(malformed) => malformed.fmt(f),
            Self::Command { tag, reason, .. } => write!(f, "command with tag {tag:#x}: {reason}"),
        }
    }
}

impl core::error::Error for IuError {}

impl From<Malformed> for IuError {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// What contradicts itself in an SRP_CMD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandFault {
    /// The additional CDB bytes reach beyond the IU's end.
    CdbBeyondIu {
        /// Additional bytes the IU says it has.
        additional_bytes: u8,
        /// The IU's length in bytes.
        iu_bytes: u32,
    },
    /// The data-out descriptors are wrong.
    DataOut(BufferFault),
    /// The data-in descriptors are wrong.
    DataIn(BufferFault),
}

impl fmt::Display for CommandFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CdbBeyondIu { additional_bytes, iu_bytes } => write!(
                f,
                "{additional_bytes} additional CDB bytes do not fit an IU of {iu_bytes} bytes"
            ),
            Self::DataOut(fault) => write!(f, "data-out buffer: {fault}"),
            Self::DataIn(fault) => write!(f, "data-in buffer: {fault}"),
        }
    }
}

/// The fixed part of an SRP_CMD: enough to answer it, whatever follows.
#[derive(Clone, Copy, Debug)]
pub struct CommandHead<'a> {
    fixed: &'a wire::Command,
    iu: &'a [u8],
}

/// The head of the SRP_CMD in `iu`: the data path's entry. `None` for everything else, which [`parse`]
/// tells apart.
#[inline]
#[must_use]
pub fn command_head(iu: &[u8]) -> Option<CommandHead<'_>> {
    let fixed: &wire::Command = header(iu).ok()?;
    (fixed.opcode == opcode::COMMAND).then_some(CommandHead { fixed, iu })
}

impl CommandHead<'_> {
    /// [`Command::tag`].
    #[inline]
    #[must_use]
    pub fn tag(&self) -> u64 {
        self.fixed.tag.get()
    }

    /// [`Command::lun`].
    #[inline]
    #[must_use]
    pub fn lun(&self) -> [u8; 8] {
        self.fixed.lun
    }

    /// [`Command::attribute`].
    #[inline]
    #[must_use]
    pub fn attribute(&self) -> TaskAttribute {
        attribute_from_wire(self.fixed.attribute)
    }

    /// [`Command::solicited`].
    #[inline]
    #[must_use]
    pub fn solicited(&self) -> SolicitedNotification {
        SolicitedNotification::from_wire(self.fixed.solicited)
    }

    /// The CDB's first 16 bytes, which is all of it unless [`Self::cdb_bytes`] says more.
    #[inline]
    #[must_use]
    pub fn cdb(&self) -> [u8; FIXED_CDB_BYTES] {
        self.fixed.cdb
    }

    /// Bytes of the CDB, which starts [`CDB_OFFSET`] bytes into the IU, wherever that ends.
    #[inline]
    #[must_use]
    pub fn cdb_bytes(&self) -> u16 {
        // The low two bits are reserved: the field counts bytes, in dwords.
        (FIXED_CDB_BYTES as u16).saturating_add(u16::from(self.fixed.additional_cdb & !3))
    }

    /// Where the CDB ends and the data buffers' descriptors start, in bytes from the IU's first.
    #[inline]
    fn buffers_offset(&self) -> usize {
        usize::from(CDB_OFFSET.saturating_add(self.cdb_bytes()))
    }

    /// Reads the data buffers into the places for them, which hold [`DataBuffer::None`]. Gives whether
    /// the rest of the IU is sound; the command must be refused if not, and [`parse`] says why.
    /// `immediate_offset`: where the channel's login put immediate data, if it granted it.
    ///
    /// The usual commands have no data or one direct descriptor. Those are written where they belong in
    /// arms of their own; carried through a common result they cost three times the instructions.
    #[inline(always)]
    pub fn read_buffers(
        &self,
        immediate_offset: Option<u16>,
        data_out: &mut DataBuffer,
        data_in: &mut DataBuffer,
    ) -> bool {
        let offset = self.buffers_offset();
        let place = match self.fixed.formats {
            DIRECT_IN => data_in,
            DIRECT_OUT => data_out,
            NO_DATA => return self.iu.len() >= offset,
            _ => return self.read_others(immediate_offset, data_out, data_in, offset),
        };
        match descriptor::direct(self.iu, offset) {
            Some(descriptor) => {
                *place = DataBuffer::Direct(descriptor);
                true
            }
            None => false,
        }
    }

    #[inline(never)]
    fn read_others(
        &self,
        immediate_offset: Option<u16>,
        data_out: &mut DataBuffer,
        data_in: &mut DataBuffer,
        offset: usize,
    ) -> bool {
        match parse_buffers(self.fixed, self.iu, offset, immediate_offset) {
            Ok(buffers) => {
                (*data_out, *data_in) = buffers;
                true
            }
            Err(_) => false,
        }
    }
}

/// Parses one IU from an initiator. Bytes behind the IU's last field are ignored, as are reserved
/// fields.
///
/// # Errors
/// [`IuError::Malformed`] when the channel must be closed, [`IuError::Command`] when the command
/// must be refused.
pub fn parse(iu: &[u8]) -> Result<Request<'_>, IuError> {
    parse_granted(iu, None)
}

/// As [`parse`], on a channel whose login put immediate data at `immediate_offset` (SRP-2).
///
/// # Errors
/// As [`parse`].
pub fn parse_granted(iu: &[u8], immediate_offset: Option<u16>) -> Result<Request<'_>, IuError> {
    match iu.first() {
        Some(&opcode::COMMAND) => {
            let fixed: &wire::Command = header(iu)?;
            let head = CommandHead { fixed, iu };
            let command = parse_command(&head, immediate_offset);
            command.map(Request::Command).map_err(|reason| IuError::Command {
                tag: head.tag(),
                lun: head.lun(),
                solicited: head.solicited(),
                reason,
            })
        }
        Some(&opcode) => Ok(parse_rare(iu, opcode)?),
        None => Err(Malformed::Empty.into()),
    }
}

fn parse_command<'a>(
    head: &CommandHead<'a>,
    immediate_offset: Option<u16>,
) -> Result<Command<'a>, CommandFault> {
    let CommandHead { fixed, iu } = *head;
    let offset = head.buffers_offset();
    let cdb = iu.get(usize::from(CDB_OFFSET)..offset).ok_or(CommandFault::CdbBeyondIu {
        additional_bytes: fixed.additional_cdb & !3,
        iu_bytes: u32::try_from(iu.len()).unwrap_or(u32::MAX),
    })?;
    let (data_out, data_in) = parse_buffers(fixed, iu, offset, immediate_offset)?;
    Ok(Command {
        tag: head.tag(),
        lun: head.lun(),
        attribute: head.attribute(),
        solicited: head.solicited(),
        cdb,
        data_out,
        data_in,
    })
}

/// Both buffers, whatever their formats.
fn parse_buffers(
    fixed: &wire::Command,
    iu: &[u8],
    offset: usize,
    immediate_offset: Option<u16>,
) -> Result<(DataBuffer, DataBuffer), CommandFault> {
    // Data-out descriptors come first (SRP 6.8).
    let (data_out, data_in_offset) = match fixed.formats >> 4 {
        wire::format::IMMEDIATE => descriptor::parse_immediate(iu, offset, immediate_offset),
        format => descriptor::parse(iu, offset, format, fixed.data_out_count),
    }
    .map_err(CommandFault::DataOut)?;
    let (format, count) = (fixed.formats & 0x0f, fixed.data_in_count);
    let (data_in, _) =
        descriptor::parse(iu, data_in_offset, format, count).map_err(CommandFault::DataIn)?;
    Ok((data_out, data_in))
}

/// Everything that is not a command.
#[inline(never)]
fn parse_rare(iu: &[u8], opcode: u8) -> Result<Request<'_>, Malformed> {
    let tag = |iu| header(iu).map(|tagged: &wire::Tagged| tagged.tag.get());
    match opcode {
        opcode::TASK_MANAGEMENT => {
            let request: &wire::TaskManagement = header(iu)?;
            Ok(Request::TaskManagement(TaskManagement {
                tag: request.tag.get(),
                lun: request.lun,
                function: function_from_wire(request.function),
                task_tag: request.task_tag.get(),
                solicited: SolicitedNotification::from_wire(request.solicited),
            }))
        }
        opcode::INITIATOR_LOGOUT => Ok(Request::Logout { tag: tag(iu)? }),
        opcode::CREDIT_RESPONSE => Ok(Request::CredResponse { tag: tag(iu)? }),
        opcode::EVENT_RESPONSE => Ok(Request::AerResponse { tag: tag(iu)? }),
        unknown => Err(Malformed::UnknownOpcode(unknown)),
    }
}

/// SRP 6.8 table of task attributes.
#[inline]
fn attribute_from_wire(code: u8) -> TaskAttribute {
    if code == 0 { TaskAttribute::Simple } else { rare_attribute(code) }
}

#[inline(never)]
fn rare_attribute(code: u8) -> TaskAttribute {
    match code {
        0 => TaskAttribute::Simple,
        1 => TaskAttribute::HeadOfQueue,
        4 => TaskAttribute::Aca,
        _ => TaskAttribute::Ordered,
    }
}

fn attribute_code(attribute: TaskAttribute) -> u8 {
    match attribute {
        TaskAttribute::Simple => 0,
        TaskAttribute::HeadOfQueue => 1,
        TaskAttribute::Ordered => 2,
        TaskAttribute::Aca => 4,
    }
}

/// SRP 6.7 table of task management functions.
fn function_from_wire(code: u8) -> Option<TaskManagementFunction> {
    match code {
        0x01 => Some(TaskManagementFunction::AbortTask),
        0x02 => Some(TaskManagementFunction::AbortTaskSet),
        0x04 => Some(TaskManagementFunction::ClearTaskSet),
        0x08 => Some(TaskManagementFunction::LogicalUnitReset),
        0x40 => Some(TaskManagementFunction::ClearAca),
        _ => None,
    }
}

/// The code of `function` in SRP_TSK_MGMT (SRP 6.7).
#[must_use]
pub fn function_code(function: TaskManagementFunction) -> u8 {
    match function {
        TaskManagementFunction::AbortTask => 0x01,
        TaskManagementFunction::AbortTaskSet => 0x02,
        TaskManagementFunction::ClearTaskSet => 0x04,
        TaskManagementFunction::LogicalUnitReset => 0x08,
        TaskManagementFunction::ClearAca => 0x40,
    }
}

/// How an initiator lays out the data buffer of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BufferLayout<'a> {
    /// No data.
    #[default]
    None,
    /// One range.
    Direct(Descriptor),
    /// A list, all of it inlined: at most [`descriptor::INLINE_COUNT_MAX`] ranges.
    Indirect {
        /// Where the same list lies in the initiator's memory.
        table_address: u64,
        /// The rkey of that memory.
        table_key: u32,
        /// The list.
        pieces: &'a [Descriptor],
    },
    /// A list of which the IU inlines only the first `inline` ranges: the target fetches it.
    External {
        /// Where the whole list lies in the initiator's memory.
        table_address: u64,
        /// The rkey of that memory.
        table_key: u32,
        /// The list.
        pieces: &'a [Descriptor],
        /// Ranges in the IU.
        inline: u8,
    },
    /// Data-out in the IU itself (SRP-2).
    Immediate {
        /// Where it begins, in bytes from the IU's first byte: what the login said.
        offset: u16,
        /// The data.
        data: &'a [u8],
    },
}

impl BufferLayout<'_> {
    fn format(&self) -> u8 {
        match self {
            Self::None => wire::format::NONE,
            Self::Direct(_) => wire::format::DIRECT,
            Self::Indirect { .. } | Self::External { .. } => wire::format::INDIRECT,
            Self::Immediate { .. } => wire::format::IMMEDIATE,
        }
    }

    /// The descriptor count byte; reserved and so zero unless indirect.
    fn count(&self) -> Option<u8> {
        match self {
            Self::None | Self::Direct(_) | Self::Immediate { .. } => Some(0),
            Self::Indirect { pieces, .. } => u8::try_from(pieces.len()).ok(),
            Self::External { inline, .. } => Some(*inline),
        }
    }

    #[inline]
    fn put(&self, out: &mut [u8], at: &mut usize) -> Option<()> {
        match self {
            Self::None => Some(()),
            Self::Direct(descriptor) => put(out, at, descriptor.to_wire().as_bytes()),
            Self::Indirect { table_address, table_key, pieces } => {
                put_list(*table_address, *table_key, pieces, pieces, out, at)
            }
            Self::External { table_address, table_key, pieces, inline } => {
                let inlined = pieces.get(..usize::from(*inline))?;
                put_list(*table_address, *table_key, pieces, inlined, out, at)
            }
            Self::Immediate { data, .. } => {
                let length = u32::try_from(data.len()).ok()?.into();
                put(out, at, wire::ImmediateDescriptor { length }.as_bytes())
            }
        }
    }

    /// Appends immediate data at its place, which lies behind all descriptors.
    fn put_data(&self, out: &mut [u8], at: &mut usize) -> Option<()> {
        let Self::Immediate { offset, data } = self else { return Some(()) };
        let gap = usize::from(*offset).checked_sub(*at)?;
        let end = at.checked_add(gap)?;
        out.get_mut(*at..end)?.fill(0);
        *at = end;
        put(out, at, data)
    }
}

/// Appends an indirect descriptor of `pieces` with those that are `inlined`.
fn put_list(
    table_address: u64,
    table_key: u32,
    pieces: &[Descriptor],
    inlined: &[Descriptor],
    out: &mut [u8],
    at: &mut usize,
) -> Option<()> {
    let mut total_bytes = 0_u32;
    for piece in pieces {
        total_bytes = total_bytes.checked_add(piece.length)?;
    }
    let table = Descriptor {
        address: table_address,
        key: table_key,
        length: u32::try_from(pieces.len().checked_mul(DESCRIPTOR_BYTES)?).ok()?,
    };
    let head = wire::IndirectDescriptor { table: table.to_wire(), total_bytes: total_bytes.into() };
    put(out, at, head.as_bytes())?;
    inlined.iter().try_for_each(|piece| put(out, at, piece.to_wire().as_bytes()))
}

/// What an initiator wants to send as an SRP_CMD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandLayout<'a> {
    /// The tag.
    pub tag: u64,
    /// The LUN field.
    pub lun: [u8; 8],
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// When to raise a solicited event.
    pub solicited: SolicitedNotification,
    /// At most [`CDB_BYTES_MAX`] bytes; padded with zeros to 16, or to a multiple of four beyond.
    pub cdb: &'a [u8],
    /// Data to the target.
    pub data_out: BufferLayout<'a>,
    /// Data from the target.
    pub data_in: BufferLayout<'a>,
}

/// Encodes an SRP_CMD and gives its length in bytes; `None` when it does not fit `out`, or when CDB,
/// list or total length are beyond what the format can say.
#[inline]
#[must_use]
pub fn encode_command(command: &CommandLayout<'_>, out: &mut [u8]) -> Option<usize> {
    let cdb = command.cdb.get(..FIXED_CDB_BYTES.min(command.cdb.len()))?;
    let additional = command.cdb.get(FIXED_CDB_BYTES..).unwrap_or(&[]);
    let additional_bytes = additional.len().checked_next_multiple_of(4)?;
    if command.cdb.len() > CDB_BYTES_MAX {
        return None;
    }
    let mut fixed = wire::Command {
        opcode: opcode::COMMAND,
        solicited: command.solicited.to_wire(),
        reserved_2: [0; 3],
        formats: command.data_out.format() << 4 | command.data_in.format(),
        data_out_count: command.data_out.count()?,
        data_in_count: command.data_in.count()?,
        tag: command.tag.into(),
        reserved_16: [0; 4],
        lun: command.lun,
        reserved_28: 0,
        attribute: attribute_code(command.attribute),
        reserved_30: 0,
        additional_cdb: u8::try_from(additional_bytes).ok()?,
        cdb: [0; FIXED_CDB_BYTES],
    };
    for (to, from) in fixed.cdb.iter_mut().zip(cdb) {
        *to = *from;
    }
    let mut at = 0;
    put(out, &mut at, fixed.as_bytes())?;
    put(out, &mut at, additional)?;
    let padding = additional_bytes.saturating_sub(additional.len());
    put(out, &mut at, [0; 3].get(..padding)?)?;
    command.data_out.put(out, &mut at)?;
    command.data_in.put(out, &mut at)?;
    command.data_out.put_data(out, &mut at)?;
    Some(at)
}

/// Encodes an SRP_TSK_MGMT with the function's code, which [`function_code`] gives (a plain number,
/// so that unknown ones can be sent); gives its length in bytes, `None` when it does not fit.
#[must_use]
pub fn encode_task_management(
    tag: u64,
    lun: [u8; 8],
    function: u8,
    task_tag: u64,
    solicited: SolicitedNotification,
    out: &mut [u8],
) -> Option<usize> {
    let request = wire::TaskManagement {
        opcode: opcode::TASK_MANAGEMENT,
        solicited: solicited.to_wire(),
        reserved_2: [0; 6],
        tag: tag.into(),
        reserved_16: [0; 4],
        lun,
        reserved_28: [0; 2],
        function,
        reserved_31: 0,
        task_tag: task_tag.into(),
        reserved_40: [0; 8],
    };
    let mut at = 0;
    put(out, &mut at, request.as_bytes())?;
    Some(at)
}

/// Encodes an SRP_I_LOGOUT; gives its length in bytes, `None` when it does not fit.
#[must_use]
pub fn encode_logout(tag: u64, out: &mut [u8]) -> Option<usize> {
    encode_tagged(opcode::INITIATOR_LOGOUT, tag, out)
}

/// Encodes an SRP_CRED_RSP; gives its length in bytes, `None` when it does not fit.
#[must_use]
pub fn encode_credit_response(tag: u64, out: &mut [u8]) -> Option<usize> {
    encode_tagged(opcode::CREDIT_RESPONSE, tag, out)
}

/// Encodes an SRP_AER_RSP; gives its length in bytes, `None` when it does not fit.
#[must_use]
pub fn encode_event_response(tag: u64, out: &mut [u8]) -> Option<usize> {
    encode_tagged(opcode::EVENT_RESPONSE, tag, out)
}

fn encode_tagged(opcode: u8, tag: u64, out: &mut [u8]) -> Option<usize> {
    let mut at = 0;
    let tagged = wire::Tagged { opcode, reserved_1: [0; 7], tag: tag.into() };
    put(out, &mut at, tagged.as_bytes())?;
    Some(at)
}
