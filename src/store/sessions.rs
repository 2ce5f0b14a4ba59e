//! The trait for browser sessions and login links of the management page.

use async_trait::async_trait;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::permission::AdminKeyId;

/// The id of a session: `tenantgate_admin_session.id`. It is not the cookie.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SessionId(pub Uuid);

/// A browser that is signed in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AdminSession {
    /// Its id.
    pub id: SessionId,
    /// The management key that signed in.
    pub key: AdminKeyId,
    /// When it began.
    pub created_at: Timestamp,
    /// When the browser last sent a request, up to a minute late.
    pub last_seen_at: Timestamp,
    /// The IP address of the browser.
    pub address: Option<String>,
    /// The `user-agent` header of the browser, at most 255 characters.
    pub user_agent: Option<String>,
}

/// Selects the sessions to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// This one.
    One(SessionId),
    /// All sessions of this management key.
    OfKey(AdminKeyId),
}

/// The sessions and login links of a database. Every `token` is the hash of the token.
#[async_trait]
pub trait AdminSessions: Store {
    /// Adds a login link, and deletes the links that were created at `expired` or before.
    async fn insert_login_link(
        &self,
        token: &str,
        key: AdminKeyId,
        at: Timestamp,
        expired: Timestamp,
    ) -> Result<(), StoreError>;

    /// Deletes a login link, and returns its management key and when it was created. `None` if there is no such link.
    /// Of several concurrent callers, one gets it.
    async fn take_login_link(&self, token: &str) -> Result<Option<(AdminKeyId, Timestamp)>, StoreError>;

    /// Adds a session, and deletes the sessions that began at `began` or before, or were last seen at `seen` or before.
    async fn insert_session(
        &self,
        token: &str,
        session: &AdminSession,
        began: Timestamp,
        seen: Timestamp,
    ) -> Result<(), StoreError>;

    /// Returns the session with this token, which may have expired, and the prefix of its management key.
    async fn session_of_token(&self, token: &str) -> Result<Option<(AdminSession, String)>, StoreError>;

    /// Records when a session last sent a request.
    async fn touch_session(&self, id: SessionId, at: Timestamp) -> Result<(), StoreError>;

    /// Returns all sessions, the newest first.
    async fn sessions(&self) -> Result<Vec<AdminSession>, StoreError>;

    /// Deletes sessions, and returns them.
    async fn end_sessions(&self, ending: Ending) -> Result<Vec<AdminSession>, StoreError>;
}
