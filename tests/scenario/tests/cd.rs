//! A CD/DVD drive through the whole card, by clause: what the nexuses are told when its disc comes and
//! goes. What each command answers is decided, and tested, in `scsi`.

use lunar_initiator::{Data, Event, Initiator, cdbs};
use lunar_scenario::{HARDWARE, Lab, configuration, small_limits, submit, submit_with};
use lunar_scsi::unit::{DeviceType, LogicalUnit};
use lunar_target::configuration::Configuration;

/// LUN 0 is a drive with this disc, of so many blocks.
fn with_disc(generation: u32, medium: u32, blocks: u64) -> Configuration {
    let mut configuration = configuration(generation);
    let unit = &mut configuration.units[0];
    let drive = LogicalUnit {
        device_type: DeviceType::CdDvd,
        removable: true,
        read_only: true,
        block_bytes: 2048,
        medium,
        blocks,
        ..unit.logical_unit.clone()
    };
    unit.logical_unit = drive.validate().expect("a drive");
    configuration
}

/// Sense key, ASC and ASCQ of TEST UNIT READY; zeros for GOOD.
fn readiness(lab: &mut Lab, initiator: &mut Initiator) -> (u8, u8, u8) {
    let tag = submit(initiator, 0, &cdbs::test_unit_ready());
    match lab.response(initiator, tag) {
        (0, _) => (0, 0, 0),
        (_, sense) => {
            let sense = sense.expect("sense data");
            (sense[2], sense[12], sense[13])
        }
    }
}

/// Event and status of GET EVENT STATUS NOTIFICATION, media class.
fn media_event(lab: &mut Lab, initiator: &mut Initiator) -> (u8, u8) {
    let poll = [0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8, 0];
    let tag = submit_with(initiator, 0, &poll, Data::In { offset: 0, bytes: 8 });
    let response = lab.response(initiator, tag);
    assert_eq!(response.0, 0, "{response:?}");
    let bytes = initiator.data(0..8);
    assert_eq!(bytes[..4], [0, 6, 4, 0x10]);
    (bytes[4], bytes[5])
}

const READY: (u8, u8, u8) = (0, 0, 0);
const CHANGED: (u8, u8, u8) = (6, 0x28, 0x00);
const NO_MEDIUM: (u8, u8, u8) = (2, 0x3A, 0x00);

#[test]
fn mmc_6_every_nexus_is_told_of_a_new_disc_and_finds_an_empty_drive_not_ready() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 2, &small_limits());
        lab.configure(with_disc(2, 1, 1000));
        let mut initiators = [lab.logged_in(1), lab.logged_in(2)];
        let mut generation = 2;
        // Another disc of the same size; none; the first; as large as none other.
        for (medium, blocks, told, event) in [
            (2, 1000, CHANGED, (2, 2)),
            (0, 0, NO_MEDIUM, (3, 0)),
            (1, 1000, CHANGED, (2, 2)),
            (3, 9999, CHANGED, (2, 2)),
        ] {
            generation += 1;
            lab.configure(with_disc(generation, medium, blocks));
            for initiator in &mut initiators {
                // Events are told besides unit attentions, and each once.
                assert_eq!(media_event(&mut lab, initiator), event);
                assert_eq!(media_event(&mut lab, initiator), (0, event.1));
                assert_eq!(readiness(&mut lab, initiator), told);
                let then = if blocks == 0 { NO_MEDIUM } else { READY };
                assert_eq!(readiness(&mut lab, initiator), then);
            }
        }
    }
}

#[test]
fn mmc_6_a_disc_that_is_ejected_and_loaded_again_is_news() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        lab.configure(with_disc(2, 7, 1000));
        let mut initiator = lab.logged_in(1);
        lab.configure(with_disc(3, 7, 0));
        assert_eq!(readiness(&mut lab, &mut initiator), NO_MEDIUM);
        lab.configure(with_disc(4, 7, 1000));
        assert_eq!(readiness(&mut lab, &mut initiator), CHANGED);
        assert_eq!(readiness(&mut lab, &mut initiator), READY);
        // Only what happened since it asked last: it is loaded.
        assert_eq!(media_event(&mut lab, &mut initiator), (2, 2));
    }
}

#[test]
fn a_changed_disc_costs_the_other_units_nothing() {
    for hardware in HARDWARE {
        let mut lab = Lab::new(hardware, 1, &small_limits());
        lab.configure(with_disc(2, 1, 1000));
        let mut initiator = lab.logged_in(1);
        lab.configure(with_disc(3, 2, 1000));
        let tag = submit(&mut initiator, 1, &cdbs::test_unit_ready());
        let events = lab.run(&mut initiator, |event| matches!(event, Event::Response { .. }));
        let status = events.iter().find_map(|event| match event {
            Event::Response { tag: answered, status, .. } if *answered == tag => Some(*status),
            _ => None,
        });
        assert_eq!(status, Some(0));
    }
}
