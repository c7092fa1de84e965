//! The disk commands besides READ and WRITE through the whole card, by clause: where their parameter
//! lists and data go. What each comes to is decided, and tested, in `scsi`.

use lunar_initiator::cdbs::{self, Transfer, write10};
use lunar_initiator::{Data, Event, Initiator, Shape};
use lunar_scenario::{HARDWARE, Hardware, Lab, configuration, small_limits, submit, submit_with};
use lunar_scsi::lun;
use lunar_scsi::unit::LogicalUnit;
use lunar_srp::iu::Residual;
use lunar_target::configuration::Configuration;

/// Sense key, ASC and ASCQ of fixed format sense data.
fn code(sense: &Option<Box<[u8]>>) -> (u8, u8, u8) {
    let sense = sense.as_ref().expect("sense data");
    (sense[2], sense[12], sense[13])
}

/// LUN 0 as `change` makes it; LUN 1 stays as it is.
fn changed(change: impl Fn(LogicalUnit) -> LogicalUnit) -> Configuration {
    let mut configuration = configuration(2);
    let unit = configuration.units[0].logical_unit.clone();
    configuration.units[0].logical_unit = change(unit).validate().expect("unit");
    configuration
}

/// A card whose LUN 0 is as `change` makes it, and an initiator that has heard of it.
fn lab(
    hardware: Hardware,
    change: impl Fn(LogicalUnit) -> LogicalUnit,
    immediate_bytes: u32,
) -> (Lab, Initiator) {
    let mut lab = Lab::new(hardware, 1, &small_limits());
    lab.configure(changed(change));
    let mut initiator = lab.initiator(1, |config| config.immediate_bytes_max = immediate_bytes);
    initiator.login().expect("idle");
    lab.run(&mut initiator, |event| matches!(event, Event::LoggedIn { .. }));
    for lun in [0, 1] {
        let tag = submit(&mut initiator, lun, &cdbs::test_unit_ready());
        assert_eq!(lab.response(&mut initiator, tag).0, 2, "a new nexus has a unit attention");
    }
    (lab, initiator)
}

fn thin(unit: LogicalUnit) -> LogicalUnit {
    LogicalUnit { thin: true, ..unit }
}

fn unmap_list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let bytes = ranges.len() as u16 * 16;
    let mut list = [(bytes + 6).to_be_bytes(), bytes.to_be_bytes(), [0; 2], [0; 2]].concat();
    for (lba, blocks) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

fn unmap(list_bytes: usize) -> [u8; 10] {
    let [high, low] = (list_bytes as u16).to_be_bytes();
    [0x42, 0, 0, 0, 0, 0, 0, high, low, 0]
}

#[test]
fn sbc_4_unmap_judges_its_list_wherever_it_lies() {
    for hardware in HARDWARE {
        // As immediate data it stays in its message, else it is fetched into card memory.
        for immediate_bytes in [0, 1024] {
            let (mut lab, mut initiator) = lab(hardware, thin, immediate_bytes);
            for (ranges, expected) in [
                (&[(0, 8), (1 << 19, 8)][..], None),
                (&[(0, 0)], None),
                (&[(0, 8), (1 << 20, 1)], Some((5, 0x21, 0x00))),
                (&[(0, 1 << 20), (0, 1)], Some((5, 0x26, 0x00))),
            ] {
                for shape in [Shape::Direct, Shape::Indirect { pieces: 3 }] {
                    let list = unmap_list(ranges);
                    initiator.data_mut(64..64 + list.len()).copy_from_slice(&list);
                    let data = Data::Out { offset: 64, bytes: list.len() as u32 };
                    let cdb = unmap(list.len());
                    let command = lunar_initiator::Command::new(lun::encode(0), &cdb, data);
                    let command = lunar_initiator::Command { shape, ..command };
                    let tag = initiator.submit(&command).expect("room");
                    let (status, sense) = lab.response(&mut initiator, tag);
                    match expected {
                        None => assert_eq!(status, 0, "{ranges:?}"),
                        Some(expected) => assert_eq!((status, code(&sense)), (2, expected)),
                    }
                }
            }
            // LUN 1 is read only for this nexus; it is not thin either, but that it may not know first.
            let tag = submit(&mut initiator, 1, &unmap(24));
            assert_eq!(code(&lab.response(&mut initiator, tag).1), (7, 0x27, 0x00));
            assert_eq!(initiator.violation_count(), 0);
            lab.steps(50);
            assert_eq!(lab.tasks(), 0);
        }
    }
}

#[test]
fn sbc_4_unmap_of_less_data_than_its_list_has_is_refused_with_the_residual() {
    let (mut lab, mut initiator) = lab(Hardware::Prompt, thin, 0);
    submit_with(&mut initiator, 0, &unmap(40), Data::Out { offset: 0, bytes: 24 });
    let events = lab.run(&mut initiator, |event| matches!(event, Event::Response { .. }));
    let Some(Event::Response { status, data_out_residual, .. }) = events.last() else {
        panic!("{events:?}");
    };
    assert_eq!((*status, *data_out_residual), (2, Residual::Over(16)));
}

/// The data-out that a command takes of 512-byte blocks, and whether more is refused.
#[test]
fn sbc_4_each_command_takes_the_data_out_that_it_says() {
    for hardware in HARDWARE {
        let (mut lab, mut initiator) = lab(hardware, |unit| unit, 0);
        let long =
            |operation: u8, flags: u8| [operation, flags, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0];
        for (cdb, bytes, is_exact) in [
            (long(0x8F, 0x02), 3 * 512_u32, false), // VERIFY, BYTCHK 01b
            (long(0x8F, 0x06), 512, false),         // BYTCHK 11b
            (long(0x8F, 0x00), 0, false),           // BYTCHK 00b
            (long(0x8E, 0x02), 3 * 512, false),     // WRITE AND VERIFY
            (long(0x8B, 0x00), 3 * 512, false),     // ORWRITE
            (long(0x93, 0x00), 512, true),          // WRITE SAME
            (long(0x93, 0x01), 0, false),           // NDOB
            (long(0x89, 0x00), 6 * 512, true),      // COMPARE AND WRITE
        ] {
            for (offered, status) in [
                (bytes, 0),
                (bytes + 512, if is_exact { 2 } else { 0 }),
                (bytes.saturating_sub(1), if bytes == 0 { 0 } else { 2 }),
            ] {
                let data = match offered {
                    0 => Data::None,
                    bytes => Data::Out { offset: 0, bytes },
                };
                submit_with(&mut initiator, 0, &cdb, data);
                let events = lab.run(&mut initiator, |e| matches!(e, Event::Response { .. }));
                let Some(Event::Response { status: given, data_out_residual, .. }) = events.last()
                else {
                    panic!("{events:?}");
                };
                assert_eq!(*given, status, "{cdb:02x?} with {offered} bytes");
                if status == 0 {
                    let expected = Residual::between(bytes, offered);
                    assert_eq!(*data_out_residual, expected, "{cdb:02x?} with {offered} bytes");
                }
            }
        }
        assert_eq!(initiator.violation_count(), 0);
        lab.steps(50);
        assert_eq!(lab.tasks(), 0);
    }
}

#[test]
fn spc_6_the_list_of_commands_comes_whole_and_cut() {
    for hardware in HARDWARE {
        let (mut lab, mut initiator) = lab(hardware, thin, 0);
        let report = |allocation: u16| {
            let [high, low] = allocation.to_be_bytes();
            [0xA3, 0x0C, 0x80, 0, 0, 0, 0, 0, high, low, 0, 0]
        };
        let data = Data::In { offset: 0, bytes: 4096 };
        let tag = submit_with(&mut initiator, 0, &report(4096), data);
        assert_eq!(lab.response(&mut initiator, tag).0, 0);
        let length = u32::from_be_bytes(initiator.data(0..4).try_into().expect("four"));
        assert!(length > 500 && length % 20 == 0, "{length}");
        let whole = initiator.data(0..4 + length as usize).to_vec();
        let cut = Data::In { offset: 8192, bytes: 4096 };
        submit_with(&mut initiator, 0, &report(100), cut);
        let events = lab.run(&mut initiator, |event| matches!(event, Event::Response { .. }));
        let Some(Event::Response { status, data_in_residual, .. }) = events.last() else {
            panic!("{events:?}");
        };
        assert_eq!((*status, *data_in_residual), (0, Residual::Under(4096 - 100)));
        assert_eq!(initiator.data(8192..8292), &whole[..100]);
    }
}

#[test]
fn spc_6_sense_data_has_the_format_that_d_sense_asks_for() {
    for hardware in HARDWARE {
        let change = |unit| LogicalUnit { descriptor_sense: true, ..unit };
        let (mut lab, mut initiator) = lab(hardware, change, 0);
        let read = cdbs::read16(Transfer::new(u64::MAX, 1));
        let data = Data::In { offset: 0, bytes: 512 };
        for (lun, response_code) in [(0, 0x72), (1, 0x70)] {
            let tag = submit_with(&mut initiator, lun, &read, data);
            let (status, sense) = lab.response(&mut initiator, tag);
            let sense = sense.expect("sense data");
            assert_eq!((status, sense[0] & 0x7F), (2, response_code));
        }
    }
}

#[test]
fn spc_6_swp_refuses_writes_and_lets_them_through_again() {
    let (mut lab, mut initiator) =
        lab(Hardware::Prompt, |unit| LogicalUnit { software_write_protect: true, ..unit }, 0);
    let write = write10(Transfer::new(0, 1));
    let data = Data::Out { offset: 0, bytes: 512 };
    let tag = submit_with(&mut initiator, 0, &write, data);
    assert_eq!(code(&lab.response(&mut initiator, tag).1), (7, 0x27, 0x02));
    let mut again = changed(|unit| unit);
    again.generation = 3;
    lab.configure(again);
    let tag = submit_with(&mut initiator, 0, &write, data);
    assert_eq!(code(&lab.response(&mut initiator, tag).1), (6, 0x2A, 0x01), "it is told");
    let tag = submit_with(&mut initiator, 0, &write, data);
    assert_eq!(lab.response(&mut initiator, tag).0, 0);
}
