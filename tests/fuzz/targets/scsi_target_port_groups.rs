//! Any SET TARGET PORT GROUPS: what is taken names groups that there are, each once, in states that may be
//! asked for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_scsi::alua::{AccessState, changes, check};

fuzz_target!(|input: ([u8; 12], u16, &[u8])| {
    let (mut cdb, known, list) = input;
    for state in AccessState::ALL {
        assert!(check(state, list).is_ok() || !state.reaches_medium());
    }
    // Nearly always the right command, of nearly the right length.
    if cdb[0] != 0 {
        let cut = usize::from(cdb[2] % 4);
        let length = list.len().saturating_sub(cut) as u32;
        (cdb[0], cdb[1], cdb[11]) = (0xA4, 0x0A, 0);
        cdb[6..10].copy_from_slice(&length.to_be_bytes());
    }
    let Ok(taken) = changes(&cdb, list, &|group| group <= known) else { return };
    let taken: Vec<_> = taken.collect();
    for (place, change) in taken.iter().enumerate() {
        assert!(change.group <= known && (change.state as u8) < 4);
        assert!(taken[..place].iter().all(|earlier| earlier.group != change.group));
    }
});
