//! Parameter data: what a command asks for, how much room it takes, and the bytes. The pages
//! themselves are in `vpd` and `mode`.

use super::{mode, vpd};
use crate::cdb::ModeSense;
use crate::lun::{self, LunNumber};
use crate::sense::Sense;
use crate::unit::LogicalUnit;
use crate::writer::Writer;

/// SELECT REPORT (SPC-6, REPORT LUNS): all but well known logical units.
pub(super) const SELECT_ADDRESSED: u8 = 0x00;
/// SELECT REPORT: only well known logical units. There are none.
pub(super) const SELECT_WELL_KNOWN: u8 = 0x01;
/// SELECT REPORT: all logical units.
pub(super) const SELECT_ALL: u8 = 0x02;

/// Parameter data to make. Only [`begin`](super::begin) and [`begin_absent`](super::begin_absent)
/// make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// Standard INQUIRY data (SPC-6).
    StandardInquiry {
        /// ALLOCATION LENGTH, bytes.
        allocation: u16,
    },
    /// A vital product data page (SPC-6 and SBC-4).
    VitalProductData {
        /// PAGE CODE.
        page: u8,
        /// ALLOCATION LENGTH, bytes.
        allocation: u16,
    },
    /// REPORT LUNS parameter data (SPC-6).
    ReportLuns {
        /// SELECT REPORT.
        select: u8,
        /// ALLOCATION LENGTH, bytes.
        allocation: u32,
    },
    /// READ CAPACITY (10) parameter data (SBC-4).
    ReadCapacity10,
    /// READ CAPACITY (16) parameter data (SBC-4).
    ReadCapacity16 {
        /// ALLOCATION LENGTH, bytes.
        allocation: u32,
    },
    /// Mode parameters (SPC-6).
    ModeSense {
        /// What the command said.
        sense: ModeSense,
        /// WP.
        write_protected: bool,
    },
    /// Sense data as parameter data (SPC-6, REQUEST SENSE).
    RequestSense {
        /// Descriptor instead of fixed format.
        descriptor_format: bool,
        /// ALLOCATION LENGTH, bytes.
        allocation: u8,
    },
}

const STANDARD_INQUIRY_BYTES: u8 = 96;
const STANDARD_INQUIRY_ABSENT_BYTES: u8 = 36;
/// The header and every number there is.
const REPORT_LUNS_BYTES_MAX: u32 = 8 + 8 * (LunNumber::MAX as u32 + 1);
const READ_CAPACITY_10_BYTES: u32 = 8;
const READ_CAPACITY_16_BYTES: u32 = 32;

impl Parameter {
    /// Bytes of buffer to claim for [`fill`]: what the initiator takes or what there can be,
    /// whichever is less. Zero is possible.
    #[must_use]
    pub fn length_max(&self) -> u32 {
        let length = match self {
            Self::StandardInquiry { .. } => u32::from(STANDARD_INQUIRY_BYTES),
            Self::VitalProductData { .. } => vpd::BYTES_MAX,
            Self::ReportLuns { .. } => REPORT_LUNS_BYTES_MAX,
            Self::ReadCapacity10 => READ_CAPACITY_10_BYTES,
            Self::ReadCapacity16 { .. } => READ_CAPACITY_16_BYTES,
            Self::ModeSense { .. } => mode::BYTES_MAX,
            Self::RequestSense { .. } => Sense::BYTES_MAX as u32,
        };
        length.min(self.allocation())
    }

    /// ALLOCATION LENGTH, or for the command without one what it always transfers.
    fn allocation(&self) -> u32 {
        match *self {
            Self::StandardInquiry { allocation } | Self::VitalProductData { allocation, .. } => {
                u32::from(allocation)
            }
            Self::ReportLuns { allocation, .. } | Self::ReadCapacity16 { allocation } => allocation,
            Self::ReadCapacity10 => READ_CAPACITY_10_BYTES,
            Self::ModeSense { sense, .. } => u32::from(sense.allocation),
            Self::RequestSense { allocation, .. } => u32::from(allocation),
        }
    }
}

/// Writes the parameter data, cut where the allocation length or `out` ends. Gives the bytes
/// written. The lengths inside the data are those of the whole (SPC-6, ALLOCATION LENGTH).
///
/// `unit` is `None` for a LUN without a unit. `luns` are the numbers that this I_T nexus sees,
/// ascending, for REPORT LUNS; LUN 0 is reported in any case. `pending` is the unit attention or
/// other sense data that REQUEST SENSE reports, which the caller has then taken.
pub fn fill(
    parameter: &Parameter,
    unit: Option<&LogicalUnit>,
    luns: &mut dyn Iterator<Item = LunNumber>,
    pending: Option<Sense>,
    out: &mut [u8],
) -> usize {
    let room = usize::try_from(parameter.allocation()).unwrap_or(usize::MAX).min(out.len());
    let mut writer = Writer::new(out.get_mut(..room).unwrap_or_default());
    match (*parameter, unit) {
        (Parameter::StandardInquiry { .. }, Some(unit)) => standard_inquiry(unit, &mut writer),
        (Parameter::StandardInquiry { .. }, None) => standard_inquiry_absent(&mut writer),
        (Parameter::VitalProductData { page, .. }, unit) => vpd::write(page, unit, &mut writer),
        (Parameter::ReportLuns { select, .. }, _) => report_luns(select, luns, &mut writer),
        (Parameter::ReadCapacity10, Some(unit)) => read_capacity_10(unit, &mut writer),
        (Parameter::ReadCapacity16 { .. }, Some(unit)) => read_capacity_16(unit, &mut writer),
        (Parameter::ModeSense { sense, write_protected }, Some(unit)) => {
            mode::write(&sense, write_protected, unit, &mut writer);
        }
        (Parameter::RequestSense { descriptor_format, .. }, unit) => {
            let nothing = match unit {
                Some(_) => Sense::NO_SENSE,
                // SPC-6, REQUEST SENSE.
                None => Sense::LOGICAL_UNIT_NOT_SUPPORTED,
            };
            pending.unwrap_or(nothing).write(descriptor_format, &mut writer);
        }
        // The unit went away between the verdict and now: no data.
        (
            Parameter::ReadCapacity10
            | Parameter::ReadCapacity16 { .. }
            | Parameter::ModeSense { .. },
            None,
        ) => {}
    }
    writer.written()
}

/// VERSION: SPC-4, the newest that every initiator in use knows.
const VERSION: u8 = 0x06;
/// HISUP and RESPONSE DATA FORMAT 2.
const FORMAT: u8 = 0x12;
/// MULTIP.
const MULTI_PORT: u8 = 0x10;
/// CMDQUE.
const COMMAND_QUEUING: u8 = 0x02;

/// SPC-6, standard INQUIRY data. PROTECT, TPGS, 3PC and NORMACA are zero: none of it is there.
fn standard_inquiry(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    let removable = if unit.removable { 0x80 } else { 0 };
    let identity = &unit.identity;
    const ADDITIONAL_LENGTH: u8 = STANDARD_INQUIRY_BYTES - 5;
    writer.put(&[0, removable, VERSION, FORMAT, ADDITIONAL_LENGTH, 0, MULTI_PORT, COMMAND_QUEUING]);
    writer.put(&identity.vendor);
    writer.put(&identity.product);
    writer.put(&identity.revision);
    writer.zeros(22); // vendor specific, clocking, reserved
    for descriptor in identity.version_descriptors {
        writer.put(&descriptor.to_be_bytes());
    }
    writer.zeros(22);
}

/// Peripheral qualifier 011b and device type 1Fh: no device can be here (SPC-6, standard INQUIRY
/// data).
pub(super) const NO_DEVICE: u8 = 0x7F;

/// The 36 bytes that an initiator asks an unknown LUN for.
fn standard_inquiry_absent(writer: &mut Writer<'_>) {
    const ADDITIONAL_LENGTH: u8 = STANDARD_INQUIRY_ABSENT_BYTES - 5;
    writer.put(&[NO_DEVICE, 0, VERSION, FORMAT, ADDITIONAL_LENGTH, 0, MULTI_PORT, COMMAND_QUEUING]);
    writer.put(&[b' '; 8 + 16 + 4]);
}

/// SPC-6, REPORT LUNS.
fn report_luns(select: u8, luns: &mut dyn Iterator<Item = LunNumber>, writer: &mut Writer<'_>) {
    writer.zeros(8);
    if select != SELECT_WELL_KNOWN {
        // A nexus that sees nothing at LUN 0 can still send it INQUIRY and REPORT LUNS.
        writer.put(&lun::encode(0));
        for number in luns.filter(|&number| number != 0) {
            writer.put(&lun::encode(number));
        }
    }
    let list_bytes = u32::try_from(writer.position().saturating_sub(8)).unwrap_or(u32::MAX);
    writer.patch(0, &list_bytes.to_be_bytes());
}

/// SBC-4, READ CAPACITY (10): a last block above 32 bits is all ones, which sends the initiator to
/// READ CAPACITY (16).
fn read_capacity_10(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    let last = u32::try_from(unit.blocks.saturating_sub(1)).unwrap_or(u32::MAX);
    writer.put(&last.to_be_bytes());
    writer.put(&unit.block_bytes.to_be_bytes());
}

/// SBC-4, READ CAPACITY (16). LBPRZ is zero: what an unmapped block reads as is the backing's
/// business.
fn read_capacity_16(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    writer.put(&unit.blocks.saturating_sub(1).to_be_bytes());
    writer.put(&unit.block_bytes.to_be_bytes());
    let provisioning_managed = if unit.thin { 0x80 } else { 0 };
    writer.put(&[0, unit.physical_blocks_exponent & 0x0F, provisioning_managed, 0]);
    writer.zeros(16);
}
