//! Where the initiator's data lies: direct and indirect data buffer descriptors (SRP 5.6.2).
//!
//! A descriptor names memory of the *initiator*; the HCA there checks key and range. Here it is
//! only made sure that what the IU says about itself is true, so that later arithmetic on addresses
//! and lengths cannot overflow and no list is read beyond the IU.

use core::fmt;

use zerocopy::FromBytes;

use crate::wire;

/// Bytes of one memory descriptor on the wire.
pub const DESCRIPTOR_BYTES: usize = size_of::<wire::MemoryDescriptor>();
/// Bytes of an indirect descriptor before its partial list.
pub const INDIRECT_HEAD_BYTES: usize = size_of::<wire::IndirectDescriptor>();
/// Bytes of an immediate descriptor: a length.
pub const IMMEDIATE_DESCRIPTOR_BYTES: usize = size_of::<wire::ImmediateDescriptor>();
/// Longest indirect table in bytes that is fetched from the initiator: 2048 descriptors, the most that
/// Linux's initiator makes.
pub const TABLE_BYTES_MAX: u32 = 2048 * DESCRIPTOR_BYTES as u32;
/// Most descriptors one IU can carry inline for one direction: the count is one byte.
pub const INLINE_COUNT_MAX: usize = 255;

/// A range of the initiator's memory. `address + length` does not wrap when it came from a parser.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Virtual address at the initiator.
    pub address: u64,
    /// The initiator's rkey.
    pub key: u32,
    /// Length in bytes.
    pub length: u32,
}

impl Descriptor {
    /// Whether the range ends inside the 64-bit address space.
    #[inline]
    fn is_addressable(&self) -> bool {
        self.address.checked_add(u64::from(self.length)).is_some()
    }

    /// The wire form's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; DESCRIPTOR_BYTES] {
        zerocopy::transmute!(self.to_wire())
    }

    /// The wire form.
    #[inline]
    #[must_use]
    pub fn to_wire(&self) -> wire::MemoryDescriptor {
        wire::MemoryDescriptor {
            address: self.address.into(),
            key: self.key.into(),
            length: self.length.into(),
        }
    }
}

impl From<&wire::MemoryDescriptor> for Descriptor {
    #[inline]
    fn from(wire: &wire::MemoryDescriptor) -> Self {
        Self { address: wire.address.get(), key: wire.key.get(), length: wire.length.get() }
    }
}

/// One direction's data buffer of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataBuffer {
    /// No data in this direction.
    #[default]
    None,
    /// One range.
    Direct(Descriptor),
    /// A list of ranges, all of it inside the IU (or fetched, see [`DataBuffer::fetched`]).
    Indirect {
        /// Where the whole table lies at the initiator; its length is in bytes.
        table: Descriptor,
        /// Where the list starts, in bytes from the IU's first byte.
        inline_offset: u16,
        /// Descriptors in the list.
        inline_count: u16,
        /// Usable bytes: what the IU declared, or the list's sum where that is less.
        total_bytes: u32,
    },
    /// A list of ranges that lies in the initiator's memory, because the IU does not hold all of it: it
    /// has to be fetched, and [`DataBuffer::fetched`] makes the rest.
    External {
        /// Where the list lies; its length is in bytes, at most [`TABLE_BYTES_MAX`].
        table: Descriptor,
        /// Bytes that the IU declared.
        total_bytes: u32,
    },
    /// Data-out that lies in the IU (SRP-2), where the channel's login granted it.
    Immediate {
        /// Where the data starts, in bytes from the IU's first byte.
        offset: u16,
        /// Bytes of data.
        length: u32,
    },
}

impl DataBuffer {
    /// Bytes of initiator memory that may be transferred in this direction.
    #[must_use]
    pub fn total_bytes(&self) -> u32 {
        match *self {
            Self::None => 0,
            Self::Direct(descriptor) => descriptor.length,
            Self::Indirect { total_bytes, .. } | Self::External { total_bytes, .. } => total_bytes,
            Self::Immediate { length, .. } => length,
        }
    }

    /// [`Self::total_bytes`], and whether the ranges are known: not those of an external list, before it
    /// was fetched.
    #[inline]
    #[must_use]
    pub fn offer(&self) -> (u32, bool) {
        match self {
            Self::Direct(descriptor) => (descriptor.length, true),
            other => other.rare_offer(),
        }
    }

    #[inline(never)]
    fn rare_offer(&self) -> (u32, bool) {
        (self.total_bytes(), !matches!(self, Self::External { .. }))
    }

    /// The external list once it was fetched: `table` holds it, and is what [`Self::descriptors`] wants
    /// in place of the IU from now on.
    ///
    /// # Errors
    /// A range that wraps around the address space, or a `table` that is not the one named.
    pub fn fetched(&self, table: &[u8]) -> Result<Self, BufferFault> {
        let Self::External { table: place, total_bytes } = *self else { return Ok(*self) };
        let count = (place.length >> DESCRIPTOR_BYTES.trailing_zeros()) as u16;
        let list = inline_list(table, 0, usize::from(count))
            .ok_or_else(|| beyond_iu(place.length as usize, table))?;
        let total_bytes = total_bytes.min(sum_of(list)?);
        Ok(Self::Indirect { table: place, inline_offset: 0, inline_count: count, total_bytes })
    }

    /// The ranges to transfer, in order, clipped to [`Self::total_bytes`]; empty ones are left out.
    ///
    /// `iu` must be the bytes that this value was parsed from: an indirect buffer's list is read
    /// from them. Other bytes give wrong or no ranges, but never a panic.
    #[inline]
    #[must_use]
    pub fn descriptors<'a>(&self, iu: &'a [u8]) -> Descriptors<'a> {
        let (first, rest) = match *self {
            Self::None | Self::Immediate { .. } | Self::External { .. } => (None, [].as_slice()),
            Self::Direct(descriptor) => (Some(descriptor), [].as_slice()),
            Self::Indirect { inline_offset, inline_count, .. } => {
                (None, inline_list(iu, inline_offset.into(), inline_count.into()).unwrap_or(&[]))
            }
        };
        Descriptors { first, rest: rest.iter(), remaining_bytes: self.total_bytes() }
    }
}

/// Iterator of [`DataBuffer::descriptors`].
#[derive(Clone, Debug)]
pub struct Descriptors<'a> {
    first: Option<Descriptor>,
    rest: core::slice::Iter<'a, wire::MemoryDescriptor>,
    remaining_bytes: u32,
}

impl Iterator for Descriptors<'_> {
    type Item = Descriptor;

    #[inline]
    fn next(&mut self) -> Option<Descriptor> {
        while self.remaining_bytes > 0 {
            let mut descriptor = match self.first.take() {
                Some(descriptor) => descriptor,
                None => Descriptor::from(self.rest.next()?),
            };
            descriptor.length = descriptor.length.min(self.remaining_bytes);
            self.remaining_bytes = self.remaining_bytes.saturating_sub(descriptor.length);
            if descriptor.length > 0 {
                return Some(descriptor);
            }
        }
        None
    }
}

/// What is wrong with one direction's descriptors, with the values that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferFault {
    /// A format code that SRP does not define.
    UnknownFormat(u8),
    /// Immediate data, which this channel's login did not grant, or for data-in.
    Immediate,
    /// The descriptors reach into the place that the login gave to immediate data.
    ImmediateOverlap {
        /// Where they end, in bytes from the IU's first byte.
        descriptors_end: u32,
        /// Where the immediate data begins.
        immediate_offset: u16,
    },
    /// The descriptor or its list reaches beyond the IU's end.
    BeyondIu {
        /// Where it would end, in bytes from the IU's first byte.
        needed_bytes: u32,
        /// The IU's length in bytes.
        iu_bytes: u32,
    },
    /// An indirect table's length is not a multiple of 16 bytes.
    TableLength(u32),
    /// The IU says that it inlines more descriptors than the table has.
    CountExceedsTable {
        /// Descriptors said to be in the IU.
        inline_count: u32,
        /// Descriptors in the table.
        table_count: u32,
    },
    /// The table lies in the initiator's memory and is longer than this target fetches.
    TableTooLong {
        /// Descriptors in the table.
        table_count: u32,
    },
    /// A range wraps around the end of the address space.
    AddressWraps {
        /// Its address.
        address: u64,
        /// Its length in bytes.
        length: u32,
    },
}

impl fmt::Display for BufferFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UnknownFormat(format) => write!(f, "descriptor format {format} is not defined"),
            Self::Immediate => {
                f.write_str("immediate data is for data-out, and only where the login granted it")
            }
            Self::ImmediateOverlap { descriptors_end, immediate_offset } => write!(
                f,
                "descriptors end at byte {descriptors_end}, behind the begin of the immediate data \
                 at {immediate_offset}, which the login fixed"
            ),
            Self::BeyondIu { needed_bytes, iu_bytes } => {
                write!(f, "descriptors end at byte {needed_bytes}, but the IU has {iu_bytes} bytes")
            }
            Self::TableLength(bytes) => {
                write!(f, "indirect table of {bytes} bytes is not a multiple of 16")
            }
            Self::CountExceedsTable { inline_count, table_count } => write!(
                f,
                "{inline_count} descriptors inlined, but the indirect table has {table_count}"
            ),
            Self::TableTooLong { table_count } => write!(
                f,
                "indirect table of {table_count} descriptors in the initiator's memory; at most {} are \
                 fetched: lower sg_tablesize at the initiator",
                TABLE_BYTES_MAX as usize / DESCRIPTOR_BYTES
            ),
            Self::AddressWraps { address, length } => {
                write!(f, "{length} bytes at {address:#x} wrap around the address space")
            }
        }
    }
}

/// Parses the descriptor of one direction, which starts `offset` bytes into `iu`. Gives it and where
/// the next one starts. `count` is the IU's descriptor count for that direction; it means something
/// for the indirect format only (SRP 6.8).
pub(crate) fn parse(
    iu: &[u8],
    offset: usize,
    format: u8,
    count: u8,
) -> Result<(DataBuffer, usize), BufferFault> {
    match format {
        wire::format::NONE => Ok((DataBuffer::None, offset)),
        wire::format::DIRECT => parse_direct(iu, offset),
        wire::format::INDIRECT => parse_indirect(iu, offset, count),
        // Only [`parse_immediate`] knows where it lies.
        wire::format::IMMEDIATE => Err(BufferFault::Immediate),
        unknown => Err(BufferFault::UnknownFormat(unknown)),
    }
}

/// The sound direct descriptor that starts `offset` bytes into `iu`.
#[inline]
pub(crate) fn direct(iu: &[u8], offset: usize) -> Option<Descriptor> {
    memory_descriptor(iu, offset).filter(Descriptor::is_addressable)
}

#[inline]
fn memory_descriptor(iu: &[u8], offset: usize) -> Option<Descriptor> {
    let bytes = iu.get(offset..offset.saturating_add(DESCRIPTOR_BYTES))?;
    wire::MemoryDescriptor::ref_from_bytes(bytes).ok().map(Descriptor::from)
}

fn parse_direct(iu: &[u8], offset: usize) -> Result<(DataBuffer, usize), BufferFault> {
    let end = offset.saturating_add(DESCRIPTOR_BYTES);
    let descriptor = memory_descriptor(iu, offset).ok_or_else(|| beyond_iu(end, iu))?;
    if !descriptor.is_addressable() {
        return Err(address_wraps(&descriptor));
    }
    Ok((DataBuffer::Direct(descriptor), end))
}

/// An immediate descriptor, which starts `offset` bytes into `iu`, and its data, which the login put at
/// `immediate_offset`; as [`parse`].
pub(crate) fn parse_immediate(
    iu: &[u8],
    offset: usize,
    immediate_offset: Option<u16>,
) -> Result<(DataBuffer, usize), BufferFault> {
    let Some(immediate_offset) = immediate_offset else { return Err(BufferFault::Immediate) };
    let end = offset.saturating_add(IMMEDIATE_DESCRIPTOR_BYTES);
    let length = iu
        .get(offset..end)
        .and_then(|bytes| wire::ImmediateDescriptor::ref_from_bytes(bytes).ok())
        .map(|descriptor| descriptor.length.get())
        .ok_or_else(|| beyond_iu(end, iu))?;
    if end > usize::from(immediate_offset) {
        let descriptors_end = u32::try_from(end).unwrap_or(u32::MAX);
        return Err(BufferFault::ImmediateOverlap { descriptors_end, immediate_offset });
    }
    let data_end = usize::from(immediate_offset).saturating_add(length as usize);
    if data_end > iu.len() {
        return Err(beyond_iu(data_end, iu));
    }
    Ok((DataBuffer::Immediate { offset: immediate_offset, length }, end))
}

fn parse_indirect(
    iu: &[u8],
    offset: usize,
    inline_count: u8,
) -> Result<(DataBuffer, usize), BufferFault> {
    let list_offset = offset.saturating_add(INDIRECT_HEAD_BYTES);
    let head = iu
        .get(offset..list_offset)
        .and_then(|bytes| wire::IndirectDescriptor::ref_from_bytes(bytes).ok())
        .ok_or_else(|| beyond_iu(list_offset, iu))?;
    let table = Descriptor::from(&head.table);
    if !table.length.is_multiple_of(DESCRIPTOR_BYTES as u32) {
        return Err(BufferFault::TableLength(table.length));
    }
    let table_count = table.length >> DESCRIPTOR_BYTES.trailing_zeros();
    let inline_count = u32::from(inline_count);
    if inline_count > table_count {
        return Err(BufferFault::CountExceedsTable { inline_count, table_count });
    }
    if inline_count < table_count && table.length > TABLE_BYTES_MAX {
        return Err(BufferFault::TableTooLong { table_count });
    }
    if !table.is_addressable() {
        return Err(address_wraps(&table));
    }
    let end = list_offset.saturating_add((inline_count as usize).saturating_mul(DESCRIPTOR_BYTES));
    let list =
        inline_list(iu, list_offset, inline_count as usize).ok_or_else(|| beyond_iu(end, iu))?;
    if inline_count < table_count {
        // What is inlined is the list's begin; all of it is fetched in one piece.
        let total_bytes = head.total_bytes.get();
        return Ok((DataBuffer::External { table, total_bytes }, end));
    }
    let sum_bytes = sum_of(list)?;
    let buffer = DataBuffer::Indirect {
        table,
        // At most 48 + 252 + (20 + 255 * 16) + 20, so nothing is cut.
        inline_offset: u16::try_from(list_offset).map_err(|_| beyond_iu(list_offset, iu))?,
        inline_count: inline_count as u16,
        // SCST and LIO take lists whose sum differs from the declared total; the lesser is safe.
        total_bytes: head.total_bytes.get().min(sum_bytes),
    };
    Ok((buffer, end))
}

/// The sum of the lengths of `list`, saturating.
fn sum_of(list: &[wire::MemoryDescriptor]) -> Result<u32, BufferFault> {
    let mut sum_bytes = 0_u32;
    for descriptor in list.iter().map(Descriptor::from) {
        if !descriptor.is_addressable() {
            return Err(address_wraps(&descriptor));
        }
        sum_bytes = sum_bytes.saturating_add(descriptor.length);
    }
    Ok(sum_bytes)
}

/// `count` descriptors from `offset`; `None` when the IU ends before.
#[inline]
fn inline_list(iu: &[u8], offset: usize, count: usize) -> Option<&[wire::MemoryDescriptor]> {
    let end = offset.checked_add(count.checked_mul(DESCRIPTOR_BYTES)?)?;
    <[wire::MemoryDescriptor]>::ref_from_bytes(iu.get(offset..end)?).ok()
}

#[cold]
fn beyond_iu(needed_bytes: usize, iu: &[u8]) -> BufferFault {
    BufferFault::BeyondIu {
        needed_bytes: u32::try_from(needed_bytes).unwrap_or(u32::MAX),
        iu_bytes: u32::try_from(iu.len()).unwrap_or(u32::MAX),
    }
}

#[cold]
fn address_wraps(descriptor: &Descriptor) -> BufferFault {
    BufferFault::AddressWraps { address: descriptor.address, length: descriptor.length }
}
