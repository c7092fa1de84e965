//! An I_T nexus: one initiator port at one target port, over one or more channels of one poll
//! group, with its view of the LUNs.

use lunar_dma::sgv::Share;
use lunar_platform::PeerAddress;
use lunar_scsi::alua::AccessState;
use lunar_scsi::reservations::Access;
use lunar_scsi::task_set::TaskSet;
use lunar_scsi::unit_attention::{UnitAttention, UnitAttentions};
use lunar_srp::login::PortId;

use crate::configuration::Lun;
use crate::fifo::Fifo;
use crate::histogram::Histogram;
use crate::statistics::{Counters, OPERATIONS};

/// What a nexus knows of one LUN. With TST = 1 (SCST's default) the task set is the nexus's own, so
/// nothing here is shared between cores.
///
/// Tasks name it by its place in the nexus's list, so places never move: a LUN that is taken away
/// leaves its entry behind until the nexus ends, and gets it again when it comes back.
pub(crate) struct NexusLun {
    pub number: u16,
    /// Whether the initiator sees it.
    pub mapped: bool,
    /// In which state the nexus's target port reaches the unit (SPC-6 5.17).
    pub state: AccessState,
    /// What reservations keep the nexus from.
    pub access: Access,
    /// Whether the initiator sees it, in a state that reaches the medium, and no reservation is in its way: the
    /// one question of a READ.
    pub open: bool,
    /// Handle of the logical unit.
    pub unit: u32,
    pub read_only: bool,
    pub attentions: UnitAttentions,
    /// Those that are still to be told as asynchronous events.
    pub events: UnitAttentions,
    /// A medium came or went since GET EVENT STATUS NOTIFICATION told of it.
    pub medium_changed: bool,
    pub set: TaskSet,
    /// Tasks that the task set's rules hold back.
    pub dormant: Fifo,
}

impl NexusLun {
    /// The LUN as a new nexus sees it: with the unit attention of a power on (SAM-6 5.14).
    pub(crate) fn new(lun: &Lun, state: AccessState, access: Access) -> Self {
        let mut attentions = UnitAttentions::default();
        attentions.establish(UnitAttention::PowerOn);
        Self {
            number: lun.lun,
            mapped: true,
            state,
            access,
            open: is_open(true, state, access),
            unit: lun.unit,
            read_only: lun.read_only,
            attentions,
            events: UnitAttentions::default(),
            medium_changed: false,
            set: TaskSet::default(),
            dormant: Fifo::default(),
        }
    }

    /// Whether the initiator sees it from now on, in which state, and what reservations keep it from. Gives
    /// whether something is kept from it that was not before.
    pub(crate) fn set_access(&mut self, mapped: bool, state: AccessState, access: Access) -> bool {
        let narrowed = self.mapped && !mapped
            || self.state.reaches_medium() && !state.reaches_medium()
            || access.bits() & !self.access.bits() != 0;
        (self.mapped, self.state, self.access) = (mapped, state, access);
        self.open = is_open(mapped, state, access);
        narrowed
    }
}

fn is_open(mapped: bool, state: AccessState, access: Access) -> bool {
    mapped && state.reaches_medium() && access == Access::OPEN
}

/// No such LUN, in [`Nexus::lookup`].
const ABSENT: u8 = u8::MAX;

pub(crate) struct Nexus {
    pub in_use: bool,
    /// Unique for the life of this firmware; the agent's name for it.
    pub handle: u32,
    pub initiator: PortId,
    pub target_port: PortId,
    /// Handle of the target.
    pub target: u32,
    pub peer: PeerAddress,
    /// Channels in the table, closing ones included.
    pub channels: u32,
    /// Tasks whose slots are held.
    pub tasks: u32,
    pub luns: Vec<NexusLun>,
    /// Number and place of the mapped LUNs, ascending by number.
    sorted: Vec<(u16, u32)>,
    /// Place of the mapped LUNs below 256, where it fits a byte: the ones that are used.
    lookup: [u8; 256],
    pub card_share: Share,
    pub host_share: Share,
    pub latency: [Histogram; OPERATIONS],
    pub counters: Counters,
}

impl Nexus {
    pub(crate) fn new(card_cap_bytes: u64, host_cap_bytes: u64) -> Self {
        Self {
            in_use: false,
            handle: 0,
            initiator: PortId([0; 16]),
            target_port: PortId([0; 16]),
            target: 0,
            peer: PeerAddress::new(""),
            channels: 0,
            tasks: 0,
            luns: Vec::new(),
            sorted: Vec::new(),
            lookup: [ABSENT; 256],
            card_share: Share::new(card_cap_bytes),
            host_share: Share::new(host_cap_bytes),
            latency: core::array::from_fn(|_| Histogram::default()),
            counters: Counters::default(),
        }
    }

    /// Finds the mapped LUNs anew after `luns` changed.
    pub(crate) fn index_luns(&mut self) {
        self.sorted.clear();
        self.lookup = [ABSENT; 256];
        for (place, lun) in self.luns.iter().enumerate().filter(|(_, lun)| lun.mapped) {
            self.sorted.push((lun.number, u32::try_from(place).unwrap_or(u32::MAX)));
            let entry = self.lookup.get_mut(usize::from(lun.number));
            if let (Some(entry), Ok(place)) = (entry, u8::try_from(place)) {
                *entry = place;
            }
        }
        self.sorted.sort_unstable();
    }

    /// Numbers of the mapped LUNs, ascending, for REPORT LUNS.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u16> + '_ {
        self.sorted.iter().map(|(number, _)| *number)
    }

    /// Place of LUN `number` in `luns`.
    #[inline]
    pub(crate) fn find(&self, number: u16) -> Option<u32> {
        if let Some(place) = self.lookup.get(usize::from(number)).copied()
            && place != ABSENT
        {
            return Some(u32::from(place));
        }
        // Above 255, or behind more than 255 others.
        let found = self.sorted.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        self.sorted.get(found).map(|(_, place)| *place)
    }
}
