//! Order by key: one job of a key at a time, in this instance.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

use crate::Key;

/// The keys that are busy, each with the jobs that wait for it. Bounded by the crew's window.
#[derive(Debug)]
pub(super) struct Lanes<T>(Mutex<HashMap<Key, VecDeque<T>>>);

impl<T> Lanes<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// Takes the lane of `key` for `job`, or lets it wait there.
    pub(super) fn enter(&self, key: &Key, job: T) -> Option<T> {
        match self.0.lock().entry(key.clone()) {
            Entry::Occupied(mut lane) => {
                lane.get_mut().push_back(job);
                None
            }
            Entry::Vacant(lane) => {
                lane.insert(VecDeque::new());
                Some(job)
            }
        }
    }

    /// Leaves the lane to the next job, if one waits.
    pub(super) fn leave(&self, key: &Key) -> Option<T> {
        let mut lanes = self.0.lock();
        let next = lanes.get_mut(key)?.pop_front();
        if next.is_none() {
            lanes.remove(key);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_job_of_a_key_at_a_time_and_in_order() {
        let lanes = Lanes::new();
        let (a, b) = (Key::from("a"), Key::from("b"));
        assert_eq!(lanes.enter(&a, 1), Some(1));
        assert_eq!(lanes.enter(&a, 2), None);
        assert_eq!(lanes.enter(&b, 3), Some(3));
        assert_eq!(lanes.enter(&a, 4), None);
        assert_eq!(lanes.leave(&a), Some(2));
        assert_eq!(lanes.leave(&a), Some(4));
        assert_eq!(lanes.leave(&a), None);
        assert_eq!(lanes.leave(&b), None);
        assert!(lanes.0.lock().is_empty(), "an idle key keeps nothing");
    }
}
