//! Recognizes by its name a column of another program that may disable rows.

use super::{ANY, is_ours};

/// How a column disables rows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Off {
    /// By this boolean.
    When(bool),
    /// By a word; this one is the most usual.
    Named(&'static str),
    /// By any value.
    Filled,
    /// From a time on, or unless it has a value, which `--revoke-where` cannot say.
    Dated,
}

impl Off {
    /// Returns the value for `--revoke-where` that disables rows.
    pub(super) fn value(self) -> &'static str {
        match self {
            Self::When(true) => "true",
            Self::When(false) => "false",
            Self::Named(value) => value,
            Self::Filled | Self::Dated => ANY,
        }
    }
}

/// Words for a row that is in use.
const ON: [&str; 22] = [
    "active",
    "activated",
    "enabled",
    "enable",
    "valid",
    "approved",
    "allowed",
    "allow",
    "permitted",
    "authorized",
    "authorised",
    "usable",
    "available",
    "verified",
    "confirmed",
    "accepted",
    "granted",
    "operational",
    "live",
    "alive",
    "open",
    "online",
];

/// Words for a row that is not in use any more.
const OFF: [&str; 80] = [
    "inactive",
    "disabled",
    "disable",
    "revoked",
    "revoke",
    "revocation",
    "deleted",
    "delete",
    "deletion",
    "blocked",
    "block",
    "banned",
    "ban",
    "suspended",
    "suspend",
    "suspension",
    "archived",
    "archive",
    "locked",
    "lock",
    "deactivated",
    "deactivate",
    "deactivation",
    "removed",
    "remove",
    "removal",
    "cancelled",
    "canceled",
    "cancellation",
    "terminated",
    "terminate",
    "termination",
    "withdrawn",
    "withdraw",
    "paused",
    "pause",
    "frozen",
    "freeze",
    "expired",
    "invalid",
    "invalidated",
    "retired",
    "closed",
    "denied",
    "deny",
    "rejected",
    "compromised",
    "leaked",
    "stolen",
    "lost",
    "quarantined",
    "stopped",
    "ended",
    "trashed",
    "dead",
    "obsolete",
    "deprecated",
    "destroyed",
    "erased",
    "purged",
    "killed",
    "unapproved",
    "disallowed",
    "forbidden",
    "prohibited",
    "barred",
    "rescinded",
    "discontinued",
    "decommissioned",
    "voided",
    "void",
    "lapsed",
    "superseded",
    "unusable",
    "unavailable",
    "offline",
    "unverified",
    "blacklisted",
    "blocklisted",
    "dormant",
];

/// Words for a column that has one of several states.
const STATE: [&str; 5] = ["status", "state", "lifecycle", "phase", "stage"];

/// Words for an end of life.
const END: [&str; 9] =
    ["expiry", "expires", "expire", "expiration", "until", "ttl", "sunset", "validto", "goodthru"];

/// Words of a column that holds an instant, or the person or program that caused it.
const DATED: [&str; 13] = [
    "at",
    "on",
    "date",
    "time",
    "timestamp",
    "ts",
    "datetime",
    "when",
    "by",
    "reason",
    "since",
    "utc",
    "after",
];

/// Words that turn the meaning.
const NOT: [&str; 5] = ["not", "non", "no", "never", "un"];

/// Returns how a column of this name disables a row. It may be wrong: then the operator names the column.
pub(super) fn off(table: &str, column: &str) -> Option<Off> {
    if is_ours(table, column) {
        return None;
    }
    let words = words(column);
    let has = |known: &[&str]| words.iter().any(|word| known.contains(&word.as_str()));
    // Names without separators, such as `isactive`. Short words would be found in many others.
    let within =
        |known: &[&str]| known.iter().any(|part| part.len() > 4 && words.iter().any(|w| w.contains(part)));
    let ends = |known: &[&str]| {
        words.last().is_some_and(|word| {
            known.contains(&word.as_str())
                || known.iter().any(|end| word.strip_suffix(end).is_some_and(|rest| within_word(rest, &OFF)))
        })
    };
    let is_off = has(&OFF) || (!has(&ON) && within(&OFF));
    let is_on = !is_off && (has(&ON) || within(&ON));
    let dated = ends(&DATED);
    if has(&END)
        || (within(&END) && !has(&OFF))
        || (words.iter().any(|word| word.starts_with("expir")) && dated)
    {
        return Some(Off::Dated);
    }
    match (is_off, is_on) {
        (true, _) if dated => Some(Off::Filled),
        (_, true) if dated || words.last().is_some_and(|word| word == "to") => Some(Off::Dated),
        (true, _) | (_, true) => Some(Off::When(is_off != has(&NOT))),
        _ if has(&STATE) || words.iter().any(|word| word.ends_with("status")) => {
            Some(Off::Named(if table == "tenants" { "suspended" } else { "revoked" }))
        }
        _ => None,
    }
}

/// Returns whether a word contains one of these words, if it is a long one.
fn within_word(word: &str, known: &[&str]) -> bool {
    known.iter().any(|part| part.len() > 4 && word.contains(part))
}

/// Splits a name into words in lower case: at capitals, underscores, blanks and other signs.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let characters: Vec<char> = name.chars().collect();
    for (at, c) in characters.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| characters[before]);
        let begins = c.is_uppercase()
            && (before.is_some_and(|before| !before.is_uppercase())
                || characters.get(at + 1).is_some_and(|next| next.is_lowercase()));
        if begins || !c.is_alphanumeric() {
            words.push(String::new());
        }
        if c.is_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.extend(c.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}
