//! Any bytes as a record of reservations, as SCST's file and as its text: what is read can be written and
//! read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_scsi::reservations::record::Record;
use lunar_scsi::reservations::{Reservations, scst};

/// CRC-32C at the end of the bytes, so that what is in front of it is looked at.
fn seal(bytes: &mut Vec<u8>) {
    let crc = !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 }
        })
    });
    bytes.extend(crc.to_le_bytes());
}

fn check(state: &Reservations) {
    let Some(text) = scst::export_state(state) else {
        return assert!(state.is_lost());
    };
    let again = scst::import_state(&text).expect("it came from a state");
    assert!(again.registrations().eq(state.registrations()));
    assert_eq!(again.reservation(), state.reservation());
}

fuzz_target!(|input: (bool, &[u8])| {
    let (body, bytes) = input;
    let mut record = bytes.to_vec();
    if body {
        let length = (bytes.len() as u32).to_le_bytes();
        record = [b"LUNARPR\0\x01\0\0\0", &length[..], bytes].concat();
        seal(&mut record);
    }
    if let Ok(record) = Record::decode(&record) {
        assert_eq!(Record::decode(&record.encode()).as_ref(), Ok(&record));
        check(&record.reservations);
    }
    if let Ok(state) = scst::import_file(bytes) {
        check(&state);
    }
    if let Some(Ok(state)) = std::str::from_utf8(bytes).ok().map(scst::import_state) {
        check(&state);
    }
});
