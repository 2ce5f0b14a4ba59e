//! Signs people in to the page with login links and sessions.
//!
//! A session belongs to a management key, and at each request has the authority that this key then has. It ends 30
//! minutes after its last request, 12 hours after it began, and with its key.

use std::net::IpAddr;
use std::time::Duration;

use rand::TryRng;
use rand::rngs::SysRng;
use uuid::Uuid;

use super::{Admin, AdminError, Caller, ChangeOrigin, Creator, refused};
use crate::clock::Timestamp;
use crate::key::PresentedKey;
use crate::permission::{AdminKey, AdminKeyId, authority};
use crate::random;
use crate::store::{AdminSession, Ending, SessionId};
use crate::verify::token::{self, RandomToken};

/// How long a login link is valid.
pub const LINK_WITHIN: Duration = Duration::from_mins(5);

/// How long a session lasts without a request.
pub const IDLE: Duration = Duration::from_mins(30);

/// The maximum duration of a session.
pub const LONGEST: Duration = Duration::from_hours(12);

/// The precision of `last_seen_at`, to avoid a write for each request.
const SEEN_WITHIN: Duration = Duration::from_mins(1);

/// The maximum length of a stored user agent, in characters.
const AGENT_CHARS: usize = 255;

/// A link that signs in once.
pub struct LoginLink {
    /// The last segment of its path.
    pub token: RandomToken,
    /// The management key with which it signs in.
    pub key: AdminKey,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// The browser of a session.
#[derive(Clone, Debug, Default)]
pub struct Browser {
    /// Its IP address; `None` on a Unix socket.
    pub address: Option<IpAddr>,
    /// Its user agent.
    pub user_agent: Option<String>,
}

/// A session that just began. Its token cannot be shown again.
pub struct SignedIn {
    /// The value of the cookie.
    pub token: RandomToken,
    /// The management key that signed in, and what it may do.
    pub caller: Caller,
}

/// Returns whether a session has not timed out at `now`. A clock that was set back ends no session.
#[must_use]
pub fn is_on(session: &AdminSession, now: Timestamp) -> bool {
    now.since(session.created_at) < LONGEST && now.since(session.last_seen_at) < IDLE
}

impl Admin {
    /// Creates a link that signs in to the page with a management key: once, within [`LINK_WITHIN`].
    ///
    /// # Errors
    ///
    /// The key does not exist or is no longer valid; or the database is not available.
    pub async fn login_link(&self, reference: &str) -> Result<LoginLink, AdminError> {
        self.login_link_with(&mut SysRng, reference).await
    }

    /// Like [`Admin::login_link`], with this source of randomness.
    ///
    /// # Errors
    ///
    /// As [`Admin::login_link`].
    pub async fn login_link_with<R: TryRng + Send>(
        &self,
        rng: &mut R,
        reference: &str,
    ) -> Result<LoginLink, AdminError> {
        let id = Uuid::parse_str(reference).ok().map(AdminKeyId);
        let named = |key: &AdminKey| Some(key.id) == id || key.prefix == reference || key.name == reference;
        let keys = self.admin_keys(&Creator::database()).await?;
        let Some(found) = keys.into_iter().find(|listed| named(&listed.key)) else {
            return refused(format!(
                "there is no management key {reference:?}: `tenantgate admin-key list` shows all"
            ));
        };
        if let Some(ended) = found.ended {
            return refused(format!("the management key {reference:?} is not valid: {}", ended.as_str()));
        }
        let token = issue(rng)?;
        let now = self.now();
        self.store.insert_login_link(&token.hash(), found.key.id, now, now.before(LINK_WITHIN)).await?;
        Ok(LoginLink { token, key: found.key, expires_at: now.after(LINK_WITHIN) })
    }

    /// Signs in with a login link, which is then used up. Returns `None` if the link does not exist, was used or has
    /// expired, or if its key is no longer valid.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn sign_in_by_link(
        &self,
        link: &str,
        browser: &Browser,
    ) -> Result<Option<SignedIn>, AdminError> {
        let Some((key, made)) = self.store.take_login_link(&token::hash(link)).await? else {
            return Ok(None);
        };
        if self.now().since(made) >= LINK_WITHIN {
            return Ok(None);
        }
        let keys = self.store.admin_keys().await?;
        let Some(key) = keys.iter().find(|listed| listed.id == key) else { return Ok(None) };
        let Some(caller) = self.caller(&key.prefix).await? else { return Ok(None) };
        self.begin(caller, browser).await.map(Some)
    }

    /// Signs in with a management key. Returns `None` if the key is not valid.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn sign_in(
        &self,
        presented: PresentedKey<'_>,
        browser: &Browser,
    ) -> Result<Option<SignedIn>, AdminError> {
        let Some(caller) = self.authenticate(presented).await? else { return Ok(None) };
        self.begin(caller, browser).await.map(Some)
    }

    async fn begin(&self, caller: Caller, browser: &Browser) -> Result<SignedIn, AdminError> {
        let (token, now) = (issue(&mut SysRng)?, self.now());
        let session = AdminSession {
            id: SessionId(random::new_id()),
            key: caller.key.id,
            created_at: now,
            last_seen_at: now,
            address: browser.address.map(|address| address.to_canonical().to_string()),
            user_agent: browser.user_agent.as_deref().map(shortened),
        };
        let origin = ChangeOrigin { request_id: None, address: browser.address };
        let store = self.on_behalf(&caller, &origin).store;
        store.insert_session(&token.hash(), &session, now.before(LONGEST), now.before(IDLE)).await?;
        Ok(SignedIn { token, caller })
    }

    /// Returns the session of a cookie, and what its key may do now; `None` if there is no such session or it has
    /// ended.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn session(&self, cookie: &str) -> Result<Option<(AdminSession, Caller)>, AdminError> {
        let Some((session, prefix)) = self.store.session_of_token(&token::hash(cookie)).await? else {
            return Ok(None);
        };
        let now = self.now();
        if !is_on(&session, now) {
            return Ok(None);
        }
        let Some(caller) = self.caller(&prefix).await? else { return Ok(None) };
        if session.last_seen_at < now.before(SEEN_WITHIN) {
            self.store.touch_session(session.id, now).await?;
        }
        Ok(Some((session, caller)))
    }

    /// Returns the open sessions of a management key, newest first.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn sessions(&self, key: AdminKeyId) -> Result<Vec<AdminSession>, AdminError> {
        let (mut sessions, now) = (self.store.sessions().await?, self.now());
        sessions.retain(|session| session.key == key && is_on(session, now));
        Ok(sessions)
    }

    /// Returns the management key of a session.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn session_key(&self, id: SessionId) -> Result<Option<AdminKeyId>, AdminError> {
        let sessions = self.store.sessions().await?;
        Ok(sessions.into_iter().find(|session| session.id == id).map(|session| session.key))
    }

    /// Ends one session, or all sessions of a management key. Returns how many it ended, which may be 0.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn end_sessions(&self, ending: Ending) -> Result<usize, AdminError> {
        Ok(self.store.end_sessions(ending).await?.len())
    }

    /// Returns the caller with this prefix of a management key; `None` if the key is no longer valid.
    async fn caller(&self, prefix: &str) -> Result<Option<Caller>, AdminError> {
        let Some((_, chain)) = self.store.admin_key_chain(prefix).await? else { return Ok(None) };
        let (Some(key), Ok(authority)) = (chain.first(), authority(&chain, self.now())) else {
            return Ok(None);
        };
        Ok(Some(Caller { key: key.clone(), creator: Creator { id: Some(key.id), authority } }))
    }
}

fn issue<R: TryRng>(rng: &mut R) -> Result<RandomToken, AdminError> {
    RandomToken::issue_with(rng).map_err(|e| AdminError::Refused(format!("no randomness: {e}")))
}

/// Returns a user agent without control characters, cut to the stored length.
fn shortened(agent: &str) -> String {
    agent.chars().filter(|c| !c.is_control()).take(AGENT_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> AdminSession {
        AdminSession {
            id: SessionId(Uuid::nil()),
            key: AdminKeyId(Uuid::nil()),
            created_at: Timestamp(0),
            last_seen_at: Timestamp(0),
            address: None,
            user_agent: None,
        }
    }

    #[test]
    fn a_session_is_over_when_idle_or_old() {
        let on = |seen: Duration, now: Duration| {
            let session = AdminSession { last_seen_at: Timestamp(0).after(seen), ..session() };
            is_on(&session, Timestamp(0).after(now))
        };
        let nearly = |span: Duration| span.saturating_sub(Duration::from_secs(1));
        assert!(on(Duration::ZERO, nearly(IDLE)) && !on(Duration::ZERO, IDLE));
        assert!(on(nearly(LONGEST), nearly(LONGEST)) && !on(LONGEST, LONGEST));
        assert!(is_on(&session(), Timestamp(-1)), "a clock that is set back");
    }

    #[test]
    fn a_user_agent_is_stored_without_control_characters_and_cut() {
        assert_eq!(shortened("a\r\nb\u{7}"), "ab");
        assert_eq!(shortened(&"é".repeat(300)).chars().count(), 255);
    }
}
