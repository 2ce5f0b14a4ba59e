//! The rows that a server writes: memos, last uses, counts, rejections, the shadow report and its own announcement.

use std::time::Duration;

use uuid::Uuid;

use crate::clock::{MICROS_PER_DAY, Timestamp};
use crate::key::KeyId;
use crate::record::{Memo, SecretHash};

/// A memo for an existing row.
#[derive(Clone, Debug)]
pub struct NewMemo {
    /// The id of the key.
    pub id: KeyId,
    /// The hash in the row when the memo was created. With another hash, the memo is invalid.
    pub hash: SecretHash,
    /// The memo.
    pub memo: Memo,
}

/// The properties by which the shadow report groups requests that passed in shadow mode and would have been rejected.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ShadowedKind {
    /// Why they would have been rejected.
    pub reason: String,
    /// The client's network.
    pub network: String,
    /// The client program, from its `user-agent` header.
    pub user_agent: String,
    /// The method.
    pub method: String,
    /// The path without its query; ids in it are replaced by `*`.
    pub path: String,
    /// The prefix of the proven key; empty without one.
    pub key_prefix: String,
}

/// One entry of the shadow report: requests that passed in shadow mode and would have been rejected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shadowed {
    /// Their common properties.
    pub kind: ShadowedKind,
    /// The number of requests.
    pub requests: u64,
    /// When the first one arrived.
    pub first_seen: Timestamp,
    /// When the last one arrived.
    pub last_seen: Timestamp,
}

/// A count of requests that is added to the count in the database.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Used {
    /// The number of the day (UTC): see [`Timestamp::day`].
    pub day: i64,
    /// The proven key; the nil UUID without one.
    pub key: KeyId,
    /// The reason of the decision, as in the metadata for Envoy.
    pub reason: &'static str,
    /// The number of requests.
    pub requests: u64,
}

/// Formats the number of a day as both databases store it: `2026-01-31`.
pub(super) fn day_of(number: i64) -> String {
    let mut text = Timestamp(number.saturating_mul(MICROS_PER_DAY)).to_string();
    text.truncate("2026-01-31".len());
    text
}

/// A rejected request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The id that the client got.
    pub decision_id: Uuid,
    /// When it was decided.
    pub at: Timestamp,
    /// Why, as logs spell it.
    pub reason: &'static str,
    /// The key that was proven; the nil UUID without one.
    pub key: KeyId,
}

/// The result of [`super::Store::touch_keys`].
#[derive(Clone, Debug, Default)]
pub struct Touched {
    /// Keys that no server had used before.
    pub first: Vec<KeyId>,
    /// Keys whose rows another session has locked: they are not written.
    pub locked: Vec<KeyId>,
}

/// A server that holds the keys in memory.
#[derive(Clone, Debug)]
pub struct Announcement<'a> {
    /// A random id of the process.
    pub id: Uuid,
    /// Host and process id, for display.
    pub name: &'a str,
    /// Its position in the change log: [`super::SyncPoint::position`].
    pub position: &'a str,
    /// How long it accepts keys without another successful poll, from now on.
    pub serves_for: Duration,
}
