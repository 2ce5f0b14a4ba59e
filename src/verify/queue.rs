//! A bounded queue that is fair between clients, and between keys.
//!
//! Attempts have a rank, which the caller knows, and the lowest comes first. Among equals a client is drawn, then one
//! of its keys, then one of its attempts, all at random. So clients have equal shares, however many keys each presents,
//! and keys have equal shares, however many secrets are tried. A full queue drops an attempt by the same rules, from
//! the other end.
//!
//! Among equals the draw is random, and not by turns, because turns would need a memory of who had one, and could be
//! timed. The holder of the right secret of a key under attack has the same chance at every attempt, and is never
//! locked out.

use std::cmp::Reverse;

use super::attempt::{Attempt, ClientNetwork};
use crate::key::KeyId;

/// A bounded queue. With up to a hundred attempts, each of which takes a quarter of a second, walking through all of
/// them costs nothing.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    waiting: Vec<(Attempt, T)>,
    bound: usize,
    bound_per_key: usize,
}

/// What the attempts that may be drawn are divided by, first by clients, then by keys.
type Group = (ClientNetwork, Option<KeyId>);

const LEVELS: [fn(&Attempt) -> Group; 2] =
    [|attempt| (attempt.client, None), |attempt| (attempt.client, Some(attempt.key))];

impl<T> FairQueue<T> {
    /// Creates a queue of at most `bound` attempts, of which at most `bound_per_key` are for the same key. Both are at
    /// least 1.
    pub(super) fn new(bound: usize, bound_per_key: usize) -> Self {
        Self { waiting: Vec::new(), bound: bound.max(1), bound_per_key: bound_per_key.max(1) }
    }

    /// Returns the number of waiting attempts.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Adds an attempt. Returns the one that is dropped for it, if any, which may be the new one.
    pub(super) fn push<R: Ord>(
        &mut self,
        attempt: Attempt,
        job: T,
        rank: impl Fn(&Attempt, &T) -> R,
        random: u64,
    ) -> Option<T> {
        self.waiting.push((attempt, job));
        let of_key = self.indices(|other| other.key == attempt.key);
        let crowd = if of_key.len() > self.bound_per_key {
            of_key
        } else if self.waiting.len() > self.bound {
            self.indices(|_| true)
        } else {
            return None;
        };
        let last = extremes(crowd, |at| self.rank(*at, &rank));
        let dropped = self.draw(last, true, random)?;
        Some(self.waiting.swap_remove(dropped).1)
    }

    /// Takes the next attempt.
    pub(super) fn pop<R: Ord>(
        &mut self,
        rank: impl Fn(&Attempt, &T) -> R,
        random: u64,
    ) -> Option<(Attempt, T)> {
        let first = extremes(self.indices(|_| true), |at| Reverse(self.rank(*at, &rank)));
        let next = self.draw(first, false, random)?;
        Some(self.waiting.swap_remove(next))
    }

    /// Makes `client` the client of a waiting attempt, if that is of a lower rank then. Returns its job.
    pub(super) fn join<R: Ord>(
        &mut self,
        is_it: impl Fn(&T) -> bool,
        client: ClientNetwork,
        rank: impl Fn(&Attempt, &T) -> R,
    ) -> Option<&mut T> {
        let (attempt, job) = self.waiting.iter_mut().find(|(_, job)| is_it(job))?;
        let joined = Attempt { client, ..*attempt };
        if rank(&joined, job) < rank(attempt, job) {
            *attempt = joined;
        }
        Some(job)
    }

    fn rank<R>(&self, at: usize, rank: impl Fn(&Attempt, &T) -> R) -> R {
        let (attempt, job) = &self.waiting[at];
        rank(attempt, job)
    }

    fn indices(&self, wanted: impl Fn(&Attempt) -> bool) -> Vec<usize> {
        (0..self.waiting.len()).filter(|at| wanted(&self.waiting[*at].0)).collect()
    }

    /// Draws a client, then a key, then an attempt; `crowded`: only from those with the most attempts.
    fn draw(&self, mut among: Vec<usize>, crowded: bool, mut random: u64) -> Option<usize> {
        for group_of in LEVELS {
            let group = |at: &usize| group_of(&self.waiting[*at].0);
            let mut groups: Vec<_> = among.iter().map(group).collect();
            groups.sort_unstable();
            let mut sizes: Vec<_> =
                groups.chunk_by(PartialEq::eq).map(|same| (same.len(), same[0])).collect();
            if crowded {
                let most = sizes.iter().map(|(size, _)| *size).max()?;
                sizes.retain(|(size, _)| *size == most);
            }
            let (_, drawn) = *pick(&sizes, &mut random)?;
            among.retain(|at| group(at) == drawn);
        }
        pick(&among, &mut random).copied()
    }
}

/// Returns those with the greatest rank.
fn extremes<R: Ord>(among: Vec<usize>, rank: impl Fn(&usize) -> R) -> Vec<usize> {
    let Some(greatest) = among.iter().map(&rank).max() else { return among };
    among.into_iter().filter(|at| rank(at) == greatest).collect()
}

/// Picks one by a random number, of which it leaves the rest for the next.
fn pick<'a, I>(items: &'a [I], random: &mut u64) -> Option<&'a I> {
    let count = items.len() as u64;
    let at = random.checked_rem(count)?;
    *random /= count;
    items.get(usize::try_from(at).ok()?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::IpAddr;

    use uuid::Uuid;

    use super::*;

    fn by(client: u8, key: u128) -> Attempt {
        let client = ClientNetwork::from(Some(IpAddr::from([192, 0, 2, client])));
        Attempt { client, key: KeyId(Uuid::from_u128(key)) }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the queue passes jobs by reference")]
    fn equal(_: &Attempt, _: &usize) -> u32 {
        0
    }

    /// A queue of these clients and keys, whose jobs are numbered from 0.
    fn queue(bound: usize, bound_per_key: usize, attempts: &[Attempt]) -> FairQueue<usize> {
        let mut queue = FairQueue::new(bound, bound_per_key);
        for (job, attempt) in attempts.iter().enumerate() {
            assert_eq!(queue.push(*attempt, job, equal, 0), None);
        }
        queue
    }

    /// The jobs that can be next.
    fn next(queue: impl Fn() -> FairQueue<usize>, rank: impl Fn(&Attempt, &usize) -> u32) -> HashSet<usize> {
        (0..1_000).filter_map(|random| queue().pop(&rank, random).map(|(_, job)| job)).collect()
    }

    /// The jobs that can be dropped when this attempt is added, as job 100.
    fn dropped(
        queue: impl Fn() -> FairQueue<usize>,
        new: Attempt,
        rank: impl Fn(&Attempt, &usize) -> u32,
    ) -> HashSet<usize> {
        (0..1_000).filter_map(|random| queue().push(new, 100, &rank, random)).collect()
    }

    /// How many of 10,080 random numbers, a multiple of all small ones, draw such an attempt.
    fn share(queue: impl Fn() -> FairQueue<usize>, of: impl Fn(&Attempt) -> bool) -> usize {
        let drawn = (0..10_080).filter_map(|random| queue().pop(equal, random));
        drawn.filter(|(attempt, _)| of(attempt)).count()
    }

    #[test]
    fn everything_is_drawn_once() {
        let mut queue = queue(10, 10, &[by(1, 1), by(1, 1), by(2, 1), by(3, 2)]);
        let drawn: HashSet<_> =
            (0..4).filter_map(|random| queue.pop(equal, random * 7)).map(|(_, job)| job).collect();
        assert_eq!(drawn, HashSet::from([0, 1, 2, 3]));
        assert_eq!((queue.len(), queue.pop(equal, 0)), (0, None));
    }

    #[test]
    fn clients_have_equal_shares_however_many_keys_they_present() {
        let crowd: Vec<_> = (0..9).map(|key| by(1, key)).chain([by(2, 100)]).collect();
        let share = share(|| queue(10, 10, &crowd), |attempt| *attempt == by(2, 100));
        assert_eq!(share, 10_080 / 2);
    }

    #[test]
    fn keys_of_one_client_have_equal_shares_however_many_secrets_are_tried() {
        let crowd: Vec<_> = (0..9).map(|_| by(1, 1)).chain([by(1, 2)]).collect();
        let share = share(|| queue(10, 10, &crowd), |attempt| *attempt == by(1, 2));
        assert_eq!(share, 10_080 / 2);
    }

    #[test]
    fn the_lowest_rank_is_next_and_the_highest_is_dropped() {
        let full = || queue(4, 4, &[by(1, 1), by(2, 2), by(3, 3), by(2, 4)]);
        let rank = |attempt: &Attempt, _: &usize| u32::from(attempt.client == by(2, 0).client);
        assert_eq!(next(full, rank), HashSet::from([0, 2]));
        assert_eq!(dropped(full, by(4, 5), rank), HashSet::from([1, 3]));
        assert_eq!(dropped(full, by(2, 5), rank), HashSet::from([1, 3, 100]));
    }

    #[test]
    fn a_full_queue_drops_of_the_client_with_the_most_attempts() {
        let full = || queue(4, 4, &[by(1, 1), by(1, 2), by(2, 3), by(1, 2)]);
        assert_eq!(dropped(full, by(3, 4), equal), HashSet::from([1, 3]));
        assert_eq!(
            dropped(|| queue(2, 2, &[by(1, 1), by(2, 2)]), by(3, 3), equal),
            HashSet::from([0, 1, 100])
        );
    }

    #[test]
    fn too_many_attempts_at_a_key_drop_one_of_them() {
        let full = || queue(9, 2, &[by(1, 1), by(2, 1), by(3, 2)]);
        assert_eq!(dropped(full, by(4, 1), equal), HashSet::from([0, 1, 100]));
        let rank = |attempt: &Attempt, _: &usize| u32::from(attempt.client == by(2, 0).client);
        assert_eq!(dropped(full, by(4, 1), rank), HashSet::from([1]));
    }

    #[test]
    fn an_attempt_that_a_second_client_makes_has_the_lower_rank_of_the_two() {
        let rank = |attempt: &Attempt, _: &usize| u32::from(attempt.client == by(1, 0).client);
        let joined = |client: u8| {
            let mut queue = queue(9, 9, &[by(1, 1), by(3, 3)]);
            queue.join(|job| *job == 0, by(client, 0).client, rank);
            queue
        };
        assert_eq!(next(|| joined(1), rank), HashSet::from([1]));
        assert_eq!(next(|| joined(2), rank), HashSet::from([0, 1]));
    }
}
