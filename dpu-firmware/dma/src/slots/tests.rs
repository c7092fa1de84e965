use proptest::prelude::*;

use super::*;

/// The id alone.
fn claim<T>(slots: &mut Slots<T>) -> Option<SlotId> {
    slots.claim().map(|(id, _)| id)
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Claim,
    /// Releases the n-th id ever given, living or stale.
    Release(prop::sample::Index),
}

proptest! {
    #[test]
    fn slots_behave_as_a_stack_of_indexes_with_lives(
        capacity in 0..6_u32,
        steps in prop::collection::vec(
            prop_oneof![Just(Step::Claim), any::<prop::sample::Index>().prop_map(Step::Release)],
            0..80,
        ),
    ) {
        let mut slots = Slots::new(capacity, u64::from);
        let mut free: Vec<u32> = (0..capacity).rev().collect();
        let mut live: Vec<SlotId> = Vec::new();
        let mut given: Vec<SlotId> = Vec::new();
        for step in steps {
            match step {
                Step::Claim => {
                    let id = claim(&mut slots);
                    prop_assert_eq!(id.map(|id| id.index), free.pop());
                    if let Some(id) = id {
                        prop_assert!(!given.contains(&id), "an id came twice");
                        given.push(id);
                        live.push(id);
                        *slots.get_mut(id).unwrap() = id.to_token();
                    }
                }
                Step::Release(which) if !given.is_empty() => {
                    let id = given[which.index(given.len())];
                    let lives = live.contains(&id);
                    prop_assert_eq!(slots.release(id), lives);
                    if lives {
                        live.retain(|other| *other != id);
                        free.push(id.index);
                    }
                }
                Step::Release(_) => {}
            }
            prop_assert_eq!(slots.len() as usize, live.len());
            prop_assert_eq!(slots.is_empty(), live.is_empty());
            for id in &given {
                let expected = live.contains(id).then_some(id.to_token());
                prop_assert_eq!(slots.get(*id).copied(), expected);
                prop_assert_eq!(slots.id_at(id.index) == Some(*id), live.contains(id));
            }
            let mut expected = live.clone();
            expected.sort_unstable();
            let walked: Vec<SlotId> = slots.iter_live().map(|(id, _)| id).collect();
            prop_assert_eq!(walked, expected);
        }
    }

    #[test]
    fn any_token_is_an_id_and_back(token in any::<u64>()) {
        prop_assert_eq!(SlotId::from_token(token).to_token(), token);
        let mut slots = Slots::new(2, |_| ());
        let (one, two) = (claim(&mut slots).unwrap(), claim(&mut slots).unwrap());
        let id = SlotId::from_token(token);
        prop_assert_eq!(slots.get(id).is_some(), id == one || id == two);
    }
}

#[test]
fn the_default_id_never_lives() {
    let mut slots = Slots::new(1, |_| ());
    assert!(slots.get(SlotId::default()).is_none());
    assert!(!slots.release(SlotId::default()));
    claim(&mut slots).unwrap();
    assert!(slots.get(SlotId::default()).is_none());
}

#[test]
fn generations_wrap_without_two_lives_meeting() {
    let mut slots = Slots::new(1, |_| ());
    slots.slots[0].generation = u32::MAX - 1;
    let last = claim(&mut slots).unwrap();
    assert_eq!(last.generation, u32::MAX);
    assert!(slots.release(last));
    let first = claim(&mut slots).unwrap();
    assert_eq!(first.generation, 1);
    assert!(slots.get(last).is_none());
    assert!(slots.get(first).is_some());
}

#[test]
fn values_are_found_by_index_claimed_or_not() {
    let mut slots = Slots::new(2, |index| index * 10);
    assert_eq!(slots.at(1), Some(&10));
    *slots.at_mut(1).unwrap() = 7;
    assert_eq!(slots.at(1), Some(&7));
    assert_eq!(slots.at(2), None);
    assert_eq!(slots.capacity(), 2);
}
