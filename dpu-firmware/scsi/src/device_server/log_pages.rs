//! Log pages (SPC-6). The counters that SCST's initiators never get are in Lunar's own statistics;
//! here are the pages that say what there is and that nothing is wrong.

use crate::sense::Sense;
use crate::writer::Writer;

/// Supported Log Pages, and with subpage FFh Supported Log Pages and Subpages (SPC-6).
const SUPPORTED: u8 = 0x00;
/// Informational Exceptions (SPC-6).
const INFORMATIONAL_EXCEPTIONS: u8 = 0x2F;
/// SUBPAGE CODE: with all subpages.
const ALL_SUBPAGES: u8 = 0xFF;

/// The pages there are, ascending.
const PAGES: [u8; 2] = [SUPPORTED, INFORMATIONAL_EXCEPTIONS];

/// Header, and the longest page: the list of pages and subpages, or the one parameter.
pub(super) const BYTES_MAX: u32 = 4 + 11;

/// Is there such a page?
pub(super) fn check(page: u8, subpage: u8) -> Result<(), Sense> {
    if !PAGES.contains(&page) {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(2, Some(5)));
    }
    if subpage != 0 && (page, subpage) != (SUPPORTED, ALL_SUBPAGES) {
        return Err(Sense::INVALID_FIELD_IN_CDB.with_field(3, None));
    }
    Ok(())
}

/// SPC-6, log page format: DS one, because nothing here is saved.
pub(super) fn write(page: u8, subpage: u8, writer: &mut Writer<'_>) {
    const DISABLE_SAVE: u8 = 0x80;
    const SUBPAGE_FORMAT: u8 = 0x40;
    let format = if subpage == 0 { 0 } else { SUBPAGE_FORMAT };
    writer.put(&[DISABLE_SAVE | format | page, subpage, 0, 0]);
    match (page, subpage) {
        (SUPPORTED, 0) => writer.put(&PAGES),
        (SUPPORTED, _) => {
            writer.put(&[SUPPORTED, 0, SUPPORTED, ALL_SUBPAGES, INFORMATIONAL_EXCEPTIONS, 0]);
        }
        // Parameter 0000h, a binary format list (FORMAT AND LINKING 11b), of four bytes: ASC, ASCQ and
        // most recent temperature (FFh: unknown). None are reported: DEXCPT in mode page 1Ch.
        _ => writer.put(&[0, 0, 0x03, 4, 0, 0, 0xFF, 0]),
    }
    let length = u16::try_from(writer.position().saturating_sub(4)).unwrap_or(u16::MAX);
    writer.patch(2, &length.to_be_bytes());
}
