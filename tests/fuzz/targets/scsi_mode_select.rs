//! Any mode parameter list: taken or refused, and what was taken is what MODE SENSE tells afterwards.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_scsi::alua::TargetPort;
use lunar_scsi::device_server::{ModeParameters, Verdict, begin_cdb, fill, select};
use lunar_scsi::unit::{Identity, LogicalUnit};

/// A thin disk of 1 GiB.
fn disk() -> LogicalUnit {
    let identity = Identity::new("LUNAR", "vdisk", "1", "serial", "serial-vdisk");
    let unit = LogicalUnit::new(512, 1 << 21, identity.expect("these texts fit"));
    LogicalUnit { thin: true, ..unit.expect("a unit of this shape is valid") }
}

fuzz_target!(|input: ([u8; 2], [u8; 2], &[u8])| {
    let ([flags, was], [high, low], list) = input;
    let unit = LogicalUnit {
        software_write_protect: was & 1 != 0,
        descriptor_sense: was & 2 != 0,
        ..disk()
    };
    let six = [0x15, flags, 0, 0, low, 0];
    let ten = [0x55, flags, 0, 0, 0, 0, 0, high, low, 0];
    let cdb: &[u8] = if was & 4 != 0 { &six } else { &ten };
    let Ok(changed) = select(&unit, cdb, list) else { return };
    let after = LogicalUnit {
        software_write_protect: changed.software_write_protect,
        descriptor_sense: changed.descriptor_sense,
        ..unit
    };
    // All pages, without block descriptor.
    let sense = begin_cdb(&after, false, &[0x1A, 0x08, 0x3F, 0xFF, 255, 0]).1;
    let Verdict::Parameter(parameter) = sense else { panic!("{sense:?}") };
    let mut sensed = [0; 255];
    let length = fill(
        &parameter,
        Some(&after),
        TargetPort::default(),
        &mut std::iter::empty(),
        None,
        &mut sensed,
    );
    let cdb = [0x15, 0x10, 0, 0, length as u8, 0];
    assert_eq!(select(&disk(), &cdb, &sensed[..length]), Ok(ModeParameters::of(&after)));
});
