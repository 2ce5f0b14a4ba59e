//! The distinct profiles of all keys, which refer to them by number.
//!
//! A profile keeps its number as long as a key uses it. A later snapshot may reuse the number of an unused profile,
//! because every snapshot has its own list.

use std::sync::{Arc, OnceLock};

use hashbrown::HashMap;

use crate::profile::{Damage, Profile, ProfileRow};
use crate::route::RouteTable;
use crate::scope::Granted;

/// Cached fragments of responses, opaque to the replica. The code that renders responses fills them once.
pub type ResponseParts<const N: usize> = OnceLock<[Box<[u8]>; N]>;

/// The number of the profile without scopes, networks and plan.
pub(super) const FREE: u32 = 0;

/// A profile, with its scopes compiled for the current rules.
#[derive(Clone, Debug)]
pub struct Interned {
    read: Arc<Read>,
    granted: Option<Arc<Granted>>,
}

/// The part of a profile that does not depend on rules.
#[derive(Debug)]
struct Read {
    row: ProfileRow,
    profile: Result<Profile, Damage>,
    responses: ResponseParts<1>,
}

impl Interned {
    fn new(row: ProfileRow, routes: &RouteTable) -> Self {
        let profile = row.compile();
        let read = Arc::new(Read { row, profile, responses: ResponseParts::new() });
        Self { read, granted: None }.granting(routes)
    }

    fn granting(self, routes: &RouteTable) -> Self {
        let scopes = self.read.profile.as_ref().ok().and_then(|profile| profile.scopes.as_ref());
        let granted = scopes.map(|scopes| Arc::new(routes.granted(scopes)));
        Self { granted, ..self }
    }

    /// Returns the unparsed profile.
    #[must_use]
    pub fn row(&self) -> &ProfileRow {
        &self.read.row
    }

    /// Returns the parsed profile.
    ///
    /// # Errors
    ///
    /// Returns which column is damaged.
    pub fn profile(&self) -> Result<&Profile, &Damage> {
        self.read.profile.as_ref()
    }

    /// Returns the cached response fragment.
    #[must_use]
    pub fn responses(&self) -> &ResponseParts<1> {
        &self.read.responses
    }

    /// Returns the granted scopes, compiled for the current rules; `None` grants everything.
    #[must_use]
    pub fn granted(&self) -> Option<&Granted> {
        self.granted.as_deref()
    }
}

/// All profiles. Cheap to clone for up to some thousand profiles.
#[derive(Clone, Debug)]
pub(super) struct Profiles {
    numbers: HashMap<ProfileRow, u32>,
    list: Vec<Interned>,
    /// The number of keys that use each profile.
    uses: Vec<usize>,
    /// The number of profiles that are used.
    live: usize,
    /// Numbers that can be assigned again.
    unused: Vec<u32>,
}

impl Default for Profiles {
    fn default() -> Self {
        let free = Interned::new(ProfileRow::default(), &RouteTable::default());
        Self { numbers: HashMap::new(), list: vec![free], uses: vec![0], live: 0, unused: Vec::new() }
    }
}

impl Profiles {
    /// Returns the number of a profile, and assigns one to a new profile.
    pub(super) fn number(&mut self, row: ProfileRow, routes: &RouteTable) -> u32 {
        if row.is_free() {
            return FREE;
        }
        if let Some(number) = self.numbers.get(&row) {
            return *number;
        }
        let interned = Interned::new(row.clone(), routes);
        let number = if let Some(number) = self.unused.pop() {
            self.list[number as usize] = interned;
            number
        } else {
            self.list.push(interned);
            self.uses.push(0);
            u32::try_from(self.list.len() - 1).unwrap_or(u32::MAX)
        };
        self.numbers.insert(row, number);
        number
    }

    /// Returns the profile with this number.
    pub(super) fn get(&self, number: u32) -> &Interned {
        &self.list[number as usize]
    }

    /// Returns whether the columns of a key are damaged.
    ///
    /// Parses only new profiles. To parse the columns of every key would leave a hole of 64 bytes between the entries
    /// of any two keys, because the parser returns memory in another size than it allocates.
    pub(super) fn is_damaged(&self, row: &ProfileRow) -> bool {
        match self.numbers.get(row) {
            Some(number) => self.get(*number).profile().is_err(),
            None => row.compile().is_err(),
        }
    }

    /// Adds `by` to the number of keys that use a profile.
    pub(super) fn count(&mut self, number: u32, by: isize) {
        if number == FREE {
            return;
        }
        let uses = &mut self.uses[number as usize];
        let before = *uses;
        *uses = before.saturating_add_signed(by);
        self.live = (self.live + usize::from(*uses > 0)).saturating_sub(usize::from(before > 0));
    }

    /// Returns whether a key has a profile of which `is_meant` is true.
    pub(super) fn is_used(&self, is_meant: impl Fn(&ProfileRow) -> bool) -> bool {
        self.list.iter().zip(&self.uses).any(|(one, uses)| *uses > 0 && is_meant(one.row()))
    }

    /// Returns whether so many profiles are unused that [`Self::sweep`] should be called.
    pub(super) fn needs_sweep(&self) -> bool {
        self.numbers.len() > 2 * self.live + 1_000
    }

    /// Frees the numbers of unused profiles.
    pub(super) fn sweep(&mut self) {
        let (uses, unused) = (&self.uses, &mut self.unused);
        self.numbers.retain(|_, number| {
            let keep = uses[*number as usize] > 0;
            if !keep {
                unused.push(*number);
            }
            keep
        });
        debug_assert_eq!(self.numbers.len() + self.unused.len() + 1, self.list.len());
    }

    /// Resets all counts of uses to 0.
    pub(super) fn reset_uses(&mut self) {
        self.uses.fill(0);
        self.live = 0;
    }

    /// Compiles the scopes of all profiles for these rules.
    pub(super) fn grant(&mut self, routes: &RouteTable) {
        self.list = std::mem::take(&mut self.list).into_iter().map(|one| one.granting(routes)).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(scopes: &str) -> ProfileRow {
        ProfileRow { scopes: Some(scopes.into()), ..ProfileRow::default() }
    }

    #[test]
    fn a_profile_keeps_its_number_as_long_as_a_key_uses_it() {
        let (mut profiles, routes) = (Profiles::default(), RouteTable::default());
        assert_eq!(profiles.number(ProfileRow::default(), &routes), FREE);
        let (a, b) = (profiles.number(row("a"), &routes), profiles.number(row("b"), &routes));
        assert!(a != b && a != FREE && profiles.number(row("a"), &routes) == a);
        profiles.count(a, 2);
        profiles.count(b, 1);
        profiles.count(a, -1);
        profiles.count(b, -1);
        profiles.count(FREE, -1);
        let before = profiles.clone();
        assert_eq!((before.live, before.needs_sweep()), (1, false));
        profiles.sweep();
        assert_eq!((profiles.live, profiles.number(row("a"), &routes)), (1, a));
        assert_eq!(profiles.number(row("c"), &routes), b);
        assert_eq!((before.get(b).row(), profiles.get(b).row()), (&row("b"), &row("c")));
        assert!(profiles.get(FREE).profile().is_ok() && profiles.get(FREE).granted().is_none());
    }

    #[test]
    fn the_list_does_not_grow_with_profiles_that_come_and_go() {
        let (mut profiles, routes) = (Profiles::default(), RouteTable::default());
        for n in 0..10_000 {
            let number = profiles.number(row(&format!("s{n}")), &routes);
            profiles.count(number, 1);
            profiles.count(number, -1);
            if profiles.needs_sweep() {
                profiles.sweep();
            }
        }
        assert!(profiles.list.len() < 1_100, "{}", profiles.list.len());
    }
}
