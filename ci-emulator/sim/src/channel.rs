//! One channel of a model initiator: what it has outstanding and what that means to the judges.

use lunar_hca::{DeviceConfig, EmulatedDevice, Fabric};
use lunar_initiator::oracle::{Read, Write};
use lunar_initiator::{Config, Event, Initiator, Tag};
use lunar_platform::Nanoseconds;
use lunar_scsi::reservations::Class;
use lunar_scsi::task_set::TaskManagementFunction;
use lunar_srp::login::{Action, LoginForm, PortId};

use crate::card::{IT_IU_BYTES_MAX, LATENCY, SERVICE, TRANSFER_BYTES_MAX};
use crate::random::Random;
use crate::units::TARGET_PORT;

/// Commands of one channel at a time.
pub const QUEUE_DEPTH: u32 = 18;

/// What a request is to the judges.
#[derive(Debug)]
pub enum Purpose {
    /// A read of a unit that stores.
    Read(Read, u32),
    /// A write to one, WRITE SAME and UNMAP included.
    Write(Write),
    /// VERIFY with this many bytes of data, which are compared with the blocks; again and again when they
    /// are fewer.
    Compare(Read, u32),
    /// COMPARE AND WRITE: so many bytes are compared, as many behind them written.
    CompareAndWrite(Read, Write, u32),
    /// A write that changes nothing if nobody writes in its middle: ORWRITE of zeros.
    OrZeros,
    /// EXTENDED COPY to this LUN.
    Copy(usize),
    /// PERSISTENT RESERVE IN or OUT, by its name there.
    Reserving(u64),
    /// Neither; whether it may be answered while a unit attention is pending.
    Other {
        /// INQUIRY, REPORT LUNS, REQUEST SENSE (SAM-6 5.14).
        ignores_attention: bool,
        /// REQUEST SENSE, which takes the attention as data.
        takes_attention: bool,
        /// It is not valid: ILLEGAL REQUEST is the right answer.
        invalid: bool,
    },
    /// A task management function.
    Management(TaskManagementFunction),
    /// Its end is known already, from a SINGLE login; an answer may still come.
    Over,
}

/// A request that was sent.
#[derive(Debug)]
pub struct Sent {
    /// Its tag.
    pub tag: Tag,
    /// The LUN.
    pub lun: usize,
    /// What it is.
    pub purpose: Purpose,
    /// What it is to reservations.
    pub class: Class,
    /// Which moment it was sent at, counted over all events of the run.
    pub moment: u64,
    /// When it was sent.
    pub at: u64,
    /// Its piece of the data memory.
    pub place: Option<usize>,
    /// An ABORT TASK for it was sent at this time.
    pub abort_sent: Option<u64>,
}

/// One channel.
pub struct Channel {
    /// The model initiator.
    pub initiator: Initiator,
    device: EmulatedDevice,
    /// Its nexus.
    pub nexus: usize,
    /// It logs in with SINGLE; the others of its nexus with MULTI.
    pub single: bool,
    /// By tag index.
    pub sent: Vec<Option<Sent>>,
    places: Vec<usize>,
    /// When it logs in again, while it has no channel.
    pub login_at: u64,
    /// Since when a login is under way.
    pub asking_since: Option<u64>,
    /// Moment of the newest login request.
    pub asked: u64,
    /// Moment of the accepted login.
    pub logged_in: u64,
    /// The target announced that it closes the channel: nothing may come after that.
    pub logged_out: bool,
    /// How eager it is: one command in so many steps.
    pub pace: u64,
}

impl Channel {
    /// Channel `number` of `nexus`.
    ///
    /// # Panics
    /// When this machine has no memory or descriptors for it.
    #[must_use]
    pub fn new(
        fabric: &Fabric,
        number: usize,
        nexus: usize,
        single: bool,
        port: [u8; 16],
        random: &mut Random,
    ) -> Self {
        let config = DeviceConfig::new(&format!("initiator-{number}"))
            .deferring(LATENCY, random.seed())
            .virtual_time();
        let device = EmulatedDevice::new(config);
        let stride = TRANSFER_BYTES_MAX as usize;
        let config = Config {
            form: if random.chance(1, 2) { LoginForm::InfiniBand } else { LoginForm::RdmaCm },
            action: if single { Action::Single } else { Action::Multi },
            tag_space: u8::try_from(number).unwrap_or(0),
            queue_depth: QUEUE_DEPTH,
            data_bytes: stride * QUEUE_DEPTH as usize,
            it_iu_bytes: IT_IU_BYTES_MAX,
            immediate_bytes_max: if random.chance(1, 2) { 2048 } else { 0 },
            ..Config::new(PortId(port), PortId(TARGET_PORT))
        };
        let initiator = Initiator::new(&device, fabric, SERVICE, config).expect("memory");
        let slots = initiator.slots();
        Self {
            initiator,
            device,
            nexus,
            single,
            sent: (0..slots).map(|_| None).collect(),
            places: (0..QUEUE_DEPTH as usize).map(|place| place * stride).collect(),
            login_at: 0,
            asking_since: None,
            asked: 0,
            logged_in: 0,
            logged_out: false,
            pace: 4,
        }
    }

    /// What arrived by `now`.
    pub fn poll(&mut self, now: u64, events: &mut Vec<Event>) {
        self.device.advance(Nanoseconds(now));
        self.initiator.poll(events);
    }

    /// A piece of the data memory for one command.
    pub fn take_place(&mut self) -> Option<usize> {
        self.places.pop()
    }

    /// It is free again.
    pub fn give_place(&mut self, place: Option<usize>) {
        self.places.extend(place);
    }

    /// The request of `tag`, which is not outstanding any more.
    pub fn finish(&mut self, tag: Tag) -> Option<Sent> {
        let entry = self.sent.get_mut(tag.index())?;
        entry.take_if(|sent| sent.tag == tag)
    }
}
