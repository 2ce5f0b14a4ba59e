//! The trait of sessions and login links of the page.

use async_trait::async_trait;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::permission::AdminKeyId;

/// The identity of a session: `tenantgate_admin_session.id`. It is not the cookie.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SessionId(pub Uuid);

/// A browser that is signed in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AdminSession {
    /// Its identity.
    pub id: SessionId,
    /// The management key that signed in.
    pub key: AdminKeyId,
    /// When it began.
    pub created_at: Timestamp,
    /// When the browser last asked for something; at most a minute behind.
    pub last_seen_at: Timestamp,
    /// Where the browser was: an IP address.
    pub address: Option<String>,
    /// What the browser called itself, at most 255 characters.
    pub user_agent: Option<String>,
}

/// Which sessions are to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// This one.
    One(SessionId),
    /// All of this management key.
    OfKey(AdminKeyId),
}

/// The sessions and login links of a database. Tokens are always given as their hash.
#[async_trait]
pub trait AdminSessions: Store {
    /// Adds a login link, and deletes those that were made at `expired` or before.
    async fn insert_login_link(
        &self,
        token: &str,
        key: AdminKeyId,
        at: Timestamp,
        expired: Timestamp,
    ) -> Result<(), StoreError>;

    /// Deletes a login link; returns its management key and when it was made. `None` if there is no such link, also for
    /// all but one of several callers at once.
    async fn take_login_link(&self, token: &str) -> Result<Option<(AdminKeyId, Timestamp)>, StoreError>;

    /// Adds a session, and deletes those that began at `began` or before, or were last seen at `seen` or before.
    async fn insert_session(
        &self,
        token: &str,
        session: &AdminSession,
        began: Timestamp,
        seen: Timestamp,
    ) -> Result<(), StoreError>;

    /// The session with this token, whether it is over or not, and the prefix of its management key.
    async fn session_of_token(&self, token: &str) -> Result<Option<(AdminSession, String)>, StoreError>;

    /// Records that a session was seen.
    async fn touch_session(&self, id: SessionId, at: Timestamp) -> Result<(), StoreError>;

    /// All sessions, the newest first.
    async fn sessions(&self) -> Result<Vec<AdminSession>, StoreError>;

    /// Ends sessions. Returns those that ended.
    async fn end_sessions(&self, ending: Ending) -> Result<Vec<AdminSession>, StoreError>;
}
