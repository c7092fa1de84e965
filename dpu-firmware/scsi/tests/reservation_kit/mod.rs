//! What the tests about reservations share: nexuses by number, commands as bytes, and a unit that takes
//! every change over at once.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use lunar_scsi::device_server::Ending;
use lunar_scsi::opcodes::opcode;
use lunar_scsi::reservations::{
    Change, Nexus, OutAction, Protocol, ReservationType, Reservations, TargetPort, TransportId,
};
use lunar_scsi::sense::{FieldPointer, Sense};
use lunar_scsi::status::Status;
use lunar_scsi::unit_attention::UnitAttention;

pub const PREEMPTED: UnitAttention = UnitAttention::RegistrationsPreempted;
pub const RELEASED: UnitAttention = UnitAttention::ReservationsReleased;
pub const CLEARED: UnitAttention = UnitAttention::ReservationsPreempted;

pub const CONFLICT: Result<Change, Ending> = Err(Ending::Status(Status::ReservationConflict));

/// Two SRP target ports and a VSCSI one.
pub const PORTS: [TargetPort; 3] = [
    TargetPort { id: 1, protocol: Protocol::Srp },
    TargetPort { id: 2, protocol: Protocol::Srp },
    TargetPort { id: 3, protocol: Protocol::Vscsi },
];

/// SRP initiator `number` at target port `target_port`.
pub fn at(number: u16, target_port: u16) -> Nexus {
    let mut port_id = [0xE0; 16];
    port_id[14..].copy_from_slice(&number.to_be_bytes());
    Nexus { initiator: TransportId::srp(port_id), target_port }
}

/// SRP initiator `number` at target port 1.
pub fn nexus(number: u16) -> Nexus {
    at(number, 1)
}

/// Bits of byte 20 of the basic parameter list.
pub const SPEC_I_PT: u8 = 0x08;
pub const ALL_TG_PT: u8 = 0x04;
pub const APTPL: u8 = 0x01;

pub fn list(key: u64, action_key: u64, flags: u8) -> Vec<u8> {
    let mut list = [key.to_be_bytes(), action_key.to_be_bytes(), [0; 8]].concat();
    list[20] = flags;
    list
}

/// A list with SPEC_I_PT and these initiators.
pub fn list_with_ids(key: u64, action_key: u64, flags: u8, ids: &[&[u8]]) -> Vec<u8> {
    let ids = ids.concat();
    let length = (ids.len() as u32).to_be_bytes();
    [&list(key, action_key, flags | SPEC_I_PT)[..], &length, &ids].concat()
}

pub fn move_list(key: u64, action_key: u64, flags: u8, target_port: u16, id: &[u8]) -> Vec<u8> {
    let mut list = [key.to_be_bytes(), action_key.to_be_bytes()].concat();
    list.extend([0, flags]);
    list.extend(target_port.to_be_bytes());
    list.extend((id.len() as u32).to_be_bytes());
    list.extend(id);
    list
}

pub fn out_cdb(action: OutAction, scope_and_type: u8, list_bytes: usize) -> [u8; 10] {
    let [l0, l1, l2, l3] = (list_bytes as u32).to_be_bytes();
    let operation = opcode::PERSISTENT_RESERVE_OUT;
    [operation, action as u8, scope_and_type, 0, 0, l0, l1, l2, l3, 0]
}

pub fn in_cdb(action: u8, allocation: u16) -> [u8; 10] {
    let [high, low] = allocation.to_be_bytes();
    [opcode::PERSISTENT_RESERVE_IN, action, 0, 0, 0, 0, 0, high, low, 0]
}

pub fn in_list<T>(byte: u16, bit: Option<u8>) -> Result<T, Ending> {
    let field = FieldPointer { in_cdb: false, byte, bit };
    Err(Ending::Sense(Sense::INVALID_FIELD_IN_PARAMETER_LIST.with_field_pointer(field)))
}

pub fn in_the_cdb<T>(byte: u16, bit: Option<u8>) -> Result<T, Ending> {
    Err(Ending::Sense(Sense::INVALID_FIELD_IN_CDB.with_field(byte, bit)))
}

pub fn refused<T>(sense: Sense) -> Result<T, Ending> {
    Err(Ending::Sense(sense))
}

/// A unit, with the commands that the tests send it.
#[derive(Clone, Debug, Default)]
pub struct Unit(pub Reservations);

impl Unit {
    /// A unit at which these nexuses of port 1 are registered, each with its number as key.
    pub fn with(numbers: &[u16]) -> Self {
        let mut unit = Self::default();
        for &number in numbers {
            unit.register(&nexus(number), number.into()).unwrap();
        }
        unit
    }

    /// The same, with a reservation by the first.
    pub fn held(kind: ReservationType, numbers: &[u16]) -> Self {
        let mut unit = Self::with(numbers);
        unit.reserve(&nexus(numbers[0]), kind).unwrap();
        unit
    }

    pub fn send(
        &mut self,
        from: &Nexus,
        action: OutAction,
        scope_and_type: u8,
        list: &[u8],
    ) -> Result<Change, Ending> {
        let cdb = out_cdb(action, scope_and_type, list.len());
        let before = self.0.clone();
        let change = self.0.persistent_reserve_out(from, &cdb, list, &PORTS)?;
        assert_eq!(change.is_new, change.state != before);
        let moved = change.state.access_table() != before.access_table();
        assert_eq!(change.needs_gate, moved || !change.effects.is_empty());
        assert!(change.effects.attentions.iter().all(|(told, _)| told != from));
        self.0 = change.state.clone();
        Ok(change)
    }

    pub fn register(&mut self, from: &Nexus, key: u64) -> Result<Change, Ending> {
        self.send(from, OutAction::RegisterAndIgnore, 0, &list(0, key, 0))
    }

    pub fn reserve(&mut self, from: &Nexus, kind: ReservationType) -> Result<Change, Ending> {
        self.send(from, OutAction::Reserve, kind as u8, &list(self.key(from), 0, 0))
    }

    pub fn release(&mut self, from: &Nexus, kind: ReservationType) -> Result<Change, Ending> {
        self.send(from, OutAction::Release, kind as u8, &list(self.key(from), 0, 0))
    }

    pub fn clear(&mut self, from: &Nexus) -> Result<Change, Ending> {
        self.send(from, OutAction::Clear, 0, &list(self.key(from), 0, 0))
    }

    pub fn preempt(
        &mut self,
        from: &Nexus,
        kind: ReservationType,
        action_key: u64,
    ) -> Result<Change, Ending> {
        self.send(from, OutAction::Preempt, kind as u8, &list(self.key(from), action_key, 0))
    }

    pub fn abort(
        &mut self,
        from: &Nexus,
        kind: ReservationType,
        action_key: u64,
    ) -> Result<Change, Ending> {
        let list = list(self.key(from), action_key, 0);
        self.send(from, OutAction::PreemptAndAbort, kind as u8, &list)
    }

    /// RESERVE (6).
    pub fn reserve_6(&mut self, from: &Nexus) -> Result<Change, Ending> {
        self.legacy(from, opcode::RESERVE_6)
    }

    /// RELEASE (6).
    pub fn release_6(&mut self, from: &Nexus) -> Result<Change, Ending> {
        self.legacy(from, opcode::RELEASE_6)
    }

    pub fn legacy(&mut self, from: &Nexus, operation: u8) -> Result<Change, Ending> {
        let change = self.0.reserve_or_release(from, &[operation, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
        self.0 = change.state.clone();
        Ok(change)
    }

    /// The key of `nexus`, zero if it has none.
    pub fn key(&self, nexus: &Nexus) -> u64 {
        let found = self.0.registrations().find(|registration| registration.nexus == nexus);
        found.map_or(0, |registration| registration.key)
    }

    /// Keys in READ KEYS' order, and the generation.
    pub fn keys(&self) -> Vec<u64> {
        self.0.registrations().map(|registration| registration.key).collect()
    }

    pub fn holders(&self) -> Vec<Nexus> {
        let holders = self.0.registrations().filter(|registration| registration.holder);
        holders.map(|registration| registration.nexus.clone()).collect()
    }

    pub fn kind(&self) -> Option<ReservationType> {
        self.0.reservation().map(|held| held.kind)
    }

    /// The parameter data of a PERSISTENT RESERVE IN.
    pub fn read(&self, action: u8, allocation: u16) -> Result<Vec<u8>, Ending> {
        let mut out = vec![0xEE; usize::from(u16::MAX) + 8];
        let length = self.0.persistent_reserve_in(&in_cdb(action, allocation), &mut out)?;
        assert!(length <= allocation.into());
        assert!(out[length..].iter().all(|&byte| byte == 0xEE));
        out.truncate(length);
        Ok(out)
    }
}

/// Whom a change tells what, by number; all of them at port 1.
pub fn told(change: &Change) -> Vec<(u16, UnitAttention)> {
    let attentions = change.effects.attentions.iter();
    attentions.map(|(nexus, attention)| (number(nexus), *attention)).collect()
}

/// Whose commands a change aborts, by number.
pub fn aborted(change: &Change) -> Vec<u16> {
    change.effects.aborts.iter().map(number).collect()
}

pub fn number(nexus: &Nexus) -> u16 {
    let bytes = nexus.initiator.as_bytes();
    u16::from_be_bytes([bytes[22], bytes[23]])
}
