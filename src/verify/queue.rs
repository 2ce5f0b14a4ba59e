//! A bounded queue that is fair between clients, and between keys.
//!
//! Attempts have a rank, which the caller knows, and the lowest comes first. Among equals a site is drawn, then one of
//! its clients, then one of its keys, then one of its attempts, all at random. So clients have equal shares, however many
//! keys each presents, and keys have equal shares, however many secrets are tried. A full queue drops an attempt by the same rules, from
//! the other end.
//!
//! Among equals the draw is random, and not by turns, because turns would need a memory of who had one, and could be
//! timed. The holder of the right secret of a key under attack has the same chance at every attempt, and is never
//! locked out.

use std::cmp::Reverse;

use super::attempt::{Attempt, ClientNetwork, Site};
use crate::key::KeyId;

/// A bounded queue of jobs. With up to a hundred, each of which takes a quarter of a second, walking through all of them
/// costs nothing.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    waiting: Vec<Waiting<T>>,
    bound: usize,
    bound_per_key: usize,
}

/// The place of an attempt in the queue; the lowest comes first: those that are less likely guesses, then those that
/// were made before.
pub(super) type Rank = (u32, Reverse<bool>);

/// A waiting job. Its rank is kept, because each push compares all of them.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) attempt: Attempt,
    pub(super) rank: Rank,
    pub(super) job: T,
}

/// What the attempts that may be drawn are divided by: first by sites, then by clients, then by keys.
type Group = (Site, Option<ClientNetwork>, Option<KeyId>);

const LEVELS: [fn(&Attempt) -> Group; 3] = [
    |attempt| (attempt.client.site(), None, None),
    |attempt| (attempt.client.site(), Some(attempt.client), None),
    |attempt| (attempt.client.site(), Some(attempt.client), Some(attempt.key)),
];

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

    /// Returns the waiting attempts, whose ranks may change.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Waiting<T>> {
        self.waiting.iter_mut()
    }

    /// Adds an attempt. Returns the one that is dropped for it, if any, which may be the new one.
    pub(super) fn push(&mut self, new: Waiting<T>, random: u64) -> Option<Waiting<T>> {
        let key = new.attempt.key;
        self.waiting.push(new);
        let of_key = self.indices(|waiting| waiting.attempt.key == key);
        let crowd = if of_key.len() > self.bound_per_key {
            of_key
        } else if self.waiting.len() > self.bound {
            self.indices(|_| true)
        } else {
            return None;
        };
        let last = crowd.iter().map(|at| self.waiting[*at].rank).max()?;
        let dropped = self.draw(crowd, last, true, random)?;
        Some(self.waiting.swap_remove(dropped))
    }

    /// Takes the next attempt.
    pub(super) fn pop(&mut self, random: u64) -> Option<Waiting<T>> {
        let first = self.waiting.iter().map(|waiting| waiting.rank).min()?;
        let next = self.draw(self.indices(|_| true), first, false, random)?;
        Some(self.waiting.swap_remove(next))
    }

    fn indices(&self, wanted: impl Fn(&Waiting<T>) -> bool) -> Vec<usize> {
        (0..self.waiting.len()).filter(|at| wanted(&self.waiting[*at])).collect()
    }

    /// Draws a site, then a client, then a key, then an attempt, all of this rank; `crowded`: only from those with the most attempts.
    fn draw(&self, mut among: Vec<usize>, rank: Rank, crowded: bool, mut random: u64) -> Option<usize> {
        among.retain(|at| self.waiting[*at].rank == rank);
        for group_of in LEVELS {
            let group = |at: &usize| group_of(&self.waiting[*at].attempt);
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
        // Each in a site of its own.
        let client = ClientNetwork::from(Some(IpAddr::from([192, 0, client, 1])));
        Attempt { client, key: KeyId(Uuid::from_u128(key)) }
    }

    fn equal(_: &Attempt) -> u32 {
        0
    }

    fn waiting(attempt: Attempt, job: usize, rank: impl Fn(&Attempt) -> u32) -> Waiting<usize> {
        Waiting { attempt, rank: (rank(&attempt), Reverse(false)), job }
    }

    /// A queue of these clients and keys, whose jobs are numbered from 0.
    fn queue(
        (bound, bound_per_key): (usize, usize),
        attempts: &[Attempt],
        rank: impl Fn(&Attempt) -> u32,
    ) -> FairQueue<usize> {
        let mut queue = FairQueue::new(bound, bound_per_key);
        for (job, attempt) in attempts.iter().enumerate() {
            assert!(queue.push(waiting(*attempt, job, &rank), 0).is_none());
        }
        queue
    }

    /// The jobs that can be next.
    fn next(queue: impl Fn() -> FairQueue<usize>) -> HashSet<usize> {
        (0..1_000).filter_map(|random| queue().pop(random)).map(|next| next.job).collect()
    }

    /// The jobs that can be dropped when this attempt is added, as job 100.
    fn dropped(
        queue: impl Fn() -> FairQueue<usize>,
        new: Attempt,
        rank: impl Fn(&Attempt) -> u32,
    ) -> HashSet<usize> {
        let dropped = (0..1_000).filter_map(|random| queue().push(waiting(new, 100, &rank), random));
        dropped.map(|dropped| dropped.job).collect()
    }

    /// How many of 10,080 random numbers, a multiple of all small ones, draw such an attempt.
    fn share(attempts: &[Attempt], of: Attempt) -> usize {
        let drawn = (0..10_080).filter_map(|random| queue((10, 10), attempts, equal).pop(random));
        drawn.filter(|next| next.attempt == of).count()
    }

    #[test]
    fn everything_is_drawn_once() {
        let mut queue = queue((10, 10), &[by(1, 1), by(1, 1), by(2, 1), by(3, 2)], equal);
        assert_eq!(queue.len(), 4);
        let drawn: HashSet<_> =
            (0..4).filter_map(|random| queue.pop(random * 7)).map(|next| next.job).collect();
        assert_eq!(drawn, HashSet::from([0, 1, 2, 3]));
        assert_eq!((queue.len(), queue.pop(0).is_none()), (0, true));
    }

    #[test]
    fn clients_have_equal_shares_however_many_keys_they_present() {
        let crowd: Vec<_> = (0..9).map(|key| by(1, key)).chain([by(2, 100)]).collect();
        assert_eq!(share(&crowd, by(2, 100)), 10_080 / 2);
    }

    #[test]
    fn sites_have_equal_shares_however_many_clients_they_have() {
        let neighbour = |host| {
            let client = ClientNetwork::from(Some(IpAddr::from([192, 0, 1, host])));
            Attempt { client, key: KeyId(Uuid::from_u128(1)) }
        };
        let crowd: Vec<_> = (0..9).map(neighbour).chain([by(2, 2)]).collect();
        assert_eq!(share(&crowd, by(2, 2)), 10_080 / 2);
    }

    #[test]
    fn keys_of_one_client_have_equal_shares_however_many_secrets_are_tried() {
        let crowd: Vec<_> = (0..9).map(|_| by(1, 1)).chain([by(1, 2)]).collect();
        assert_eq!(share(&crowd, by(1, 2)), 10_080 / 2);
    }

    #[test]
    fn the_lowest_rank_is_next_and_the_highest_is_dropped() {
        let rank = |attempt: &Attempt| u32::from(attempt.client == by(2, 0).client);
        let full = || queue((4, 4), &[by(1, 1), by(2, 2), by(3, 3), by(2, 4)], rank);
        assert_eq!(next(full), HashSet::from([0, 2]));
        assert_eq!(dropped(full, by(4, 5), rank), HashSet::from([1, 3]));
        assert_eq!(dropped(full, by(2, 5), rank), HashSet::from([1, 3, 100]));
    }

    #[test]
    fn a_full_queue_drops_of_the_client_with_the_most_attempts() {
        let full = || queue((4, 4), &[by(1, 1), by(1, 2), by(2, 3), by(1, 2)], equal);
        assert_eq!(dropped(full, by(3, 4), equal), HashSet::from([1, 3]));
        let full = || queue((2, 2), &[by(1, 1), by(2, 2)], equal);
        assert_eq!(dropped(full, by(3, 3), equal), HashSet::from([0, 1, 100]));
    }

    #[test]
    fn too_many_attempts_at_a_key_drop_one_of_them() {
        let attempts = [by(1, 1), by(2, 1), by(3, 2)];
        assert_eq!(dropped(|| queue((9, 2), &attempts, equal), by(4, 1), equal), HashSet::from([0, 1, 100]));
        let rank = |attempt: &Attempt| u32::from(attempt.client == by(2, 0).client);
        assert_eq!(dropped(|| queue((9, 2), &attempts, rank), by(4, 1), rank), HashSet::from([1]));
    }
}
