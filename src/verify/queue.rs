//! A bounded queue that is fair between keys.
//!
//! Every key has its own line, and the lines take turns, so a flood of guesses at one key delays only that key.
//! Within a line the next job is drawn at random, and a full line or a full queue drops one of its jobs at random.
//! The holder of the right secret of a key under attack therefore has the same chance at every attempt, and is never
//! locked out.

use std::collections::{HashMap, VecDeque};

use crate::key::KeyId;

/// A bounded queue with one line per key.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    lines: HashMap<KeyId, Vec<T>>,
    turns: VecDeque<KeyId>,
    len: usize,
    bound: usize,
    line_bound: usize,
}

impl<T> FairQueue<T> {
    /// Creates a queue of at most `bound` jobs, of which at most `line_bound` are for the same key. Both are at
    /// least 1.
    pub(super) fn new(bound: usize, line_bound: usize) -> Self {
        let (bound, line_bound) = (bound.max(1), line_bound.max(1));
        Self { lines: HashMap::new(), turns: VecDeque::new(), len: 0, bound, line_bound }
    }

    /// Returns the number of waiting jobs.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a job to the line of `key`. Returns the job that is dropped for it, if any, which may be `job` itself.
    pub(super) fn push(&mut self, key: KeyId, job: T, random: u64) -> Option<T> {
        let own = self.lines.get(&key).map_or(0, Vec::len);
        let full_line = if own >= self.line_bound {
            Some(key)
        } else if self.len >= self.bound {
            self.longest_line().filter(|longest| self.lines.get(longest).is_some_and(|l| l.len() > own))
        } else {
            self.join(key, job);
            return None;
        };
        let Some(full_line) = full_line else { return Some(job) };
        self.join(key, job);
        self.draw(full_line, random)
    }

    /// Takes the next job.
    pub(super) fn pop(&mut self, random: u64) -> Option<T> {
        let key = self.turns.pop_front()?;
        self.turns.push_back(key);
        self.draw(key, random)
    }

    fn join(&mut self, key: KeyId, job: T) {
        let line = self.lines.entry(key).or_default();
        if line.is_empty() {
            self.turns.push_back(key);
        }
        line.push(job);
        self.len += 1;
    }

    fn draw(&mut self, key: KeyId, random: u64) -> Option<T> {
        let line = self.lines.get_mut(&key)?;
        let at = usize::try_from(random % (line.len() as u64)).unwrap_or(0);
        let job = line.swap_remove(at);
        self.len -= 1;
        if line.is_empty() {
            self.lines.remove(&key);
            self.turns.retain(|k| *k != key);
        }
        Some(job)
    }

    fn longest_line(&self) -> Option<KeyId> {
        self.lines.iter().max_by_key(|(_, line)| line.len()).map(|(key, _)| *key)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const A: KeyId = KeyId(Uuid::from_u128(1));
    const B: KeyId = KeyId(Uuid::from_u128(2));
    const C: KeyId = KeyId(Uuid::from_u128(3));

    #[test]
    fn lines_take_turns() {
        let mut queue = FairQueue::new(10, 10);
        for (key, job) in [(A, "a1"), (A, "a2"), (A, "a3"), (B, "b1")] {
            assert_eq!(queue.push(key, job, 0), None);
        }
        let drawn: Vec<_> = std::iter::from_fn(|| queue.pop(0)).collect();
        assert_eq!(drawn, ["a1", "b1", "a3", "a2"]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_full_line_drops_one_of_its_jobs_including_the_new_one() {
        let mut queue = FairQueue::new(10, 2);
        assert_eq!((queue.push(A, 1, 0), queue.push(A, 2, 0)), (None, None));
        assert_eq!(queue.push(A, 3, 2), Some(3));
        assert_eq!(queue.push(A, 3, 0), Some(1));
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn a_full_queue_drops_a_job_of_the_longest_line() {
        let mut queue = FairQueue::new(3, 3);
        for job in 1..=3 {
            assert_eq!(queue.push(A, job, 0), None);
        }
        assert_eq!(queue.push(B, 10, 0), Some(1));
        assert_eq!(queue.push(C, 20, 0), Some(3));
        assert!(matches!(queue.push(KeyId(Uuid::from_u128(4)), 30, 0), Some(2 | 10 | 20)));
        assert_eq!(queue.len(), 3);
    }

    #[test]
    fn a_full_queue_drops_no_job_of_a_line_that_is_not_longer() {
        let mut queue = FairQueue::new(2, 2);
        assert_eq!((queue.push(A, 1, 0), queue.push(B, 10, 0)), (None, None));
        assert_eq!(queue.push(A, 2, 0), Some(2));
        assert_eq!(queue.push(B, 20, 1), Some(20));
        assert_eq!((queue.pop(0), queue.pop(0), queue.pop(0)), (Some(1), Some(10), None));
    }

    #[test]
    fn every_job_of_a_line_can_be_drawn() {
        let drawn = |random| {
            let mut queue = FairQueue::new(10, 10);
            for job in 0..4 {
                assert_eq!(queue.push(A, job, 0), None);
            }
            queue.pop(random).unwrap()
        };
        assert_eq!([0, 1, 2, 3].map(drawn), [0, 1, 2, 3]);
    }
}
