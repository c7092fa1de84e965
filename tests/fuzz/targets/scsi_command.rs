//! Any CDB, to any logical unit: a verdict, block operations inside the medium, parameter data inside
//! its buffer and its allocation length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_scsi::alua::TargetPort;
use lunar_scsi::device_server::{self, BlockOperation, Verdict};
use lunar_scsi::lun;
use lunar_scsi::opcodes::HostCommands;
use lunar_scsi::unit::{DeviceType, Identity, LogicalUnit};

/// The unit is made from the first bytes, so that the fuzzer chooses it as well.
fn unit(shape: [u8; 4]) -> LogicalUnit {
    let identity = Identity::new("LUNAR", "vdisk", "1", "serial", "serial-vdisk");
    let identity = identity.expect("these texts fit");
    let block_bytes = 512 << (shape[0] % 8);
    let blocks = 1 << (shape[1] % 40);
    let mut unit =
        LogicalUnit::new(block_bytes, blocks, identity).expect("a unit of this shape is valid");
    let flag = |bit: u8| shape[2] & (1 << bit) != 0;
    unit.read_only = flag(0);
    unit.write_cache = flag(1);
    unit.fua = flag(2);
    unit.removable = flag(3);
    unit.rotational = flag(4);
    unit.thin = flag(5);
    unit.forwards = flag(6);
    if shape[1] & 0x80 != 0 {
        unit.device_type = DeviceType::CdDvd;
    }
    unit.host_commands = HostCommands::from_bits(shape[3].into());
    unit.physical_blocks_exponent = shape[3] % 16;
    unit.maximum_transfer_blocks = u32::from(shape[3]) * 16;
    unit.validate().expect("a unit of this shape is valid")
}

fn assert_inside(unit: &LogicalUnit, operation: &BlockOperation) {
    let (lba, blocks) = match *operation {
        BlockOperation::Flush { lba, blocks } => (lba, blocks),
        BlockOperation::LbaStatus { lba, allocation } => {
            assert!(allocation > 0, "a question without an answer reached the backend");
            (lba, 1)
        }
        BlockOperation::Unmap { .. } => unreachable!("its ranges are in a list"),
        BlockOperation::Read { lba, blocks }
        | BlockOperation::Write { lba, blocks, .. }
        | BlockOperation::Compare { lba, blocks, .. }
        | BlockOperation::CompareAndWrite { lba, blocks, .. }
        | BlockOperation::WriteAndVerify { lba, blocks }
        | BlockOperation::OrWrite { lba, blocks, .. }
        | BlockOperation::WriteSame { lba, blocks, .. } => {
            assert!(blocks > 0, "a transfer of nothing reached the backend");
            (lba, blocks)
        }
    };
    assert!(lba.checked_add(u64::from(blocks)).is_some_and(|end| end <= unit.blocks));
}

fn assert_fills(verdict: &Verdict, unit: Option<&LogicalUnit>, room_bytes: usize) {
    if let Verdict::Parameter(parameter) = verdict {
        let mut out = vec![0xa5; room_bytes];
        let mut luns = 0..300;
        let written =
            device_server::fill(parameter, unit, TargetPort::default(), &mut luns, None, &mut out);
        assert!(written <= room_bytes.min(parameter.length_max() as usize));
        assert!(out[written..].iter().all(|byte| *byte == 0xa5), "it wrote behind its data");
    }
}

fuzz_target!(|input: ([u8; 4], u16, [u8; 8], &[u8])| {
    let (shape, room_bytes, lun, cdb) = input;
    let unit = unit(shape);
    let room_bytes = usize::from(room_bytes % 4096);
    let (_, verdict) = device_server::begin_cdb(&unit, shape[2] & 0x80 != 0, cdb);
    if let Verdict::Block(operation) = &verdict {
        assert_inside(&unit, operation);
    }
    if let Verdict::Done(Err(sense)) = &verdict {
        let mut out = [0; 252];
        assert!(sense.encode(false, &mut out) >= 18);
        assert!(sense.encode(true, &mut out) >= 8);
    }
    assert_fills(&verdict, Some(&unit), room_bytes);
    assert_fills(&verdict, None, room_bytes);
    assert_fills(&device_server::begin_absent(cdb), None, room_bytes);
    if let Some(number) = lun::decode(lun) {
        assert_eq!(lun::decode(lun::encode(number)), Some(number));
    }
});
