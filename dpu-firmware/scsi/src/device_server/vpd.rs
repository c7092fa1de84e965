//! Vital product data pages (SPC-6 and SBC-4).

use super::medium;
use super::parameter::NO_DEVICE;
use crate::alua::TargetPort;
use crate::extended_copy;
use crate::opcodes::HostCommand;
use crate::unit::{DeviceType, LogicalUnit};
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

/// Extended INQUIRY Data (SPC-6).
const EXTENDED_INQUIRY: u8 = 0x86;
/// Mode Page Policy (SPC-6).
const MODE_PAGE_POLICY: u8 = 0x87;
/// Third-party Copy (SPC-6).
const THIRD_PARTY_COPY: u8 = 0x8F;

/// The pages there are, ascending.
const PAGES: [u8; 9] = [
    SUPPORTED_PAGES,
    UNIT_SERIAL_NUMBER,
    DEVICE_IDENTIFICATION,
    EXTENDED_INQUIRY,
    MODE_PAGE_POLICY,
    THIRD_PARTY_COPY,
    BLOCK_LIMITS,
    BLOCK_DEVICE_CHARACTERISTICS,
    LOGICAL_BLOCK_PROVISIONING,
];

/// Whether a unit has the page.
pub(super) fn has(unit: &LogicalUnit, page: u8) -> bool {
    match page {
        THIRD_PARTY_COPY => copies(unit),
        BLOCK_LIMITS | BLOCK_DEVICE_CHARACTERISTICS | LOGICAL_BLOCK_PROVISIONING => {
            unit.device_type == DeviceType::Disk
        }
        _ => PAGES.contains(&page),
    }
}

/// Whether its agent executes EXTENDED COPY.
pub(super) fn copies(unit: &LogicalUnit) -> bool {
    unit.forwards && unit.host_commands.has(HostCommand::ExtendedCopy)
}

/// The longest page is Device Identification: its header, then the T10 vendor ID (8 + 64), NAA
/// (16), EUI-64 (8), relative target port (4) and target port group (4) designators with a header of 4
/// each.
pub(super) const BYTES_MAX: u32 = 4 + (4 + 8 + 64) + (4 + 16) + (4 + 8) + 2 * (4 + 4);

/// One page. Without a unit the page says so and lists nothing but itself.
pub(super) fn write(
    page: u8,
    unit: Option<&LogicalUnit>,
    port: TargetPort,
    writer: &mut Writer<'_>,
) {
    let qualifier_and_type = unit.map_or(NO_DEVICE, |unit| unit.device_type.peripheral());
    writer.put(&[qualifier_and_type, page, 0, 0]);
    match (page, unit) {
        (SUPPORTED_PAGES, Some(unit)) => {
            for page in PAGES.into_iter().filter(|&page| has(unit, page)) {
                writer.put(&[page]);
            }
        }
        (UNIT_SERIAL_NUMBER, Some(unit)) => writer.put(unit.identity.serial.as_bytes()),
        (DEVICE_IDENTIFICATION, Some(unit)) => designators(unit, port, writer),
        (EXTENDED_INQUIRY, Some(unit)) => extended_inquiry(unit, writer),
        (MODE_PAGE_POLICY, Some(_)) => mode_page_policy(writer),
        (THIRD_PARTY_COPY, Some(_)) => extended_copy::vpd_descriptors(writer),
        (BLOCK_LIMITS, Some(unit)) => block_limits(unit, writer),
        (BLOCK_DEVICE_CHARACTERISTICS, Some(unit)) => characteristics(unit, writer),
        (LOGICAL_BLOCK_PROVISIONING, Some(unit)) => provisioning(unit, writer),
        _ => writer.put(&[SUPPORTED_PAGES]),
    }
    let length = u16::try_from(writer.position().saturating_sub(4)).unwrap_or(u16::MAX);
    writer.patch(2, &length.to_be_bytes());
}

/// SPC-6, Extended INQUIRY Data VPD page: no protection information; all task attributes; a volatile
/// cache where there is one.
fn extended_inquiry(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    const HEAD_OF_QUEUE: u8 = 0x04;
    const ORDERED: u8 = 0x02;
    const SIMPLE: u8 = 0x01;
    let volatile_cache = if unit.write_cache { 0x01 } else { 0 };
    writer.put(&[0, HEAD_OF_QUEUE | ORDERED | SIMPLE, volatile_cache]);
    writer.zeros(57);
}

/// SPC-6, Mode Page Policy VPD page: all pages and subpages are shared by all I_T nexuses.
fn mode_page_policy(writer: &mut Writer<'_>) {
    writer.put(&[0x3F, 0xFF, 0, 0]);
}

/// Code sets and designator types (SPC-6, Device Identification VPD page); the association is the
/// logical unit where it is not said.
const BINARY: u8 = 0x01;
const ASCII: u8 = 0x02;
const T10_VENDOR_ID: u8 = 0x01;
const EUI_64: u8 = 0x02;
const NAA: u8 = 0x03;
const RELATIVE_TARGET_PORT: u8 = 0x04;
const TARGET_PORT_GROUP: u8 = 0x05;
const ASSOCIATION_TARGET_PORT: u8 = 0x10;

fn designators(unit: &LogicalUnit, port: TargetPort, writer: &mut Writer<'_>) {
    let identity = &unit.identity;
    let id = identity.t10_id.as_bytes();
    designator(ASCII, T10_VENDOR_ID, &identity.vendor, id, writer);
    if let Some(naa) = &identity.naa {
        designator(BINARY, NAA, &[], naa.as_bytes(), writer);
    }
    if let Some(eui64) = &identity.eui64 {
        designator(BINARY, EUI_64, &[], eui64, writer);
    }
    let relative = Some(port.relative).filter(|&relative| relative != 0);
    for (kind, id) in [(RELATIVE_TARGET_PORT, relative), (TARGET_PORT_GROUP, port.group)] {
        if let Some(id) = id {
            let kind = ASSOCIATION_TARGET_PORT | kind;
            designator(BINARY, kind, &[0, 0], &id.to_be_bytes(), writer);
        }
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
    const NO_WRITE_SAME_OF_ZERO: u8 = 0x01; // WSNZ
    writer.put(&[NO_WRITE_SAME_OF_ZERO, unit.compare_and_write_blocks_max()]);
    let granularity: u16 = 1 << (unit.physical_blocks_exponent & 0x0F);
    writer.put(&granularity.to_be_bytes());
    writer.put(&unit.maximum_transfer_blocks.to_be_bytes());
    writer.put(&unit.optimal_transfer_blocks.to_be_bytes());
    writer.zeros(4); // MAXIMUM PREFETCH LENGTH
    if unit.thin {
        writer.put(&medium::UNMAP_BLOCKS_MAX.to_be_bytes());
        writer.put(&u32::from(medium::UNMAP_RANGES_MAX).to_be_bytes());
        writer.put(&u32::from(granularity).to_be_bytes());
        const ALIGNMENT_VALID: u32 = 0x8000_0000; // UGAVALID; UNMAP GRANULARITY ALIGNMENT zero
        writer.put(&ALIGNMENT_VALID.to_be_bytes());
    } else {
        writer.zeros(16);
    }
    writer.put(&u64::from(medium::WRITE_SAME_BLOCKS_MAX).to_be_bytes());
    writer.zeros(20); // WRITE ATOMIC is not offered
}

/// MEDIUM ROTATION RATE of a unit that says it rotates, a minute: what SCST reports.
pub(super) const ROTATIONS: u16 = 15_000;

/// SBC-4, Block Device Characteristics VPD page, MEDIUM ROTATION RATE: 0001h is a medium that does
/// not rotate.
fn characteristics(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    let rate: u16 = if unit.rotational { ROTATIONS } else { 0x0001 };
    writer.put(&rate.to_be_bytes());
    writer.zeros(58);
}

/// SBC-4, Logical Block Provisioning VPD page: a thin unit has UNMAP and WRITE SAME with UNMAP of both
/// lengths. Nothing is anchored. The provisioning type is 2 (thin) or 0 (not reported).
fn provisioning(unit: &LogicalUnit, writer: &mut Writer<'_>) {
    const UNMAP: u8 = 0x80; // LBPU
    const WRITE_SAME_16: u8 = 0x40; // LBPWS
    const WRITE_SAME_10: u8 = 0x20; // LBPWS10
    const READS_ZERO: u8 = 0x04; // LBPRZ 001b
    let (commands, kind) = match (unit.thin, unit.unmapped_reads_zero) {
        (false, _) => (0, 0x00),
        (true, false) => (UNMAP | WRITE_SAME_16 | WRITE_SAME_10, 0x02),
        (true, true) => (UNMAP | WRITE_SAME_16 | WRITE_SAME_10 | READS_ZERO, 0x02),
    };
    writer.put(&[0, commands, kind, 0]);
}
