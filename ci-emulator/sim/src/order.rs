//! SAM-6 clause 8 judged from the card's trace: which tasks of one task set work at the same time. Knows what
//! initiators sent, and nothing of how the target keeps order.

use std::collections::BTreeMap;

use lunar_scsi::task_set::TaskAttribute;
use lunar_target::State;
use lunar_target::trace::{Point, Record};

use crate::laws::{Broken, Law};
use crate::units::UNITS;

/// A task set: its LUN, and its nexus where each has one of its own.
type Set = (usize, Option<usize>);

/// The judge's memory.
#[derive(Default)]
pub(crate) struct Order {
    /// By tag: what was sent and is not over, as far as the trace tells.
    sent: BTreeMap<u64, (Set, TaskAttribute)>,
    /// What works, by task set.
    working: BTreeMap<Set, Vec<(u64, TaskAttribute)>>,
}

impl Order {
    /// The card is gone, and every task with it.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// A command was sent.
    pub(crate) fn sent(&mut self, tag: u64, nexus: usize, lun: usize, attribute: TaskAttribute) {
        // What a LUN without a unit is asked belongs to no task set.
        if UNITS[lun].comes_and_goes {
            return;
        }
        let own = UNITS[lun].task_set_type != 0;
        self.sent.insert(tag, ((lun, own.then_some(nexus)), attribute));
    }

    /// Looks at what the groups recorded since the last call.
    pub(crate) fn on_records(&mut self, records: &[Record]) -> Result<(), Broken> {
        // Each group's records are in order; between groups only time tells, and nothing that one group does can reach
        // another in the same moment.
        let mut records: Vec<&Record> = records.iter().collect();
        records.sort_by_key(|record| record.at);
        records.into_iter().try_for_each(|record| self.on_record(record))
    }

    fn on_record(&mut self, record: &Record) -> Result<(), Broken> {
        match record.point {
            Point::Entered(
                State::NeedBuffer
                | State::NeedReadRoom
                | State::Fetching
                | State::NeedBackend
                | State::AtBackend,
            ) => self.on_work(record.tag),
            // What is aborted may take its time; nobody has to wait for it.
            Point::Entered(State::Sending | State::Aborting)
            | Point::Aborted(_)
            | Point::ChannelLost(_)
            | Point::Over => {
                self.on_end(record.tag);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn on_work(&mut self, tag: u64) -> Result<(), Broken> {
        let Some(&(set, attribute)) = self.sent.get(&tag) else { return Ok(()) };
        let working = self.working.entry(set).or_default();
        if working.iter().any(|(known, _)| *known == tag) {
            return Ok(());
        }
        let in_its_way = |other: &TaskAttribute| match attribute {
            TaskAttribute::Simple => *other != TaskAttribute::Simple,
            TaskAttribute::Ordered => true,
            TaskAttribute::HeadOfQueue | TaskAttribute::Aca => false,
        };
        if let Some((other, earlier)) = working.iter().find(|(_, other)| in_its_way(other)) {
            let text = format!(
                "LUN {}: {attribute:?} task {tag:#x} works while {earlier:?} task {other:#x} does",
                set.0
            );
            return Err(Broken { law: Law::Order, text });
        }
        working.push((tag, attribute));
        Ok(())
    }

    fn on_end(&mut self, tag: u64) {
        if let Some((set, _)) = self.sent.remove(&tag)
            && let Some(working) = self.working.get_mut(&set)
        {
            working.retain(|(known, _)| *known != tag);
        }
    }
}
