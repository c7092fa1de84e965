//! Any EXTENDED COPY: what is taken is within the limits that are reported, and what passes the check
//! lies on the media.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_scsi::extended_copy::{Receive, SEGMENTS_MAX, TARGETS_MAX, parse};
use lunar_scsi::unit::{Identity, LogicalUnit};

/// A thin disk of 1 GiB.
fn disk() -> LogicalUnit {
    let identity = Identity::new("LUNAR", "vdisk", "1", "serial", "serial-vdisk");
    let unit = LogicalUnit::new(512, 1 << 21, identity.expect("these texts fit"));
    LogicalUnit { thin: true, ..unit.expect("a unit of this shape is valid") }
}

fuzz_target!(|input: ([u8; 16], &[u8])| {
    let (mut cdb, list) = input;
    let _ = Receive::parse(&cdb);
    // Nearly always the right command, of nearly the right length.
    if cdb[0] != 0 {
        (cdb[0], cdb[1]) = (0x83, cdb[1] & 0xE0);
        let cut = usize::from(cdb[2] % 4);
        let length = (list.len().saturating_sub(cut)) as u32;
        cdb[10..14].copy_from_slice(&length.to_be_bytes());
    }
    let Ok(Some(copy)) = parse(&cdb, list) else { return };
    let unit = disk();
    assert!(copy.segments().len() <= usize::from(SEGMENTS_MAX));
    assert!(copy.target(TARGETS_MAX).is_err());
    for segment in copy.segments() {
        let (Ok(from), Ok(to)) = (copy.target(segment.source), copy.target(segment.destination))
        else {
            continue;
        };
        let _ = from.names(&unit);
        if segment.check((&from, &unit), (&to, &unit)).is_ok() {
            for lba in [segment.source_lba, segment.destination_lba] {
                let end = lba.checked_add(segment.blocks.into());
                assert!(end.is_some_and(|end| end <= unit.blocks));
            }
        }
    }
});
