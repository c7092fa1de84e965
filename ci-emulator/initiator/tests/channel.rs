//! The initiator on a live channel of the emulated HCA, against the smallest target there is, in the
//! prompt and in the deferring mode.

mod target;

use lunar_hca::{DeviceConfig, EmulatedDevice, Fabric, Latency};
use lunar_initiator::oracle::{Initial, ModelDisk, WriteEnd};
use lunar_initiator::{
    Command, Config, Data, Event, Initiator, LoginError, Shape, SubmitError, Tag, Violation, cdbs,
};
use lunar_scsi::task_set::TaskManagementFunction;
use lunar_srp::iu::{SolicitedNotification, response_code};
use lunar_srp::login::{Action, LoginForm, LoginReject, OtherChannels, PortId};
use target::{BLOCK_BYTES, FAIL, HOLD, LIMIT, PORT, SERVICE, TWICE, Target};

const LUN: [u8; 8] = [0; 8];

struct Rig {
    target: Target,
    initiator: Initiator,
    events: Vec<Event>,
}

impl Rig {
    fn new(device: fn(&str) -> DeviceConfig, change: impl Fn(&mut Config)) -> Self {
        let fabric = Fabric::in_process();
        let target = Target::new(device("card"), &fabric);
        let mut config = Config::new(PortId([0x11; 16]), PORT);
        config.data_bytes = 1 << 20;
        change(&mut config);
        let side = EmulatedDevice::new(device("initiator"));
        let initiator = Initiator::new(&side, &fabric, SERVICE, config).unwrap();
        Self { target, initiator, events: Vec::new() }
    }

    fn logged_in(device: fn(&str) -> DeviceConfig) -> Self {
        let mut rig = Self::new(device, |_| ());
        rig.login();
        rig
    }

    fn login(&mut self) {
        self.initiator.login().unwrap();
        let event = self.next();
        let expected = Event::LoggedIn {
            request_limit: LIMIT,
            it_iu_bytes_max: 4096,
            others: OtherChannels::None,
        };
        assert_eq!(event, expected);
    }

    /// The next event; gives up after so many rounds.
    fn next(&mut self) -> Event {
        for _ in 0..10_000 {
            if !self.events.is_empty() {
                return self.events.remove(0);
            }
            self.initiator.poll(&mut self.events);
            self.target.poll();
        }
        panic!("nothing happened");
    }

    fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            self.initiator.poll(&mut self.events);
            self.target.poll();
        }
    }

    fn submit(&mut self, cdb: &[u8], data: Data, shape: Shape) -> Tag {
        self.initiator.submit(&Command { shape, ..Command::new(LUN, cdb, data) }).unwrap()
    }

    fn good(&mut self, tag: Tag) {
        match self.next() {
            Event::Response { tag: ended, status: 0, .. } => assert_eq!(ended, tag),
            other => panic!("{other:?}"),
        }
    }

    fn no_violations(&self) {
        assert_eq!(self.initiator.violations().collect::<Vec<_>>(), Vec::<&Violation>::new());
    }
}

fn in_both_modes(behaviour: impl Fn(fn(&str) -> DeviceConfig)) {
    behaviour(DeviceConfig::new);
    behaviour(|name| DeviceConfig::new(name).deferring(Latency { minimum: 1, spread: 5 }, 3));
}

#[test]
fn both_login_forms_reach_the_target_as_they_were_meant() {
    in_both_modes(|device| {
        for (form, action) in
            [(LoginForm::InfiniBand, Action::Single), (LoginForm::RdmaCm, Action::Multi)]
        {
            let mut rig = Rig::new(device, |config| (config.form, config.action) = (form, action));
            rig.login();
            let login = rig.target.login.unwrap();
            assert_eq!((login.form, login.action), (form, action));
            assert_eq!((login.initiator_port, login.target_port), (PortId([0x11; 16]), PORT));
            assert_eq!(login.it_iu_bytes, rig.initiator.config().it_iu_bytes);
            assert_eq!(rig.initiator.login(), Err(LoginError::Busy));
            rig.no_violations();
        }
    });
}

#[test]
fn refused_login_tells_the_reason_and_may_be_tried_again() {
    in_both_modes(|device| {
        let mut rig = Rig::new(device, |_| ());
        rig.target.policy.enabled = false;
        rig.initiator.login().unwrap();
        let reason = Some(LoginReject::CannotEstablish);
        assert_eq!(rig.next(), Event::LoginRejected { reason, code: 0x0001_0000 });
        assert!(rig.initiator.is_idle());
        rig.target.policy.enabled = true;
        rig.login();
    });
}

#[test]
fn login_that_nobody_answers_fails() {
    let fabric = Fabric::in_process();
    let device = EmulatedDevice::new(DeviceConfig::new("initiator"));
    let config = Config::new(PortId([0x11; 16]), PORT);
    let mut initiator = Initiator::new(&device, &fabric, "nobody", config).unwrap();
    initiator.login().unwrap();
    let mut events = Vec::new();
    (0..100).for_each(|_| initiator.poll(&mut events));
    assert_eq!(events, [Event::LoginFailed]);
    let command = Command::new(LUN, &[0; 6], Data::None);
    assert_eq!(initiator.submit(&command), Err(SubmitError::NotLoggedIn));
}

#[test]
fn data_travels_in_every_shape_and_the_oracle_agrees() {
    in_both_modes(|device| {
        let mut rig = Rig::logged_in(device);
        let mut disk = ModelDisk::new(0, BLOCK_BYTES, Initial::Zeros);
        let shapes = [1, 2, 7, 127].map(|pieces| Shape::Indirect { pieces });
        for (turn, shape) in (0_u64..).zip([Shape::Direct].into_iter().chain(shapes)) {
            let (lba, blocks) = (3 * turn, 5);
            let bytes = blocks as usize * BLOCK_BYTES;
            let transfer = cdbs::Transfer::new(lba, blocks);
            let write = disk.begin_write(lba, blocks);
            disk.fill(&write, rig.initiator.data_mut(0..bytes));
            let out = Data::Out { offset: 0, bytes: bytes as u32 };
            let tag = rig.submit(&cdbs::write10(transfer), out, shape);
            rig.good(tag);
            disk.end_write(write, WriteEnd::Done);
            let read = disk.begin_read(lba, blocks);
            let data = Data::In { offset: 64 << 10, bytes: bytes as u32 };
            let tag = rig.submit(&cdbs::read10(transfer), data, shape);
            rig.good(tag);
            disk.end_read(read, rig.initiator.data(64 << 10..(64 << 10) + bytes)).unwrap();
        }
        // A target that loses a write is found out.
        rig.target.disk.fill(0);
        let read = disk.begin_read(0, 1);
        let data = Data::In { offset: 0, bytes: BLOCK_BYTES as u32 };
        let tag = rig.submit(&cdbs::read10(cdbs::Transfer::new(0, 1)), data, Shape::Direct);
        rig.good(tag);
        assert!(disk.end_read(read, rig.initiator.data(0..BLOCK_BYTES)).is_err());
        rig.no_violations();
    });
}

#[test]
fn credits_bound_what_is_outstanding_and_all_come_back() {
    in_both_modes(|device| {
        let mut rig = Rig::logged_in(device);
        let command = Command::new(LUN, &[0; 6], Data::None);
        for _ in 0..200 {
            let tags: Vec<_> =
                (0..LIMIT - 1).map(|_| rig.initiator.submit(&command).unwrap()).collect();
            assert_eq!(rig.initiator.submit(&command), Err(SubmitError::NoCredit));
            for tag in tags {
                rig.good(tag);
            }
        }
        assert_eq!((rig.initiator.available(), rig.initiator.outstanding()), (LIMIT.into(), 0));
        assert_eq!(rig.initiator.statistics().responses, 200 * u64::from(LIMIT - 1));
        rig.no_violations();
    });
}

#[test]
fn sense_and_solicited_notification_arrive() {
    in_both_modes(|device| {
        let mut rig = Rig::logged_in(device);
        let solicited = SolicitedNotification::new(false, true);
        let command = Command { solicited, ..Command::new(LUN, &[FAIL], Data::None) };
        let submitted = rig.initiator.submit(&command).unwrap();
        match rig.next() {
            Event::Response { tag, status: 2, sense: Some(sense), .. } => {
                assert_eq!((tag, &sense[..]), (submitted, &[0x70, 0, 5, 0][..]));
            }
            other => panic!("{other:?}"),
        }
        rig.no_violations();
    });
}

#[test]
fn aborted_command_is_over_and_its_credit_repaid() {
    in_both_modes(|device| {
        let mut rig = Rig::logged_in(device);
        let held = rig.submit(&[HOLD], Data::None, Shape::Direct);
        rig.rounds(100);
        assert_eq!(rig.events, []);
        let abort = TaskManagementFunction::AbortTask;
        let function = rig.initiator.task_management(abort, LUN, Some(held)).unwrap();
        assert_eq!(rig.next(), Event::Aborted { tag: held });
        let code = response_code::NO_FAILURE;
        assert_eq!(rig.next(), Event::TaskManagementResponse { tag: function, code });
        assert_eq!((rig.initiator.available(), rig.initiator.outstanding()), (LIMIT.into(), 0));
        rig.no_violations();
    });
}

#[test]
fn logout_ends_the_channel_and_a_new_login_works() {
    in_both_modes(|device| {
        let mut rig = Rig::logged_in(device);
        for turn in 1..=5 {
            rig.initiator.logout().unwrap();
            assert_eq!(rig.next(), Event::Disconnected);
            assert_eq!(rig.target.logouts, turn);
            assert!(rig.initiator.is_idle());
            rig.rounds(50);
            rig.login();
            let tag = rig.submit(&[0; 6], Data::None, Shape::Direct);
            rig.good(tag);
        }
        rig.no_violations();
    });
}

#[test]
fn abrupt_disconnect_loses_what_was_outstanding_and_a_new_login_works() {
    in_both_modes(|device| {
        let mut rig = Rig::logged_in(device);
        for _ in 0..5 {
            let held = rig.submit(&[HOLD], Data::None, Shape::Direct);
            rig.rounds(50);
            rig.initiator.disconnect();
            let command = Command::new(LUN, &[0; 6], Data::None);
            assert_eq!(rig.initiator.submit(&command), Err(SubmitError::NotLoggedIn));
            assert_eq!(rig.next(), Event::Lost { tag: held });
            assert_eq!(rig.next(), Event::Disconnected);
            rig.rounds(50);
            rig.login();
        }
        let tag = rig.submit(&[0; 6], Data::None, Shape::Direct);
        rig.good(tag);
        rig.no_violations();
    });
}

#[test]
fn hostile_bytes_cost_the_channel_only() {
    in_both_modes(|device| {
        let mut rig = Rig::logged_in(device);
        rig.initiator.send_raw(&[0x77; 20]).unwrap();
        assert_eq!(rig.next(), Event::Disconnected);
        rig.rounds(50);
        rig.login();
    });
}

#[test]
fn a_target_that_answers_twice_is_caught() {
    in_both_modes(|device| {
        let mut rig = Rig::logged_in(device);
        let tag = rig.submit(&[TWICE], Data::None, Shape::Direct);
        rig.good(tag);
        rig.rounds(100);
        let expected = Violation::UnknownTag(tag.to_wire());
        assert_eq!(rig.initiator.violations().collect::<Vec<_>>(), [&expected]);
    });
}

#[test]
fn ranges_and_ius_that_cannot_be_sent_are_refused_and_take_nothing() {
    let mut rig = Rig::logged_in(DeviceConfig::new);
    let beyond = Data::In { offset: (1 << 20) - 511, bytes: 512 };
    let command = Command::new(LUN, &[0; 6], beyond);
    assert_eq!(rig.initiator.submit(&command), Err(SubmitError::OutOfRange));
    let data = Data::In { offset: 0, bytes: 512 };
    let shape = Shape::Indirect { pieces: 200 };
    let command = Command { shape, ..Command::new(LUN, &[0; 6], data) };
    assert_eq!(rig.initiator.submit(&command), Err(SubmitError::TooLong));
    assert_eq!((rig.initiator.available(), rig.initiator.outstanding()), (LIMIT.into(), 0));
}
