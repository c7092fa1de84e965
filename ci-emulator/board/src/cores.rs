//! Which core runs what.

use rustix::thread::CpuSet;

/// Cores of the busy threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Cores of the poll groups, in order; groups beyond them are not pinned.
    pub groups: Vec<usize>,
    /// The initiator's core.
    pub initiator: Option<usize>,
    /// Cores this process may use.
    pub available: usize,
}

impl Plan {
    /// The plan for `groups` poll groups on the cores this process may use.
    #[must_use]
    pub fn for_this_machine(groups: usize) -> Self {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
        Self::new(&cores, groups)
    }

    /// Poll groups from the first core on, the initiator on the last; the initiator's nexus lives on
    /// group 0, so that the two busy threads never share a core where there are two.
    fn new(cores: &[usize], groups: usize) -> Self {
        let available = cores.len();
        match cores.split_last() {
            Some((last, rest)) if !rest.is_empty() => Self {
                groups: rest.iter().copied().take(groups).collect(),
                initiator: Some(*last),
                available,
            },
            _ => Self { groups: Vec::new(), initiator: None, available },
        }
    }
}

/// Keeps the calling thread on `core`; where that is refused it runs anywhere.
pub fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(core, %error, "the thread cannot be pinned");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_threads_share_no_core_where_there_are_two() {
        let plan = Plan::new(&[4, 6], 2);
        assert_eq!((plan.groups, plan.initiator), (vec![4], Some(6)));
        let plan = Plan::new(&[0, 1, 2, 3], 2);
        assert_eq!((plan.groups, plan.initiator), (vec![0, 1], Some(3)));
    }

    #[test]
    fn one_core_pins_nothing() {
        let plan = Plan::new(&[5], 2);
        assert_eq!((plan.groups, plan.initiator), (Vec::new(), None));
    }
}
