//! Any UNMAP parameter list: what is taken lies on the medium, in as many ranges as it says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_scsi::device_server::{BlockOperation, UNMAP_RANGES_MAX, unmap, unmap_ranges};
use lunar_scsi::unit::{Identity, LogicalUnit};

/// A thin disk of 1 GiB.
fn disk() -> LogicalUnit {
    let identity = Identity::new("LUNAR", "vdisk", "1", "serial", "serial-vdisk");
    let unit = LogicalUnit::new(512, 1 << 21, identity.expect("these texts fit"));
    LogicalUnit { thin: true, ..unit.expect("a unit of this shape is valid") }
}

fuzz_target!(|list: &[u8]| {
    let unit = disk();
    match unmap(&unit, list) {
        Ok(Some(BlockOperation::Unmap { ranges })) => {
            assert!((1..=UNMAP_RANGES_MAX).contains(&ranges));
            assert_eq!(unmap_ranges(list, ranges).count(), usize::from(ranges));
            for (lba, blocks) in unmap_ranges(list, ranges) {
                assert!(lba.checked_add(blocks.into()).is_some_and(|end| end <= unit.blocks));
            }
        }
        Ok(Some(other)) => panic!("{other:?}"),
        Ok(None) | Err(_) => {}
    }
});
