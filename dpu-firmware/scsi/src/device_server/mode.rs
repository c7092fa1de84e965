//! Mode parameters (SPC-6 and SBC-4): header, block descriptor, pages 08h, 0Ah and 1Ch. Nothing is
//! changeable here: MODE SELECT is not the device server's.

use crate::cdb::{ModeSense, PageControl};
use crate::sense::Sense;
use crate::unit::LogicalUnit;
use crate::writer::Writer;

/// Caching (SBC-4).
const CACHING: u8 = 0x08;
/// Control (SPC-6).
const CONTROL: u8 = 0x0A;
/// Informational Exceptions Control (SBC-4).
const INFORMATIONAL_EXCEPTIONS: u8 = 0x1C;
/// All pages.
const ALL_PAGES: u8 = 0x3F;
/// In SUBPAGE CODE: with all subpages. No page here has any.
const ALL_SUBPAGES: u8 = 0xFF;

/// The longer header, the longer block descriptor and the three pages.
pub(super) const BYTES_MAX: u32 = 8 + 16 + 20 + 12 + 12;

/// Is there such a page?
pub(super) fn check(page: u8, subpage: u8) -> Result<(), Sense> {
    if !matches!(page, CACHING | CONTROL | INFORMATIONAL_EXCEPTIONS | ALL_PAGES) {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(2, Some(5)));
    }
    if !matches!(subpage, 0 | ALL_SUBPAGES) {
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
    let device_specific = if write_protected { WP } else { 0 } | if unit.fua { DPOFUA } else { 0 };
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
    let wanted = |page| sense.page == page || sense.page == ALL_PAGES;
    if wanted(CACHING) {
        let mut parameters = [0; 18];
        parameters[0] = if unit.write_cache { 0x04 } else { 0 }; // WCE; RCD zero
        page(CACHING, &parameters, sense.control, writer);
    }
    if wanted(CONTROL) {
        let mut parameters = [0; 10];
        parameters[0] = ((unit.tst & 0x07) << 5) | 0x02; // TST, GLTSD: no log page is saved
        parameters[1] = 0x10; // QUEUE ALGORITHM MODIFIER: unrestricted reordering
        page(CONTROL, &parameters, sense.control, writer);
    }
    if wanted(INFORMATIONAL_EXCEPTIONS) {
        let mut parameters = [0; 10];
        parameters[0] = 0x08; // DEXCPT: none are reported
        page(INFORMATIONAL_EXCEPTIONS, &parameters, sense.control, writer);
    }
}

/// SPC-6, the page_0 format with PS zero. No bit is changeable.
fn page(code: u8, parameters: &[u8], control: PageControl, writer: &mut Writer<'_>) {
    writer.put(&[code, u8::try_from(parameters.len()).unwrap_or(u8::MAX)]);
    match control {
        PageControl::Changeable => writer.zeros(parameters.len()),
        PageControl::Current | PageControl::Default | PageControl::Saved => writer.put(parameters),
    }
}
