//! Mode parameters (SPC-6 and SBC-4): header, block descriptor and pages, and what MODE SELECT makes of
//! a list of them. What it changes concerns every I_T nexus, so the host agent calls [`select`] and
//! spreads the outcome; the card only reports.

use crate::cdb::{ModeSense, PageControl};
use crate::opcodes::opcode;
use crate::sense::{FieldPointer, Sense};
use crate::unit::{DeviceType, LogicalUnit};
use crate::writer::Writer;

/// Control (SPC-6).
const CONTROL: u8 = 0x0A;
/// All pages.
const ALL_PAGES: u8 = 0x3F;
/// In SUBPAGE CODE: with all subpages.
const ALL_SUBPAGES: u8 = 0xFF;

const DISK: &[DeviceType] = &[DeviceType::Disk];
const CD: &[DeviceType] = &[DeviceType::CdDvd];
const BOTH: &[DeviceType] = &[DeviceType::Disk, DeviceType::CdDvd];

/// The longest page's parameters, which are Control Extension's.
const PARAMETERS_MAX: usize = 28;

/// A mode page: how its parameters begin, the rest is zeros.
struct Page {
    code: u8,
    /// Zero: the page_0 format, without a subpage.
    subpage: u8,
    /// PAGE LENGTH.
    length: u8,
    /// The device types that have it.
    types: &'static [DeviceType],
    write: fn(&LogicalUnit, &mut Writer<'_>),
}

/// The pages there are, ascending.
static PAGES: [Page; 9] = [
    // Read-Write Error Recovery (SBC-4).
    Page { code: 0x01, subpage: 0, length: 0x0A, types: BOTH, write: error_recovery },
    // Disconnect-Reconnect (SPC-6): nothing in it means anything to SRP.
    Page { code: 0x02, subpage: 0, length: 0x0E, types: DISK, write: zeros },
    // Format Device and Rigid Disk Geometry (SBC-2, obsolete since), for those who still ask.
    Page { code: 0x03, subpage: 0, length: 0x16, types: DISK, write: format_device },
    Page { code: 0x04, subpage: 0, length: 0x16, types: DISK, write: geometry },
    // Caching (SBC-4).
    Page { code: 0x08, subpage: 0, length: 0x12, types: BOTH, write: caching },
    Page { code: CONTROL, subpage: 0, length: 0x0A, types: BOTH, write: control },
    // Control Extension (SPC-6): no timestamp, no implicit ALUA, no limit to sense data.
    Page { code: CONTROL, subpage: 0x01, length: 0x1C, types: BOTH, write: zeros },
    // Informational Exceptions Control (SBC-4).
    Page { code: 0x1C, subpage: 0, length: 0x0A, types: BOTH, write: informational_exceptions },
    // CD/DVD Capabilities and Mechanical Status (MMC-3, obsolete since), for those who still ask.
    Page { code: 0x2A, subpage: 0, length: 0x14, types: CD, write: capabilities },
];

/// The longer header, the longer block descriptor and all pages with their headers.
pub(super) const BYTES_MAX: u32 = 8 + 16 + 12 + 16 + 24 + 24 + 20 + 12 + 32 + 12 + 22;

impl Page {
    fn is_wanted(&self, unit: &LogicalUnit, page: u8, subpage: u8) -> bool {
        self.types.contains(&unit.device_type)
            && (page == self.code || page == ALL_PAGES)
            && (subpage == self.subpage || subpage == ALL_SUBPAGES)
    }

    /// Its parameters, without the header.
    fn parameters(&self, unit: &LogicalUnit) -> [u8; PARAMETERS_MAX] {
        let mut parameters = [0; PARAMETERS_MAX];
        (self.write)(unit, &mut Writer::new(&mut parameters));
        parameters
    }

    /// Ones where MODE SELECT may change a bit of them.
    fn changeable(&self) -> [u8; PARAMETERS_MAX] {
        let mut mask = [0; PARAMETERS_MAX];
        if (self.code, self.subpage) == (CONTROL, 0) {
            let mut writer = Writer::new(&mut mask);
            writer.put(&[D_SENSE, 0, SWP]);
        }
        mask
    }

    /// SPC-6, the page_0 and sub_page formats, with PS zero: nothing is saved by the target.
    fn header(&self) -> ([u8; 4], usize) {
        const SUBPAGE_FORMAT: u8 = 0x40;
        if self.subpage == 0 {
            ([self.code, self.length, 0, 0], 2)
        } else {
            ([SUBPAGE_FORMAT | self.code, self.subpage, 0, self.length], 4)
        }
    }
}

/// TST is above them; both are in the Control mode page's first and third byte.
const D_SENSE: u8 = 0x04;
const SWP: u8 = 0x08;

fn zeros(_: &LogicalUnit, _: &mut Writer<'_>) {}

/// AWRE and ARRE: what the backing does about its bad blocks it does by itself.
fn error_recovery(_: &LogicalUnit, writer: &mut Writer<'_>) {
    writer.put(&[0xC0]);
}

/// A geometry, for those who need one.
const SECTORS_PER_TRACK: u16 = 63;
const HEADS: u8 = 255;

fn format_device(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    const HARD_SECTORS: u8 = 0x40;
    const REMOVABLE: u8 = 0x20;
    writer.zeros(8);
    writer.put(&SECTORS_PER_TRACK.to_be_bytes());
    writer.put(&u16::try_from(unit.block_bytes).unwrap_or(0).to_be_bytes());
    writer.zeros(6);
    writer.put(&[HARD_SECTORS | if unit.removable { REMOVABLE } else { 0 }]);
}

fn geometry(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    const CYLINDER: u64 = SECTORS_PER_TRACK as u64 * HEADS as u64;
    let cylinders = unit.blocks.checked_div(CYLINDER).unwrap_or(0).min(0xFF_FFFF) as u32;
    let [_, c0, c1, c2] = cylinders.to_be_bytes();
    writer.put(&[c0, c1, c2, HEADS]);
    writer.zeros(14);
    writer.put(&if unit.rotational { super::vpd::ROTATIONS } else { 0 }.to_be_bytes());
}

/// WCE; RCD zero.
fn caching(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    writer.put(&[if unit.write_cache { 0x04 } else { 0 }]);
}

fn control(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    // GLTSD: no log page is saved.
    let descriptor_sense = if unit.descriptor_sense { D_SENSE } else { 0 };
    // QUEUE ALGORITHM MODIFIER: unrestricted reordering.
    let protect = if unit.software_write_protect { SWP } else { 0 };
    writer.put(&[((unit.tst & 0x07) << 5) | descriptor_sense | 0x02, 0x10, protect]);
}

/// DEXCPT: none are reported.
fn informational_exceptions(_: &LogicalUnit, writer: &mut Writer<'_>) {
    writer.put(&[0x08]);
}

/// MMC-3: reads CD-R, CD-RW and DVD-ROM; a tray that can be locked and ejects.
fn capabilities(_: &LogicalUnit, writer: &mut Writer<'_>) {
    const READS: u8 = 0x08 | 0x02 | 0x01;
    const TRAY: u8 = 0x20 | 0x08 | 0x01;
    writer.put(&[READS, 0, 0, 0, TRAY]);
}

/// Is there such a page?
pub(super) fn check(unit: &LogicalUnit, page: u8, subpage: u8) -> Result<(), Sense> {
    let is_known = |known: &Page| known.code == page && known.types.contains(&unit.device_type);
    if page != ALL_PAGES && !PAGES.iter().any(is_known) {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(2, Some(5)));
    }
    if !PAGES.iter().any(|known| known.is_wanted(unit, page, subpage)) {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(3, None));
    }
    if page == ALL_PAGES && !matches!(subpage, 0 | ALL_SUBPAGES) {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(3, None));
    }
    Ok(())
}

/// In DEVICE-SPECIFIC PARAMETER (SBC-4, mode parameter header).
const WP: u8 = 0x80;
const DPOFUA: u8 = 0x10;
/// In byte 4 of the longer header (SPC-6, mode parameter header).
const LONGLBA: u8 = 0x01;

/// Header, block descriptor, pages.
pub(super) fn write(
    sense: &ModeSense,
    write_protected: bool,
    unit: &LogicalUnit,
    writer: &mut Writer<'_>,
) {
    let device_specific = match unit.device_type {
        DeviceType::Disk => {
            let write_protected = if write_protected { WP } else { 0 };
            write_protected | if unit.fua { DPOFUA } else { 0 }
        }
        // MMC-6, mode parameter header: reserved.
        DeviceType::CdDvd | DeviceType::NoDevice => 0,
    };
    let long_lba = sense.long && sense.llbaa && !sense.dbd;
    let descriptor_bytes = match (sense.dbd, long_lba) {
        (true, _) => 0,
        (false, false) => 8,
        (false, true) => 16,
    };
    if sense.long {
        let long_lba = if long_lba { LONGLBA } else { 0 };
        writer.put(&[0, 0, 0, device_specific, long_lba, 0, 0, descriptor_bytes]);
    } else {
        writer.put(&[0, 0, device_specific, descriptor_bytes]);
    }
    if !sense.dbd {
        block_descriptor(unit, long_lba, writer);
    }
    pages(sense, unit, writer);
    // MODE DATA LENGTH does not count itself (SPC-6, mode parameter header).
    if sense.long {
        let length = u16::try_from(writer.position().saturating_sub(2)).unwrap_or(u16::MAX);
        writer.patch(0, &length.to_be_bytes());
    } else {
        let length = u8::try_from(writer.position().saturating_sub(1)).unwrap_or(u8::MAX);
        writer.patch(0, &[length]);
    }
}

/// SBC-4, mode parameter block descriptors: the number of blocks and their length.
fn block_descriptor(unit: &LogicalUnit, long_lba: bool, writer: &mut Writer<'_>) {
    if long_lba {
        writer.put(&unit.blocks.to_be_bytes());
        writer.zeros(4);
    } else {
        writer.put(&u32::try_from(unit.blocks).unwrap_or(u32::MAX).to_be_bytes());
    }
    // In the short form the high byte is reserved, and zero for every valid length.
    writer.put(&unit.block_bytes.to_be_bytes());
}

/// The pages asked for, ascending.
fn pages(sense: &ModeSense, unit: &LogicalUnit, writer: &mut Writer<'_>) {
    for page in PAGES.iter().filter(|page| page.is_wanted(unit, sense.page, sense.subpage)) {
        let (header, header_bytes) = page.header();
        let parameters = match sense.control {
            PageControl::Changeable => page.changeable(),
            PageControl::Current | PageControl::Saved => page.parameters(unit),
            PageControl::Default => page.parameters(&LogicalUnit {
                software_write_protect: false,
                descriptor_sense: false,
                ..unit.clone()
            }),
        };
        writer.put(header.get(..header_bytes).unwrap_or_default());
        writer.put(parameters.get(..usize::from(page.length)).unwrap_or_default());
    }
}

/// What MODE SELECT can change; the defaults are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModeParameters {
    /// SWP.
    pub software_write_protect: bool,
    /// D_SENSE.
    pub descriptor_sense: bool,
}

impl ModeParameters {
    /// Those in force.
    #[must_use]
    pub fn of(unit: &LogicalUnit) -> Self {
        Self {
            software_write_protect: unit.software_write_protect,
            descriptor_sense: unit.descriptor_sense,
        }
    }
}

/// What a MODE SELECT (6) or (10) with this parameter list makes of the unit's mode parameters (SPC-6).
/// `list` is the data-out that there is.
///
/// # Errors
/// INVALID FIELD IN CDB: not MODE SELECT, cut, vendor specific pages (PF zero), to be saved (SP), or
/// back to defaults (RTD). PARAMETER LIST LENGTH ERROR: the list or a page in it is cut. INVALID FIELD IN
/// PARAMETER LIST with the field pointer: a page that is not there or has another length, a block
/// descriptor that says something else, or a bit that cannot be changed and is not as it is.
/// Nothing changes then.
pub fn select(unit: &LogicalUnit, cdb: &[u8], list: &[u8]) -> Result<ModeParameters, Sense> {
    let (flags, list_bytes, long) = match *cdb {
        [opcode::MODE_SELECT_6, flags, _, _, bytes, _, ..] => (flags, usize::from(bytes), false),
        [opcode::MODE_SELECT_10, flags, _, _, _, _, _, high, low, _, ..] => {
            (flags, usize::from(u16::from_be_bytes([high, low])), true)
        }
        _ => return Err(Sense::INVALID_FIELD_IN_CDB.with_field(0, None)),
    };
    const PAGE_FORMAT: u8 = 0x10;
    const REVERT: u8 = 0x02;
    const SAVE: u8 = 0x01;
    for (bit, refused) in
        [(4, flags & PAGE_FORMAT == 0), (1, flags & REVERT != 0), (0, flags & SAVE != 0)]
    {
        if refused {
            return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1, Some(bit)));
        }
    }
    let mut changed = ModeParameters::of(unit);
    if list_bytes == 0 {
        return Ok(changed);
    }
    let list = list.get(..list_bytes).ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
    let mut position = skip_block_descriptor(unit, list, long)?;
    while position < list.len() {
        position = select_page(unit, list, position, &mut changed)?;
    }
    Ok(changed)
}

/// A field of the list is wrong; it begins at `position`.
fn in_list(position: usize) -> Sense {
    let byte = u16::try_from(position).unwrap_or(u16::MAX);
    Sense::INVALID_FIELD_IN_PARAMETER_LIST.with_field_pointer(FieldPointer {
        in_cdb: false,
        byte,
        bit: None,
    })
}

/// SPC-6, mode parameter header, of which MODE SELECT takes the block descriptor's length alone, and
/// SBC-4, mode parameter block descriptor, in which only the unit's own values are allowed. Gives where
/// the pages begin.
fn skip_block_descriptor(unit: &LogicalUnit, list: &[u8], long: bool) -> Result<usize, Sense> {
    let (header_bytes, long_lba, descriptor_bytes, length_at) = match *list {
        [_, _, _, _, flags, _, high, low, ..] if long => {
            (8, flags & LONGLBA != 0, usize::from(u16::from_be_bytes([high, low])), 6)
        }
        [_, _, _, length, ..] if !long => (4, false, usize::from(length), 3),
        _ => return Err(Sense::PARAMETER_LIST_LENGTH_ERROR),
    };
    if descriptor_bytes == 0 {
        return Ok(header_bytes);
    }
    if descriptor_bytes != if long_lba { 16 } else { 8 } {
        return Err(in_list(length_at));
    }
    let end = header_bytes.saturating_add(descriptor_bytes);
    let descriptor = list.get(header_bytes..end).ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
    let (blocks, block_bytes, length_at) = match *descriptor {
        [b0, b1, b2, b3, b4, b5, b6, b7, _, _, _, _, l0, l1, l2, l3] => (
            u64::from_be_bytes([b0, b1, b2, b3, b4, b5, b6, b7]),
            u32::from_be_bytes([l0, l1, l2, l3]),
            12,
        ),
        [b0, b1, b2, b3, _, l1, l2, l3] => {
            let blocks = u32::from_be_bytes([b0, b1, b2, b3]);
            // What a larger unit reports.
            let all = if blocks == u32::MAX { unit.blocks } else { u64::from(blocks) };
            (all, u32::from_be_bytes([0, l1, l2, l3]), 5)
        }
        _ => return Err(Sense::PARAMETER_LIST_LENGTH_ERROR),
    };
    // Zero blocks: as many as there are (SBC-4).
    if blocks != 0 && blocks != unit.blocks {
        return Err(in_list(header_bytes));
    }
    if block_bytes != unit.block_bytes {
        return Err(in_list(header_bytes.saturating_add(length_at)));
    }
    Ok(end)
}

/// The page at `position`; gives where the next begins.
fn select_page(
    unit: &LogicalUnit,
    list: &[u8],
    position: usize,
    changed: &mut ModeParameters,
) -> Result<usize, Sense> {
    let rest = list.get(position..).unwrap_or_default();
    // Bit 7, PS, is reserved here.
    let (code, subpage, length, header_bytes) = match *rest {
        [first, subpage, high, low, ..] if first & 0x40 != 0 => {
            (first & 0x3F, subpage, usize::from(u16::from_be_bytes([high, low])), 4)
        }
        [first, length, ..] if first & 0x40 == 0 => (first & 0x3F, 0, usize::from(length), 2),
        _ => return Err(Sense::PARAMETER_LIST_LENGTH_ERROR),
    };
    let is_meant = |page: &&Page| {
        (page.code, page.subpage) == (code, subpage) && page.types.contains(&unit.device_type)
    };
    let Some(page) = PAGES.iter().find(is_meant) else {
        return Err(in_list(position));
    };
    let begin = position.saturating_add(header_bytes);
    if length != usize::from(page.length) {
        return Err(in_list(begin.saturating_sub(1)));
    }
    let end = begin.saturating_add(length);
    let new = list.get(begin..end).ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
    let (current, changeable) = (page.parameters(unit), page.changeable());
    for (offset, ((new, current), changeable)) in
        new.iter().zip(current).zip(changeable).enumerate()
    {
        if (new ^ current) & !changeable != 0 {
            return Err(in_list(begin.saturating_add(offset)));
        }
    }
    if let ((CONTROL, 0), [first, _, third, ..]) = ((code, subpage), new) {
        changed.descriptor_sense = first & D_SENSE != 0;
        changed.software_write_protect = third & SWP != 0;
    }
    Ok(end)
}
