//! Any commands about reservations from any nexuses: what becomes of them is what a model says that is
//! nothing but the standard's sentences written down, and what always holds holds after each.

mod reservation_kit;

use lunar_scsi::device_server::Ending;
use lunar_scsi::reservations::record::Record;
use lunar_scsi::reservations::{
    Access, Change, Class, Nexus, OutAction, ReservationType, Reservations, conflicts,
};
use lunar_scsi::unit_attention::UnitAttention;
use proptest::prelude::*;
use reservation_kit::{
    APTPL, CLEARED, PORTS, PREEMPTED, RELEASED, Unit, at, in_cdb, list, move_list,
};

/// What happens to a unit.
#[derive(Clone, Debug)]
enum Event {
    /// PERSISTENT RESERVE OUT: type, keys, APTPL, and whereto REGISTER AND MOVE moves.
    Out(OutAction, Nexus, u8, u64, u64, bool, (Nexus, bool)),
    Reserve6(Nexus),
    Release6(Nexus),
    NexusLoss(Nexus),
    Reset,
    PowerOn,
}

fn any_nexus() -> impl Strategy<Value = Nexus> {
    (0_u16..4, 1_u16..3).prop_map(|(number, port)| at(number, port))
}

fn any_event() -> impl Strategy<Value = Event> {
    let out = (
        prop::sample::select(OutAction::ALL.to_vec()),
        any_nexus(),
        prop::sample::select(vec![1_u8, 3, 5, 6, 7, 8, 0, 0x11]),
        0_u64..4,
        0_u64..4,
        any::<bool>(),
        (any_nexus(), any::<bool>()),
    );
    let out = out.prop_map(|(action, from, kind, key, action_key, aptpl, to)| {
        Event::Out(action, from, kind, key, action_key, aptpl, to)
    });
    prop_oneof![
        24 => out,
        1 => any_nexus().prop_map(Event::Reserve6),
        1 => any_nexus().prop_map(Event::Release6),
        1 => any_nexus().prop_map(Event::NexusLoss),
        1 => Just(Event::Reset),
        1 => Just(Event::PowerOn),
    ]
}

/// The model. A key list in no order, a type, a holder.
#[derive(Clone, Debug, Default)]
struct Model {
    keys: Vec<(Nexus, u64)>,
    held: Option<(ReservationType, Option<Nexus>)>,
    generation: u32,
    aptpl: bool,
    reserved_by: Option<Nexus>,
}

impl Model {
    fn key(&self, nexus: &Nexus) -> u64 {
        self.keys.iter().find(|(known, _)| known == nexus).map_or(0, |(_, key)| *key)
    }

    fn holds(&self, nexus: &Nexus) -> bool {
        match &self.held {
            None => false,
            Some((_, None)) => self.key(nexus) != 0,
            Some((_, Some(holder))) => holder == nexus,
        }
    }

    fn set_key(&mut self, nexus: &Nexus, key: u64) {
        self.keys.retain(|(known, _)| known != nexus);
        if key != 0 {
            self.keys.push((nexus.clone(), key));
        }
        self.drop_orphan();
    }

    fn drop_orphan(&mut self) {
        let orphan = match &self.held {
            Some((_, None)) => self.keys.is_empty(),
            Some((_, Some(holder))) => self.key(holder) == 0,
            None => false,
        };
        if orphan {
            self.held = None;
        }
    }

    fn hold(&mut self, code: u8, nexus: &Nexus) -> Option<()> {
        let kind = ReservationType::from_code(code)?;
        self.held = Some((kind, (code < 7).then(|| nexus.clone())));
        Some(())
    }

    /// `None`: refused, and then nothing has changed.
    fn out(&mut self, event: &Event) -> Option<()> {
        let Event::Out(action, from, code, key, action_key, aptpl, (to, unregister)) = event else {
            unreachable!("only asked about PERSISTENT RESERVE OUT")
        };
        let before = self.clone();
        let own = self.key(from);
        let ignores_key = *action == OutAction::RegisterAndIgnore;
        if self.reserved_by.is_some() || (own != *key && !ignores_key) {
            return None;
        }
        if own == 0 && !matches!(action, OutAction::Register | OutAction::RegisterAndIgnore) {
            return None;
        }
        let mut counts = true;
        let done = match action {
            OutAction::Register | OutAction::RegisterAndIgnore if own == 0 && *action_key == 0 => {
                counts = false;
                Some(())
            }
            OutAction::Register | OutAction::RegisterAndIgnore => {
                self.aptpl = *aptpl;
                self.set_key(from, *action_key);
                Some(())
            }
            OutAction::Reserve => {
                counts = false;
                match &self.held {
                    None => self.hold(*code, from),
                    Some((kind, _)) => (self.holds(from) && *kind as u8 == *code).then_some(()),
                }
            }
            OutAction::Release => {
                counts = false;
                match &self.held {
                    Some((kind, _)) if self.holds(from) => {
                        let same = *kind as u8 == *code;
                        self.held = if same { None } else { self.held.clone() };
                        same.then_some(())
                    }
                    _ => Some(()),
                }
            }
            OutAction::Clear => {
                self.keys.clear();
                self.held = None;
                Some(())
            }
            OutAction::Preempt | OutAction::PreemptAndAbort => {
                self.preempt(from, *code, *action_key)
            }
            OutAction::RegisterAndMove => {
                let all = matches!(self.held, None | Some((_, None)));
                if all || !self.holds(from) || *action_key == 0 || to.initiator == from.initiator {
                    None
                } else {
                    self.set_key(to, *action_key);
                    self.held = self.held.take().map(|(kind, _)| (kind, Some(to.clone())));
                    if *unregister {
                        self.set_key(from, 0);
                    }
                    self.aptpl = *aptpl;
                    Some(())
                }
            }
            OutAction::ReplaceLost => None,
        };
        match done {
            Some(()) => self.generation += u32::from(counts),
            None => *self = before,
        }
        done
    }

    fn preempt(&mut self, from: &Nexus, code: u8, action_key: u64) -> Option<()> {
        let takes_over = match &self.held {
            Some((_, None)) => action_key == 0,
            Some((_, Some(holder))) => self.key(holder) == action_key,
            None => false,
        };
        if takes_over {
            self.held = None;
            self.keys
                .retain(|(nexus, key)| nexus == from || (action_key != 0 && *key != action_key));
            return self.hold(code, from);
        }
        let before = self.keys.len();
        self.keys.retain(|(_, key)| *key != action_key);
        self.drop_orphan();
        (self.keys.len() < before).then_some(())
    }

    /// SPC-4 6.15.3.4, in its own words.
    fn may(&self, nexus: &Nexus, writes: bool) -> bool {
        use ReservationType::{ExclusiveAccess, WriteExclusive};
        if let Some(holder) = &self.reserved_by {
            return holder == nexus;
        }
        match &self.held {
            None => true,
            Some((WriteExclusive | ExclusiveAccess, _)) if self.holds(nexus) => true,
            Some((WriteExclusive, _)) => !writes,
            Some((ExclusiveAccess, _)) => false,
            Some(_) if self.key(nexus) != 0 => true,
            Some((kind, _)) => !writes && matches!(*kind as u8, 5 | 7),
        }
    }
}

/// Whom a change tells what, by what it changed.
fn expected_attentions(
    action: OutAction,
    from: &Nexus,
    before: &Model,
    after: &Model,
) -> Vec<(Nexus, UnitAttention)> {
    let preempts = matches!(action, OutAction::Preempt | OutAction::PreemptAndAbort);
    let shared = before.held.as_ref().is_some_and(|(kind, _)| kind.admits_registrants());
    let changed = match (&before.held, &after.held) {
        (Some(_), None) => shared && !preempts,
        (Some((old, _)), Some((new, _))) => preempts && old != new,
        _ => false,
    };
    let mut expected = Vec::new();
    for (nexus, _) in before.keys.iter().filter(|(nexus, _)| nexus != from) {
        if after.key(nexus) != 0 && changed {
            expected.push((nexus.clone(), RELEASED));
        } else if after.key(nexus) == 0 && action == OutAction::Clear {
            expected.push((nexus.clone(), CLEARED));
        } else if after.key(nexus) == 0 && preempts {
            expected.push((nexus.clone(), PREEMPTED));
        }
    }
    expected.sort_by(|(one, _), (other, _)| one.cmp(other));
    expected
}

fn expected_aborts(action: OutAction, action_key: u64, before: &Model) -> Vec<Nexus> {
    let preempted = before.keys.iter().filter(|(_, key)| action_key == 0 || *key == action_key);
    let mut nexuses: Vec<_> = preempted.map(|(nexus, _)| nexus.clone()).collect();
    nexuses.sort();
    if action == OutAction::PreemptAndAbort { nexuses } else { Vec::new() }
}

fn run_out(unit: &mut Unit, model: &mut Model, event: &Event) -> Result<(), TestCaseError> {
    let Event::Out(action, from, code, key, action_key, aptpl, (to, unregister)) = event else {
        unreachable!("only asked about PERSISTENT RESERVE OUT")
    };
    let (before, state) = (model.clone(), unit.0.clone());
    let bits = if *aptpl { APTPL } else { 0 };
    let list = match action {
        OutAction::RegisterAndMove => {
            let flags = bits | if *unregister { 0x02 } else { 0 };
            move_list(*key, *action_key, flags, to.target_port, to.initiator.as_bytes())
        }
        _ => list(*key, *action_key, bits),
    };
    let found = unit.send(from, *action, *code, &list);
    let expected = model.out(event);
    prop_assert_eq!(found.is_ok(), expected.is_some(), "{:?}: {:?}", event, found);
    match found {
        Ok(change) => {
            let mut told = change.effects.attentions.clone();
            told.sort_by(|(one, _), (other, _)| one.cmp(other));
            prop_assert_eq!(told, expected_attentions(*action, from, &before, model));
            let aborts = expected_aborts(*action, *action_key, &before);
            prop_assert_eq!(change.effects.aborts, aborts);
        }
        Err(_) => prop_assert_eq!(&unit.0, &state),
    }
    Ok(())
}

fn run(unit: &mut Unit, model: &mut Model, event: &Event) -> Result<(), TestCaseError> {
    let legacy = |model: &Model, from: &Nexus| {
        let shared = model.held.as_ref().is_some_and(|(kind, _)| kind.admits_registrants());
        (model.holds(from) || (shared && model.key(from) != 0), model.keys.is_empty())
    };
    match event {
        Event::Out(..) => run_out(unit, model, event)?,
        Event::Reserve6(from) => {
            let expected = match legacy(model, from) {
                (true, _) => true,
                (false, false) => false,
                (false, true) => {
                    let free = model.reserved_by.as_ref().is_none_or(|holder| holder == from);
                    model.reserved_by = model.reserved_by.take().or(Some(from.clone()));
                    free
                }
            };
            prop_assert_eq!(unit.reserve_6(from).is_ok(), expected);
        }
        Event::Release6(from) => {
            let (let_in, empty) = legacy(model, from);
            model.reserved_by = model.reserved_by.take().filter(|holder| holder != from);
            prop_assert_eq!(unit.release_6(from).is_ok(), let_in || empty);
        }
        Event::NexusLoss(from) => {
            let ends = model.reserved_by.as_ref() == Some(from);
            model.reserved_by = model.reserved_by.take().filter(|holder| holder != from);
            prop_assert_eq!(unit.0.on_nexus_loss(from), ends);
        }
        Event::Reset => {
            prop_assert_eq!(unit.0.on_logical_unit_reset(), model.reserved_by.take().is_some());
        }
        Event::PowerOn => {
            unit.0.on_power_on();
            *model = Model { generation: 0, reserved_by: None, ..model.clone() };
            if !model.aptpl {
                *model = Model::default();
            }
        }
    }
    Ok(())
}

fn check(state: &Reservations, model: &Model) -> Result<(), TestCaseError> {
    let mut keys = model.keys.clone();
    keys.sort();
    let found: Vec<_> = state.registrations().map(|r| (r.nexus.clone(), r.key)).collect();
    prop_assert_eq!(found, keys);
    prop_assert_eq!(state.generation(), model.generation);
    prop_assert_eq!(state.persists_through_power_loss(), model.aptpl);
    prop_assert_eq!(state.legacy_holder(), model.reserved_by.as_ref());
    let held = state.reservation().map(|held| (held.kind, held.holder.clone()));
    prop_assert_eq!(&held, &model.held);

    // What always holds, whatever the model says.
    let holders = state.registrations().filter(|registration| registration.holder).count();
    match held.map(|(kind, _)| kind.is_all_registrants()) {
        None => prop_assert_eq!(holders, 0),
        Some(false) => prop_assert_eq!(holders, 1, "the holder is registered, and there is one"),
        Some(true) => prop_assert_eq!(holders, state.registrations().len()),
    }
    prop_assert!(state.reservation().is_none() || holders > 0);
    prop_assert!(state.legacy_holder().is_none() || state.registrations().len() == 0);

    let table = state.access_table();
    for nexus in (0..4).flat_map(|number| [at(number, 1), at(number, 2)]) {
        let access = state.access(&nexus);
        prop_assert_eq!(table.access(&nexus), access);
        prop_assert_eq!(!conflicts(Class::READ, access), model.may(&nexus, false));
        prop_assert_eq!(!conflicts(Class::WRITE, access), model.may(&nexus, true));
        let reserved = model.reserved_by.as_ref().is_some_and(|holder| holder != &nexus);
        prop_assert_eq!(conflicts(Class::STATUS, access), reserved);
        prop_assert!(!conflicts(Class::FREE, access) && !conflicts(Class::ALWAYS, access));
    }
    prop_assert!(table.named().all(|(_, access)| access == Access::OPEN));

    let record = Record {
        unit: "disk1".into(),
        boot_id: [7; 16],
        operation: None,
        reservations: state.clone(),
    };
    prop_assert_eq!(Record::decode(&record.encode()), Ok(record));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn any_commands_do_what_the_model_says(
        events in prop::collection::vec(any_event(), 0..60),
    ) {
        let (mut unit, mut model) = (Unit::default(), Model::default());
        for event in &events {
            run(&mut unit, &mut model, event)?;
            check(&unit.0, &model)?;
        }
    }

    /// From a state with registrants and a reservation, so that little is refused.
    #[test]
    fn registered_nexuses_do_what_the_model_says(
        kind in prop::sample::select(ReservationType::ALL.to_vec()),
        events in prop::collection::vec(any_event(), 0..30),
    ) {
        let (mut unit, mut model) = (Unit::default(), Model::default());
        let ready = (0..4).map(|number| {
            let to = (at(0, 1), false);
            let key = u64::from(number) % 3 + 1;
            Event::Out(OutAction::Register, at(number, 1), 0, 0, key, true, to)
        });
        let to = (at(0, 1), false);
        let held = Event::Out(OutAction::Reserve, at(0, 1), kind as u8, 1, 0, false, to);
        for event in ready.chain([held]).chain(events) {
            // Most of them know their key.
            let event = match event {
                Event::Out(action, from, code, key, action_key, aptpl, to) if key != 3 => {
                    let key = model.key(&from);
                    Event::Out(action, from, code, key, action_key, aptpl, to)
                }
                other => other,
            };
            run(&mut unit, &mut model, &event)?;
            check(&unit.0, &model)?;
        }
    }

    #[test]
    fn any_bytes_are_a_change_or_a_refusal_with_the_pointer_inside(
        cdb in prop::collection::vec(any::<u8>(), 0..16),
        list in prop::collection::vec(any::<u8>(), 0..120),
        action in 0_u8..10,
        fits: bool,
    ) {
        let mut cdb = cdb;
        if let Some(head) = cdb.first_chunk_mut::<10>() {
            head[..2].copy_from_slice(&[0x5F, action]);
            if fits {
                head[5..9].copy_from_slice(&(list.len() as u32).to_be_bytes());
            }
        }
        let unit = Unit::held(ReservationType::WriteExclusive, &[1, 2]);
        for state in [unit.0, Reservations::default(), Reservations::information_lost()] {
            match state.persistent_reserve_out(&at(1, 1), &cdb, &list, &PORTS) {
                Ok(Change { state, .. }) => prop_assert!(!state.is_lost()),
                Err(Ending::Sense(sense)) => {
                    if let Some(field) = sense.field {
                        let end = if field.in_cdb { cdb.len().max(1) } else { list.len() };
                        prop_assert!(usize::from(field.byte) < end);
                    }
                }
                Err(Ending::Status(_)) => {}
            }
            let mut out = [0; 64];
            let _ = state.persistent_reserve_in(&cdb, &mut out);
            let _ = state.reserve_or_release(&at(1, 1), &cdb);
        }
    }

    #[test]
    fn what_persistent_reserve_in_tells_is_cut_and_never_changed(
        numbers in prop::collection::btree_set(0_u16..50, 0..20),
        kind in prop::sample::select(ReservationType::ALL.to_vec()),
        action in 0_u8..4,
        allocation: u16,
        room in 0_usize..1_000,
    ) {
        let numbers: Vec<_> = numbers.into_iter().map(|number| number + 1).collect();
        let unit = if numbers.is_empty() { Unit::default() } else { Unit::held(kind, &numbers) };
        let whole = unit.read(action, u16::MAX).unwrap();
        let mut out = vec![0xEE; room];
        let written = unit.0.persistent_reserve_in(&in_cdb(action, allocation), &mut out).unwrap();
        prop_assert_eq!(written, whole.len().min(room).min(allocation.into()));
        prop_assert_eq!(&out[..written], &whole[..written]);
        prop_assert!(out[written..].iter().all(|&byte| byte == 0xEE));
        if action != 2 {
            let length = u32::from_be_bytes(whole[4..8].try_into().unwrap());
            prop_assert_eq!(length as usize + 8, whole.len());
        }
    }
}
