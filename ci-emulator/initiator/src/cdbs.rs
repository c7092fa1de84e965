//! Command descriptor blocks as an initiator builds them (SPC-6, SBC-4). Each function gives exactly
//! the bytes of one CDB; nothing is checked, because wrong values are wanted in tests too.

/// READ or WRITE: what the CDBs of a transfer share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// First logical block.
    pub lba: u64,
    /// Number of logical blocks.
    pub blocks: u32,
    /// Force unit access.
    pub fua: bool,
    /// Disable page out.
    pub dpo: bool,
}

impl Transfer {
    /// `blocks` blocks from `lba`, without FUA and DPO.
    #[must_use]
    pub fn new(lba: u64, blocks: u32) -> Self {
        Self { lba, blocks, fua: false, dpo: false }
    }

    fn flags(self) -> u8 {
        u8::from(self.dpo) << 4 | u8::from(self.fua) << 3
    }
}

/// READ (6), SBC-4 5.14: 21 bits of LBA; 0 blocks mean 256.
#[must_use]
pub fn read6(lba: u32, blocks: u8) -> [u8; 6] {
    six(0x08, lba, blocks)
}

/// WRITE (6), SBC-4 5.39.
#[must_use]
pub fn write6(lba: u32, blocks: u8) -> [u8; 6] {
    six(0x0a, lba, blocks)
}

fn six(opcode: u8, lba: u32, blocks: u8) -> [u8; 6] {
    let [_, high, middle, low] = lba.to_be_bytes();
    [opcode, high & 0x1f, middle, low, blocks, 0]
}

/// READ (10), SBC-4 5.15. The LBA is cut to 32 bits and the length to 16.
#[must_use]
pub fn read10(transfer: Transfer) -> [u8; 10] {
    ten(0x28, transfer)
}

/// WRITE (10), SBC-4 5.40. Cut as in [`read10`].
#[must_use]
pub fn write10(transfer: Transfer) -> [u8; 10] {
    ten(0x2a, transfer)
}

fn ten(opcode: u8, transfer: Transfer) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[1] = transfer.flags();
    cdb[2..6].copy_from_slice(&(transfer.lba as u32).to_be_bytes());
    cdb[7..9].copy_from_slice(&(transfer.blocks as u16).to_be_bytes());
    cdb
}

/// READ (12), SBC-4 5.16. The LBA is cut to 32 bits.
#[must_use]
pub fn read12(transfer: Transfer) -> [u8; 12] {
    twelve(0xa8, transfer)
}

/// WRITE (12), SBC-4 5.41. Cut as in [`read12`].
#[must_use]
pub fn write12(transfer: Transfer) -> [u8; 12] {
    twelve(0xaa, transfer)
}

fn twelve(opcode: u8, transfer: Transfer) -> [u8; 12] {
    let mut cdb = [0; 12];
    cdb[0] = opcode;
    cdb[1] = transfer.flags();
    cdb[2..6].copy_from_slice(&(transfer.lba as u32).to_be_bytes());
    cdb[6..10].copy_from_slice(&transfer.blocks.to_be_bytes());
    cdb
}

/// READ (16), SBC-4 5.17.
#[must_use]
pub fn read16(transfer: Transfer) -> [u8; 16] {
    sixteen(0x88, transfer)
}

/// WRITE (16), SBC-4 5.42.
#[must_use]
pub fn write16(transfer: Transfer) -> [u8; 16] {
    sixteen(0x8a, transfer)
}

fn sixteen(opcode: u8, transfer: Transfer) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[1] = transfer.flags();
    cdb[2..10].copy_from_slice(&transfer.lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&transfer.blocks.to_be_bytes());
    cdb
}

/// What VERIFY compares the medium with (SBC-4, BYTCHK). The discriminant is the code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ByteCheck {
    /// Nothing: it must be readable.
    Nothing = 0b00,
    /// As many blocks of data-out.
    Blocks = 0b01,
    /// One block of data-out, again and again.
    OneBlock = 0b11,
}

/// VERIFY (10), SBC-4 5.33. Cut as in [`read10`].
#[must_use]
pub fn verify10(transfer: Transfer, check: ByteCheck) -> [u8; 10] {
    let mut cdb = ten(0x2f, transfer);
    cdb[1] |= (check as u8) << 1;
    cdb
}

/// VERIFY (16), SBC-4 5.35.
#[must_use]
pub fn verify16(transfer: Transfer, check: ByteCheck) -> [u8; 16] {
    let mut cdb = sixteen(0x8f, transfer);
    cdb[1] |= (check as u8) << 1;
    cdb
}

/// WRITE AND VERIFY (10), SBC-4 5.44, with BYTCHK 00b. Cut as in [`read10`].
#[must_use]
pub fn write_and_verify10(transfer: Transfer) -> [u8; 10] {
    ten(0x2e, transfer)
}

/// WRITE AND VERIFY (16), SBC-4 5.46, with BYTCHK 00b.
#[must_use]
pub fn write_and_verify16(transfer: Transfer) -> [u8; 16] {
    sixteen(0x8e, transfer)
}

/// COMPARE AND WRITE, SBC-4 5.3. The length is cut to 8 bits.
#[must_use]
pub fn compare_and_write(transfer: Transfer) -> [u8; 16] {
    let mut cdb = sixteen(0x89, Transfer { blocks: 0, ..transfer });
    cdb[13] = transfer.blocks as u8;
    cdb
}

/// ORWRITE (16), SBC-4 5.10.
#[must_use]
pub fn orwrite16(transfer: Transfer) -> [u8; 16] {
    sixteen(0x8b, transfer)
}

/// WRITE SAME (10), SBC-4 5.52. Cut as in [`read10`].
#[must_use]
pub fn write_same10(lba: u32, blocks: u16, unmap: bool) -> [u8; 10] {
    let mut cdb = ten(0x41, Transfer::new(lba.into(), blocks.into()));
    cdb[1] = u8::from(unmap) << 3;
    cdb
}

/// WRITE SAME (16), SBC-4 5.53. `no_data`: NDOB, zeros are written and no data is sent.
#[must_use]
pub fn write_same16(lba: u64, blocks: u32, unmap: bool, no_data: bool) -> [u8; 16] {
    let mut cdb = sixteen(0x93, Transfer::new(lba, blocks));
    cdb[1] = u8::from(unmap) << 3 | u8::from(no_data);
    cdb
}

/// UNMAP, SBC-4 5.32, with this PARAMETER LIST LENGTH.
#[must_use]
pub fn unmap(list_bytes: u16) -> [u8; 10] {
    let mut cdb = ten(0x42, Transfer::default());
    cdb[7..9].copy_from_slice(&list_bytes.to_be_bytes());
    cdb
}

/// UNMAP's parameter list, SBC-4 5.32.2, of the ranges (first block, blocks). Gives its bytes, which `out`
/// has to have: 8, and 16 for each range.
pub fn unmap_list(ranges: &[(u64, u32)], out: &mut [u8]) -> usize {
    let bytes = 8 + 16 * ranges.len();
    let (header, descriptors) = out[..bytes].split_at_mut(8);
    header.fill(0);
    header[..2].copy_from_slice(&((bytes - 2) as u16).to_be_bytes());
    header[2..4].copy_from_slice(&((bytes - 8) as u16).to_be_bytes());
    for ((lba, blocks), descriptor) in ranges.iter().zip(descriptors.chunks_exact_mut(16)) {
        descriptor[..8].copy_from_slice(&lba.to_be_bytes());
        descriptor[8..12].copy_from_slice(&blocks.to_be_bytes());
        descriptor[12..].fill(0);
    }
    bytes
}

/// EXTENDED COPY (LID1), SPC-4 6.4, with a parameter list of so many bytes.
#[must_use]
pub fn extended_copy(list_bytes: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[10..14].copy_from_slice(&list_bytes.to_be_bytes());
    cdb
}

/// The parameter list of [`extended_copy`] (SPC-4 6.4.3) that copies, from the first to the second of two disks that
/// are named by NAA designators, one segment after the other: LBA there, LBA here, blocks. No list identifier.
#[must_use]
pub fn extended_copy_list(
    disks: [[u8; 8]; 2],
    block_bytes: u32,
    segments: &[(u64, u64, u16)],
) -> Vec<u8> {
    let segment_bytes = u32::try_from(28 * segments.len()).unwrap_or(u32::MAX);
    // LIST ID USAGE 11b: there is none. Two target descriptors.
    let mut list = vec![0, 3 << 3, 0, 64, 0, 0, 0, 0];
    list.extend(segment_bytes.to_be_bytes());
    list.extend([0; 4]);
    for naa in disks {
        // Identification descriptor: binary, NAA.
        list.extend([0xE4, 0, 0, 0, 1, 3, 0, 8]);
        list.extend(naa);
        list.extend([0; 12]);
        list.extend(block_bytes.to_be_bytes());
    }
    for (from, to, blocks) in segments {
        // From block device to block device, from target descriptor 0 to 1.
        list.extend([0x02, 0, 0, 24, 0, 0, 0, 1, 0, 0]);
        list.extend(blocks.to_be_bytes());
        list.extend(from.to_be_bytes());
        list.extend(to.to_be_bytes());
    }
    list
}

/// SYNCHRONIZE CACHE (10), SBC-4 5.31. 0 blocks mean to the end.
#[must_use]
pub fn synchronize_cache10(lba: u32, blocks: u16, immediate: bool) -> [u8; 10] {
    let mut cdb = ten(0x35, Transfer::new(lba.into(), blocks.into()));
    cdb[1] = u8::from(immediate) << 1;
    cdb
}

/// SYNCHRONIZE CACHE (16), SBC-4 5.32. 0 blocks mean to the end.
#[must_use]
pub fn synchronize_cache16(lba: u64, blocks: u32, immediate: bool) -> [u8; 16] {
    let mut cdb = sixteen(0x91, Transfer::new(lba, blocks));
    cdb[1] = u8::from(immediate) << 1;
    cdb
}

/// TEST UNIT READY, SPC-6 6.47.
#[must_use]
pub fn test_unit_ready() -> [u8; 6] {
    [0; 6]
}

/// INQUIRY, SPC-6 6.7: standard data, or the VPD page `vpd`.
#[must_use]
pub fn inquiry(vpd: Option<u8>, allocation: u16) -> [u8; 6] {
    let [high, low] = allocation.to_be_bytes();
    [0x12, u8::from(vpd.is_some()), vpd.unwrap_or(0), high, low, 0]
}

/// REQUEST SENSE, SPC-6 6.39.
#[must_use]
pub fn request_sense(descriptor_format: bool, allocation: u8) -> [u8; 6] {
    [0x03, u8::from(descriptor_format), 0, 0, allocation, 0]
}

/// REPORT LUNS, SPC-6 6.33.
#[must_use]
pub fn report_luns(select: u8, allocation: u32) -> [u8; 12] {
    let mut cdb = [0; 12];
    cdb[0] = 0xa0;
    cdb[2] = select;
    cdb[6..10].copy_from_slice(&allocation.to_be_bytes());
    cdb
}

/// READ CAPACITY (10), SBC-4 5.20.
#[must_use]
pub fn read_capacity10() -> [u8; 10] {
    ten(0x25, Transfer::default())
}

/// READ CAPACITY (16), SBC-4 5.21.
#[must_use]
pub fn read_capacity16(allocation: u32) -> [u8; 16] {
    let mut cdb = sixteen(0x9e, Transfer::new(0, allocation));
    cdb[1] = 0x10;
    cdb
}

/// What a MODE SENSE asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModePage {
    /// Page code; 3Fh = all.
    pub page: u8,
    /// Subpage code.
    pub subpage: u8,
    /// Page control: 0 current, 1 changeable, 2 default, 3 saved.
    pub control: u8,
    /// Disable block descriptors.
    pub dbd: bool,
}

/// MODE SENSE (6), SPC-6 6.14.
#[must_use]
pub fn mode_sense6(page: ModePage, allocation: u8) -> [u8; 6] {
    let dbd = u8::from(page.dbd) << 3;
    [0x1a, dbd, page.control << 6 | page.page & 0x3f, page.subpage, allocation, 0]
}

/// MODE SENSE (10), SPC-6 6.15. `llbaa`: long LBAs in the block descriptor are accepted.
#[must_use]
pub fn mode_sense10(page: ModePage, llbaa: bool, allocation: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = 0x5a;
    cdb[1] = u8::from(llbaa) << 4 | u8::from(page.dbd) << 3;
    cdb[2] = page.control << 6 | page.page & 0x3f;
    cdb[3] = page.subpage;
    cdb[7..9].copy_from_slice(&allocation.to_be_bytes());
    cdb
}

/// START STOP UNIT, SBC-4 5.30, with power condition START_VALID.
#[must_use]
pub fn start_stop_unit(start: bool, immediate: bool) -> [u8; 6] {
    [0x1b, u8::from(immediate), 0, 0, u8::from(start), 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_standards_put_them() {
        let transfer = Transfer { lba: 0x0102_0304, blocks: 0x0506, fua: true, dpo: true };
        assert_eq!(read6(0x1f_0203, 4), [8, 0x1f, 2, 3, 4, 0]);
        assert_eq!(write6(0xff_0203, 0), [0x0a, 0x1f, 2, 3, 0, 0]);
        assert_eq!(read10(transfer), [0x28, 0x18, 1, 2, 3, 4, 0, 5, 6, 0]);
        assert_eq!(write10(Transfer::new(1, 2)), [0x2a, 0, 0, 0, 0, 1, 0, 0, 2, 0]);
        assert_eq!(read12(transfer), [0xa8, 0x18, 1, 2, 3, 4, 0, 0, 5, 6, 0, 0]);
        assert_eq!(write16(transfer), [0x8a, 0x18, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 5, 6, 0, 0],);
        assert_eq!(verify10(transfer, ByteCheck::Blocks)[..2], [0x2f, 0x1a]);
        assert_eq!(verify16(Transfer::new(1, 2), ByteCheck::OneBlock)[..2], [0x8f, 0x06]);
        assert_eq!(write_and_verify10(transfer)[..6], [0x2e, 0x18, 1, 2, 3, 4]);
        let swap = compare_and_write(transfer);
        assert_eq!(swap, [0x89, 0x18, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 6, 0, 0]);
        assert_eq!(write_same10(1, 2, true), [0x41, 8, 0, 0, 0, 1, 0, 0, 2, 0]);
        assert_eq!(write_same16(1, 2, false, true)[..2], [0x93, 1]);
        assert_eq!(unmap(40), [0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0]);
        let mut list = [0xee; 24];
        assert_eq!(unmap_list(&[(5, 6)], &mut list), 24);
        assert_eq!(list[..16], [0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        assert_eq!(list[16..], [0, 0, 0, 6, 0, 0, 0, 0]);
        let copy = extended_copy_list([[1; 8], [3; 8]], 512, &[(2, 4, 5)]);
        assert_eq!(copy[..16], [0, 0x18, 0, 64, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0]);
        assert_eq!(copy[48..60], [0xe4, 0, 0, 0, 1, 3, 0, 8, 3, 3, 3, 3]);
        assert_eq!(copy[76..92], [0, 0, 2, 0, 2, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0, 5]);
        assert_eq!(copy[92..], [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 4]);
        assert_eq!(extended_copy(108)[10..], [0, 0, 0, 108, 0, 0]);
        assert_eq!(synchronize_cache10(9, 3, true), [0x35, 2, 0, 0, 0, 9, 0, 0, 3, 0]);
        assert_eq!(inquiry(Some(0x83), 0x1ff), [0x12, 1, 0x83, 1, 0xff, 0]);
        assert_eq!(inquiry(None, 36), [0x12, 0, 0, 0, 36, 0]);
        assert_eq!(report_luns(2, 16), [0xa0, 0, 2, 0, 0, 0, 0, 0, 0, 16, 0, 0]);
        assert_eq!(read_capacity16(32), [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],);
        let page = ModePage { page: 0x3f, subpage: 0xff, control: 2, dbd: true };
        assert_eq!(mode_sense6(page, 7), [0x1a, 8, 0xbf, 0xff, 7, 0]);
        assert_eq!(mode_sense10(page, true, 0x102), [0x5a, 0x18, 0xbf, 0xff, 0, 0, 0, 1, 2, 0]);
    }
}
