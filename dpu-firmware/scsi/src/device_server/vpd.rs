//! Vital product data pages (SPC-6 and SBC-4).

use super::parameter::NO_DEVICE;
use crate::unit::LogicalUnit;
use crate::writer::Writer;

/// Supported VPD Pages (SPC-6).
pub(super) const SUPPORTED_PAGES: u8 = 0x00;
/// Unit Serial Number (SPC-6).
const UNIT_SERIAL_NUMBER: u8 = 0x80;
/// Device Identification (SPC-6).
const DEVICE_IDENTIFICATION: u8 = 0x83;
/// Block Limits (SBC-4).
const BLOCK_LIMITS: u8 = 0xB0;
/// Block Device Characteristics (SBC-4).
const BLOCK_DEVICE_CHARACTERISTICS: u8 = 0xB1;
/// Logical Block Provisioning (SBC-4).
const LOGICAL_BLOCK_PROVISIONING: u8 = 0xB2;

/// The pages there are, ascending.
pub(super) const PAGES: [u8; 6] = [
    SUPPORTED_PAGES,
    UNIT_SERIAL_NUMBER,
    DEVICE_IDENTIFICATION,
    BLOCK_LIMITS,
    BLOCK_DEVICE_CHARACTERISTICS,
    LOGICAL_BLOCK_PROVISIONING,
];

/// The longest page is Device Identification: its header, then the T10 vendor ID (8 + 64), NAA
/// (16), EUI-64 (8) and relative target port (4) designators with a header of 4 each.
pub(super) const BYTES_MAX: u32 = 4 + (4 + 8 + 64) + (4 + 16) + (4 + 8) + (4 + 4);

/// One page. Without a unit the page says so and lists nothing but itself.
pub(super) fn write(page: u8, unit: Option<&LogicalUnit>, writer: &mut Writer<'_>) {
    let qualifier_and_type = if unit.is_some() { 0 } else { NO_DEVICE };
    writer.put(&[qualifier_and_type, page, 0, 0]);
    match (page, unit) {
        (SUPPORTED_PAGES, Some(_)) => writer.put(&PAGES),
        (UNIT_SERIAL_NUMBER, Some(unit)) => writer.put(unit.identity.serial.as_bytes()),
        (DEVICE_IDENTIFICATION, Some(unit)) => designators(unit, writer),
        (BLOCK_LIMITS, Some(unit)) => block_limits(unit, writer),
        (BLOCK_DEVICE_CHARACTERISTICS, Some(unit)) => characteristics(unit, writer),
        (LOGICAL_BLOCK_PROVISIONING, Some(unit)) => provisioning(unit, writer),
        _ => writer.put(&[SUPPORTED_PAGES]),
    }
    let length = u16::try_from(writer.position().saturating_sub(4)).unwrap_or(u16::MAX);
    writer.patch(2, &length.to_be_bytes());
}

/// Code sets and designator types (SPC-6, Device Identification VPD page); the association is the
/// logical unit where it is not said.
const BINARY: u8 = 0x01;
const ASCII: u8 = 0x02;
const T10_VENDOR_ID: u8 = 0x01;
const EUI_64: u8 = 0x02;
const NAA: u8 = 0x03;
const RELATIVE_TARGET_PORT: u8 = 0x04;
const ASSOCIATION_TARGET_PORT: u8 = 0x10;

fn designators(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    let identity = &unit.identity;
    let id = identity.t10_id.as_bytes();
    designator(ASCII, T10_VENDOR_ID, &identity.vendor, id, writer);
    if let Some(naa) = &identity.naa {
        designator(BINARY, NAA, &[], naa.as_bytes(), writer);
    }
    if let Some(eui64) = &identity.eui64 {
        designator(BINARY, EUI_64, &[], eui64, writer);
    }
    if identity.relative_target_port != 0 {
        let port = identity.relative_target_port.to_be_bytes();
        let kind = ASSOCIATION_TARGET_PORT | RELATIVE_TARGET_PORT;
        designator(BINARY, kind, &[0, 0], &port, writer);
    }
}

/// SPC-6, Device Identification VPD page; the name is given in two halves.
fn designator(code_set: u8, kind: u8, head: &[u8], tail: &[u8], writer: &mut Writer<'_>) {
    let length = u8::try_from(head.len().saturating_add(tail.len())).unwrap_or(u8::MAX);
    writer.put(&[code_set, kind, 0, length]);
    writer.put(head);
    writer.put(tail);
}

/// SBC-4, Block Limits VPD page. Zero is "not reported" or "not supported" in every field that is
/// left out.
fn block_limits(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    writer.zeros(2); // WSNZ, MAXIMUM COMPARE AND WRITE LENGTH
    let granularity: u16 = 1 << (unit.physical_blocks_exponent & 0x0F);
    writer.put(&granularity.to_be_bytes());
    writer.put(&unit.maximum_transfer_blocks.to_be_bytes());
    writer.put(&unit.optimal_transfer_blocks.to_be_bytes());
    writer.zeros(48);
}

/// SBC-4, Block Device Characteristics VPD page, MEDIUM ROTATION RATE: 0001h is a medium that does
/// not rotate. For one that does, the rate is the one SCST reports, 15,000 a minute.
fn characteristics(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    let rate: u16 = if unit.rotational { 15_000 } else { 0x0001 };
    writer.put(&rate.to_be_bytes());
    writer.zeros(58);
}

/// SBC-4, Logical Block Provisioning VPD page. LBPU, LBPWS and LBPWS10 are zero because none of the
/// commands is known yet; the provisioning type is 2 (thin) or 0 (not reported).
fn provisioning(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    let kind = if unit.thin { 0x02 } else { 0x00 };
    writer.put(&[0, 0, kind, 0]);
}
