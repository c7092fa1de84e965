//! Parameter data: what a command asks for, how much room it takes, and the bytes. The pages
//! themselves are in `vpd`, `mode` and `log`, what only CD/DVD devices have in `mmc`.

use super::{log_pages, mmc, mode, supported, vpd};
use crate::alua::{self, TargetPort};
use crate::cdb::{GetConfiguration, ModeSense, ReadToc, ReportOperationCodes};
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
    /// A log page (SPC-6).
    LogPage {
        /// PAGE CODE.
        page: u8,
        /// SUBPAGE CODE.
        subpage: u8,
        /// ALLOCATION LENGTH, bytes.
        allocation: u16,
    },
    /// An empty defect list (SBC-4, READ DEFECT DATA).
    DefectData {
        /// The 12-byte command's header.
        long: bool,
        /// REQ_PLIST, REQ_GLIST and DEFECT LIST FORMAT.
        lists: u8,
        /// ALLOCATION LENGTH, bytes.
        allocation: u32,
    },
    /// READ TOC/PMA/ATIP response data (MMC-6).
    Toc(ReadToc),
    /// GET CONFIGURATION response data (MMC-6).
    Configuration(GetConfiguration),
    /// GET EVENT STATUS NOTIFICATION response data (MMC-6).
    EventStatus {
        /// NOTIFICATION CLASS REQUEST.
        classes: u8,
        /// A medium came or went since this I_T nexus asked the last time: the caller knows, and sets it
        /// before [`fill`].
        changed: bool,
        /// ALLOCATION LENGTH, bytes.
        allocation: u16,
    },
    /// READ DISC INFORMATION response data (MMC-6).
    DiscInformation {
        /// ALLOCATION LENGTH, bytes.
        allocation: u16,
    },
    /// MECHANISM STATUS response data (MMC-6).
    MechanismStatus {
        /// ALLOCATION LENGTH, bytes.
        allocation: u16,
    },
    /// REPORT SUPPORTED OPERATION CODES parameter data (SPC-6).
    OperationCodes(ReportOperationCodes),
    /// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS parameter data (SPC-6).
    TaskManagement {
        /// REPD.
        extended: bool,
        /// ALLOCATION LENGTH, bytes.
        allocation: u32,
    },
    /// REPORT TARGET PORT GROUPS parameter data (SPC-6), which is no part of the unit: the caller knows the
    /// groups, and calls [`alua::report`] instead of [`fill`].
    TargetPortGroups {
        /// With the extended header.
        extended: bool,
        /// ALLOCATION LENGTH, bytes.
        allocation: u32,
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
            Self::LogPage { .. } => log_pages::BYTES_MAX,
            Self::DefectData { .. } => DEFECT_DATA_BYTES_MAX,
            Self::Toc(_) => mmc::TOC_BYTES_MAX,
            Self::Configuration(_) => mmc::CONFIGURATION_BYTES_MAX,
            Self::EventStatus { .. } => mmc::EVENT_STATUS_BYTES_MAX,
            Self::DiscInformation { .. } => mmc::DISC_INFORMATION_BYTES_MAX,
            Self::MechanismStatus { .. } => mmc::MECHANISM_STATUS_BYTES_MAX,
            Self::OperationCodes(_) => supported::bytes_max(),
            Self::TaskManagement { .. } => supported::TASK_MANAGEMENT_BYTES_MAX,
            Self::TargetPortGroups { .. } => alua::REPORT_BYTES_MAX,
        };
        length.min(self.allocation())
    }

    /// Where the caller says whether a medium came or went, if the command asks for that.
    pub fn media_event(&mut self) -> Option<&mut bool> {
        match self {
            Self::EventStatus { classes, changed, .. } => {
                mmc::asks_for_media(*classes).then_some(changed)
            }
            _ => None,
        }
    }

    /// ALLOCATION LENGTH, or for the command without one what it always transfers.
    fn allocation(&self) -> u32 {
        match *self {
            Self::StandardInquiry { allocation } | Self::VitalProductData { allocation, .. } => {
                u32::from(allocation)
            }
            Self::ReportLuns { allocation, .. }
            | Self::ReadCapacity16 { allocation }
            | Self::DefectData { allocation, .. }
            | Self::OperationCodes(ReportOperationCodes { allocation, .. })
            | Self::TaskManagement { allocation, .. }
            | Self::TargetPortGroups { allocation, .. } => allocation,
            Self::LogPage { allocation, .. }
            | Self::Toc(ReadToc { allocation, .. })
            | Self::Configuration(GetConfiguration { allocation, .. })
            | Self::EventStatus { allocation, .. }
            | Self::DiscInformation { allocation }
            | Self::MechanismStatus { allocation } => u32::from(allocation),
            Self::ReadCapacity10 => READ_CAPACITY_10_BYTES,
            Self::ModeSense { sense, .. } => u32::from(sense.allocation),
            Self::RequestSense { allocation, .. } => u32::from(allocation),
        }
    }
}

/// Writes the parameter data, cut where the allocation length or `out` ends. Gives the bytes
/// written. The lengths inside the data are those of the whole (SPC-6, ALLOCATION LENGTH).
///
/// `unit` is `None` for a LUN without a unit; `port` is the target port it is seen through. `luns` are
/// the numbers that this I_T nexus sees, ascending, for REPORT LUNS; LUN 0 is reported in any case.
/// `pending` is the unit attention or other sense data that REQUEST SENSE reports, which the caller has
/// then taken.
pub fn fill(
    parameter: &Parameter,
    unit: Option<&LogicalUnit>,
    port: TargetPort,
    luns: &mut dyn Iterator<Item = LunNumber>,
    pending: Option<Sense>,
    out: &mut [u8],
) -> usize {
    let room = usize::try_from(parameter.allocation()).unwrap_or(usize::MAX).min(out.len());
    let mut writer = Writer::new(out.get_mut(..room).unwrap_or_default());
    match (*parameter, unit) {
        (Parameter::StandardInquiry { .. }, Some(unit)) => standard_inquiry(unit, &mut writer),
        (Parameter::StandardInquiry { .. }, None) => standard_inquiry_absent(&mut writer),
        (Parameter::VitalProductData { page, .. }, unit) => {
            vpd::write(page, unit, port, &mut writer);
        }
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
        (Parameter::LogPage { page, subpage, .. }, _) => {
            log_pages::write(page, subpage, &mut writer)
        }
        (Parameter::DefectData { long, lists, .. }, _) => defect_data(long, lists, &mut writer),
        (Parameter::Toc(toc), Some(unit)) => mmc::write_toc(&toc, unit, &mut writer),
        (Parameter::Configuration(configuration), Some(unit)) => {
            mmc::write_configuration(&configuration, unit, &mut writer);
        }
        (Parameter::EventStatus { classes, changed, .. }, Some(unit)) => {
            mmc::write_event_status(classes, changed, unit, &mut writer);
        }
        (Parameter::DiscInformation { .. }, _) => mmc::write_disc_information(&mut writer),
        (Parameter::MechanismStatus { .. }, _) => mmc::write_mechanism_status(&mut writer),
        (Parameter::OperationCodes(report), Some(unit)) => {
            supported::operation_codes(&report, unit, &mut writer);
        }
        (Parameter::TaskManagement { extended, .. }, _) => {
            supported::task_management(extended, &mut writer);
        }
        // Made by another.
        (Parameter::TargetPortGroups { .. }, _) => {}
        // The unit went away between the verdict and now: no data.
        (
            Parameter::ReadCapacity10
            | Parameter::ReadCapacity16 { .. }
            | Parameter::ModeSense { .. }
            | Parameter::Toc(_)
            | Parameter::Configuration(_)
            | Parameter::EventStatus { .. }
            | Parameter::OperationCodes(_),
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

/// 3PC.
const THIRD_PARTY_COPY: u8 = 0x08;

/// SPC-6, standard INQUIRY data. PROTECT and NORMACA are zero: neither is there.
fn standard_inquiry(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    let removable = if unit.removable { 0x80 } else { 0 };
    let identity = &unit.identity;
    const ADDITIONAL_LENGTH: u8 = STANDARD_INQUIRY_BYTES - 5;
    let third_party_copy = if vpd::copies(unit) { THIRD_PARTY_COPY } else { 0 };
    writer.put(&[unit.device_type.peripheral(), removable, VERSION, FORMAT, ADDITIONAL_LENGTH]);
    let tpgs = (unit.tpgs as u8) << 4;
    writer.put(&[third_party_copy | tpgs, MULTI_PORT, COMMAND_QUEUING]);
    writer.put(&identity.vendor);
    writer.put(&identity.product);
    writer.put(&identity.revision);
    let vendor_specific = identity.vendor_specific.as_bytes();
    writer.put(vendor_specific);
    writer.zeros(22_usize.saturating_sub(vendor_specific.len())); // the rest of it, clocking, reserved
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

/// LBPME and LBPRZ of READ CAPACITY (16).
const PROVISIONING_MANAGED: u8 = 0x80;
const UNMAPPED_READS_ZERO: u8 = 0x40;

/// SBC-4, READ CAPACITY (16).
fn read_capacity_16(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    writer.put(&unit.blocks.saturating_sub(1).to_be_bytes());
    writer.put(&unit.block_bytes.to_be_bytes());
    let provisioning = match (unit.thin, unit.unmapped_reads_zero) {
        (false, _) => 0,
        (true, false) => PROVISIONING_MANAGED,
        (true, true) => PROVISIONING_MANAGED | UNMAPPED_READS_ZERO,
    };
    writer.put(&[0, unit.physical_blocks_exponent & 0x0F, provisioning, 0]);
    writer.zeros(16);
}

/// The longer header. No list follows it.
const DEFECT_DATA_BYTES_MAX: u32 = 8;

/// SBC-4, READ DEFECT DATA (10) and (12): the lists asked for, which are empty, in the format asked for.
fn defect_data(long: bool, lists: u8, writer: &mut Writer<'_>) {
    writer.put(&[0, lists & 0x1F]);
    writer.zeros(if long { 6 } else { 2 });
}

/// Neighbouring blocks that are provisioned alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LbaRun {
    /// First block.
    pub lba: u64,
    /// Blocks, at least 1.
    pub blocks: u32,
    /// They have no blocks of the backing's own; else they are mapped.
    pub deallocated: bool,
}

/// Runs that one GET LBA STATUS tells about at most.
pub const LBA_RUNS_MAX: u8 = 32;

/// Writes GET LBA STATUS (16) parameter data (SBC-4) that tells of these runs, cut where `out` ends.
/// Gives the bytes written.
pub fn fill_lba_status(runs: &[LbaRun], out: &mut [u8]) -> usize {
    let mut writer = Writer::new(out);
    writer.zeros(8);
    for run in runs {
        writer.put(&run.lba.to_be_bytes());
        writer.put(&run.blocks.to_be_bytes());
        writer.put(&[u8::from(run.deallocated), 0, 0, 0]);
    }
    // PARAMETER DATA LENGTH does not count itself.
    let length = u32::try_from(writer.position().saturating_sub(4)).unwrap_or(u32::MAX);
    writer.patch(0, &length.to_be_bytes());
    writer.written()
}
