//! Which task may be enabled (SAM-6 clause 8). Counts only: the tasks, and the FIFO of the dormant
//! ones, are the caller's. There is one [`TaskSet`] per I_T nexus and logical unit, which is all with TST = 1.
//! With TST = 0 the caller keeps every other task of the unit out while one runs that is not SIMPLE, so that what
//! is left to the sets are SIMPLE tasks.

/// Task attribute of a command (SAM-6 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskAttribute {
    /// SIMPLE.
    Simple,
    /// HEAD OF QUEUE.
    HeadOfQueue,
    /// ORDERED.
    Ordered,
    /// ACA. No ACA condition is ever established here (NACA is refused), so it is treated
    /// as HEAD OF QUEUE.
    Aca,
}

/// A task management function that an initiator asks for (SAM-6 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskManagementFunction {
    /// ABORT TASK.
    AbortTask,
    /// ABORT TASK SET.
    AbortTaskSet,
    /// CLEAR TASK SET.
    ClearTaskSet,
    /// LOGICAL UNIT RESET.
    LogicalUnitReset,
    /// CLEAR ACA.
    ClearAca,
}

/// The counts of one task set. A task is admitted once, then either ends (if enabled), or wakes and
/// later ends, or is withdrawn; a call out of that order leaves the counts at zero, not below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskSet {
    simple: u32,
    ordered: u32,
    head_of_queue: u32,
    dormant: u32,
}

impl TaskSet {
    /// A new task with this attribute. True: it is enabled now. False: it is dormant; the caller
    /// appends it to its FIFO.
    ///
    /// HEAD OF QUEUE is enabled at once; everything else waits behind every dormant task. That
    /// loses no concurrency: what keeps the oldest dormant task waiting, an older ORDERED or a HEAD
    /// OF QUEUE, keeps a newer SIMPLE waiting as well, and a dormant ORDERED does so by itself.
    #[inline(never)]
    pub fn admit(&mut self, attribute: TaskAttribute) -> bool {
        let enabled = matches!(attribute, TaskAttribute::HeadOfQueue | TaskAttribute::Aca)
            || (self.dormant == 0 && self.allows(attribute));
        let count = if enabled { self.count(attribute) } else { &mut self.dormant };
        *count = count.saturating_add(1);
        enabled
    }

    /// [`Self::admit`] for what nearly every task is: SIMPLE, and nothing in its way. False: nothing was done.
    #[inline]
    pub fn admit_usual(&mut self, attribute: TaskAttribute) -> bool {
        let usual = attribute == TaskAttribute::Simple
            && (self.ordered | self.head_of_queue | self.dormant) == 0;
        if usual {
            self.simple = self.simple.saturating_add(1);
        }
        usual
    }

    /// An enabled task with this attribute ended. The caller then tries [`TaskSet::wake`] for the
    /// head of its FIFO until that says no.
    #[inline]
    pub fn ended(&mut self, attribute: TaskAttribute) {
        let count = match attribute {
            TaskAttribute::Simple => &mut self.simple,
            rare => self.count(rare),
        };
        *count = count.saturating_sub(1);
    }

    /// May the dormant task at the FIFO's head, with this attribute, be enabled now? If so it
    /// counts as enabled and the caller takes it off the FIFO. False too where no task is dormant.
    #[inline]
    pub fn wake(&mut self, attribute: TaskAttribute) -> bool {
        if self.dormant == 0 || !self.allows(attribute) {
            return false;
        }
        self.dormant = self.dormant.saturating_sub(1);
        let count = self.count(attribute);
        *count = count.saturating_add(1);
        true
    }

    /// A dormant task left the FIFO, from anywhere in it, without having been enabled (aborted).
    /// The head of the FIFO may be able to wake afterwards.
    pub fn withdrawn(&mut self, _attribute: TaskAttribute) {
        self.dormant = self.dormant.saturating_sub(1);
    }

    /// Dormant tasks.
    #[must_use]
    pub fn dormant(&self) -> u32 {
        self.dormant
    }

    /// Enabled tasks.
    #[must_use]
    pub fn enabled(&self) -> u32 {
        self.simple.saturating_add(self.ordered).saturating_add(self.head_of_queue)
    }

    /// Do the enabled tasks allow another with this attribute? SAM-6 8: SIMPLE waits for every HEAD
    /// OF QUEUE and every older ORDERED; ORDERED waits for every HEAD OF QUEUE and everything
    /// older. An enabled task other than HEAD OF QUEUE is older than any dormant one.
    #[inline]
    fn allows(&self, attribute: TaskAttribute) -> bool {
        match attribute {
            TaskAttribute::Simple => (self.ordered | self.head_of_queue) == 0,
            TaskAttribute::Ordered => (self.simple | self.ordered | self.head_of_queue) == 0,
            TaskAttribute::HeadOfQueue | TaskAttribute::Aca => true,
        }
    }

    #[inline(never)]
    fn count(&mut self, attribute: TaskAttribute) -> &mut u32 {
        match attribute {
            TaskAttribute::Simple => &mut self.simple,
            TaskAttribute::Ordered => &mut self.ordered,
            TaskAttribute::HeadOfQueue | TaskAttribute::Aca => &mut self.head_of_queue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TaskAttribute::{Aca, HeadOfQueue, Ordered, Simple};
    use proptest::prelude::*;

    #[test]
    fn sam_6_simple_tasks_run_together() {
        let mut set = TaskSet::default();
        assert!(set.admit(Simple) && set.admit(Simple));
        assert_eq!((set.enabled(), set.dormant()), (2, 0));
    }

    #[test]
    fn sam_6_ordered_waits_for_older_and_blocks_newer() {
        let mut set = TaskSet::default();
        assert!(set.admit(Simple));
        assert!(!set.admit(Ordered));
        assert!(!set.admit(Simple), "a newer SIMPLE must not pass the dormant ORDERED");
        assert!(!set.wake(Ordered), "the older SIMPLE is still enabled");
        set.ended(Simple);
        assert!(set.wake(Ordered));
        assert!(!set.wake(Simple));
        set.ended(Ordered);
        assert!(set.wake(Simple));
        assert_eq!((set.enabled(), set.dormant()), (1, 0));
    }

    #[test]
    fn sam_6_head_of_queue_passes_everything_and_holds_the_dormant() {
        let mut set = TaskSet::default();
        assert!(set.admit(Simple));
        assert!(!set.admit(Ordered));
        assert!(set.admit(HeadOfQueue));
        set.ended(Simple);
        assert!(!set.wake(Ordered), "HEAD OF QUEUE is still enabled");
        set.ended(HeadOfQueue);
        assert!(set.wake(Ordered));
    }

    #[test]
    fn aca_is_enabled_at_once() {
        let mut set = TaskSet::default();
        assert!(set.admit(Ordered));
        assert!(set.admit(Aca));
    }

    #[test]
    fn a_withdrawn_ordered_lets_the_next_one_wake() {
        let mut set = TaskSet::default();
        assert!(set.admit(Simple));
        assert!(!set.admit(Ordered));
        assert!(!set.admit(Simple));
        set.withdrawn(Ordered);
        assert!(set.wake(Simple));
        assert_eq!((set.enabled(), set.dormant()), (2, 0));
    }

    #[test]
    fn nothing_wakes_where_nothing_is_dormant() {
        assert!(!TaskSet::default().wake(Simple));
    }

    /// SAM-6 8 written down the slow way: every task in order of arrival, judged against all the
    /// others.
    #[derive(Default)]
    struct Model {
        /// Arrival order: attribute, enabled.
        tasks: Vec<(TaskAttribute, bool)>,
    }

    impl Model {
        fn may_be_enabled(&self, index: usize) -> bool {
            let head_of_queue =
                |&(attribute, _): &(TaskAttribute, bool)| matches!(attribute, HeadOfQueue | Aca);
            let older = &self.tasks[..index];
            match self.tasks[index].0 {
                HeadOfQueue | Aca => true,
                Simple => {
                    !self.tasks.iter().any(head_of_queue)
                        && !older.iter().any(|&(attribute, _)| attribute == Ordered)
                }
                Ordered => !self.tasks.iter().any(head_of_queue) && older.is_empty(),
            }
        }

        /// Enables, in order, whatever may be enabled now.
        fn settle(&mut self) {
            for index in 0..self.tasks.len() {
                if self.may_be_enabled(index) {
                    self.tasks[index].1 = true;
                }
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Admit(TaskAttribute),
        /// The task at this place, modulo how many there are: ends if enabled, is withdrawn if
        /// dormant.
        Leave(usize),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop::sample::select(vec![Simple, Simple, Ordered, HeadOfQueue, Aca])
                .prop_map(Step::Admit),
            any::<usize>().prop_map(Step::Leave),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]
        #[test]
        fn counts_and_fifo_enable_exactly_what_the_model_enables(
            steps in prop::collection::vec(any_step(), 0..60),
        ) {
            let mut model = Model::default();
            let mut set = TaskSet::default();
            // What the caller keeps: every task in order of arrival, and whether it is enabled.
            let mut tasks: Vec<(TaskAttribute, bool)> = Vec::new();
            for step in steps {
                match step {
                    Step::Admit(attribute) => {
                        tasks.push((attribute, set.admit(attribute)));
                        model.tasks.push((attribute, false));
                    }
                    Step::Leave(place) if !tasks.is_empty() => {
                        let place = place % tasks.len();
                        let (attribute, enabled) = tasks.remove(place);
                        model.tasks.remove(place);
                        if enabled { set.ended(attribute) } else { set.withdrawn(attribute) }
                        while let Some(head) = tasks.iter_mut().find(|task| !task.1)
                            && set.wake(head.0)
                        {
                            head.1 = true;
                        }
                    }
                    Step::Leave(_) => {}
                }
                model.settle();
                prop_assert_eq!(&tasks, &model.tasks);
                let enabled = tasks.iter().filter(|task| task.1).count();
                prop_assert_eq!(set.enabled() as usize, enabled);
                prop_assert_eq!(set.dormant() as usize, tasks.len() - enabled);
            }
        }
    }
}
