//! Any commands about reservations, one after the other, from several nexuses: what they make of the
//! state is a state that can be kept and read again, and a field pointer lies inside what was sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lunar_scsi::device_server::Ending;
use lunar_scsi::reservations::record::Record;
use lunar_scsi::reservations::{Nexus, Protocol, Reservations, TargetPort, TransportId};

const PORTS: [TargetPort; 3] = [
    TargetPort { id: 1, protocol: Protocol::Srp },
    TargetPort { id: 2, protocol: Protocol::Srp },
    TargetPort { id: 3, protocol: Protocol::Vscsi },
];

/// One of four initiators, at one of two ports.
fn nexus(number: u8) -> Nexus {
    let initiator = TransportId::srp([number % 4; 16]);
    Nexus { initiator, target_port: u16::from(number >> 2) % 2 + 1 }
}

fn check_pointer(ending: &Ending, cdb: &[u8], list: &[u8]) {
    if let Ending::Sense(sense) = ending
        && let Some(field) = sense.field
    {
        let bytes = if field.in_cdb { cdb.len() } else { list.len() };
        assert!(usize::from(field.byte) < bytes, "{field:?}");
    }
}

fuzz_target!(|input: &[u8]| {
    let mut state = Reservations::default();
    let mut rest = input;
    // A command: who, the length of its list, its CDB, its list.
    while let Some((&[number, list_bytes, mut cdb @ ..], tail)) = rest.split_first_chunk::<12>() {
        let (list, tail) = tail.split_at(tail.len().min(list_bytes.into()));
        rest = tail;
        let from = nexus(number);
        // Nearly always the right command, of nearly the right length.
        if number & 0x80 == 0 {
            let cut = usize::from(number >> 3 & 0x0F).saturating_sub(14);
            let length = list.len().saturating_sub(cut) as u32;
            cdb[0] = 0x5F;
            cdb[5..9].copy_from_slice(&length.to_be_bytes());
        }
        match cdb[0] {
            0x5E => {
                let mut out = vec![0xA5; 300];
                if let Ok(length) = state.persistent_reserve_in(&cdb, &mut out) {
                    assert!(out[length..].iter().all(|byte| *byte == 0xA5));
                }
            }
            0x5F => match state.persistent_reserve_out(&from, &cdb, list, &PORTS) {
                Ok(change) => {
                    assert!(change.effects.attentions.iter().all(|(told, _)| *told != from));
                    state = change.state;
                }
                Err(ending) => check_pointer(&ending, &cdb, list),
            },
            0xFF => state = Reservations::information_lost(),
            0xFE => {
                state.on_power_on();
            }
            _ => match state.reserve_or_release(&from, &cdb) {
                Ok(change) => state = change.state,
                Err(ending) => check_pointer(&ending, &cdb, &[]),
            },
        }
        let record =
            Record { unit: "disk".into(), boot_id: [7; 16], operation: None, reservations: state };
        assert_eq!(Record::decode(&record.encode()).as_ref(), Ok(&record));
        state = record.reservations;
        let table = state.access_table();
        for number in 0..8 {
            assert_eq!(table.access(&nexus(number)), state.access(&nexus(number)));
        }
    }
});
