//! Reads and writes the browser sessions and login links of the management page.

use async_trait::async_trait;
use serde::Serialize;

use super::connection::{Link, query};
use super::row::SqlRow;
use super::{SqlStore, acquire, audit, change};
use crate::audit::{Action, Draft};
use crate::clock::Timestamp;
use crate::permission::AdminKeyId;
use crate::store::{AdminSession, AdminSessions, Ending, SessionId, StoreError};

const SESSION: &str = "tenantgate_admin_session";
const LINK: &str = "tenantgate_login_link";
const COLUMNS: &str = "id, admin_key_id, created_at, last_seen_at, address, user_agent";

/// A session in the audit log.
#[derive(Serialize)]
struct AuditedSession<'a> {
    session: String,
    created_at: String,
    address: Option<&'a str>,
    user_agent: Option<&'a str>,
}

impl<'a> From<&'a AdminSession> for AuditedSession<'a> {
    fn from(session: &'a AdminSession) -> Self {
        Self {
            session: session.id.0.to_string(),
            created_at: session.created_at.to_string(),
            address: session.address.as_deref(),
            user_agent: session.user_agent.as_deref(),
        }
    }
}

fn session_of(row: &SqlRow) -> Result<AdminSession, StoreError> {
    Ok(AdminSession {
        id: SessionId(row.id("id", SESSION)?),
        key: AdminKeyId(row.id("admin_key_id", SESSION)?),
        created_at: row.instant("created_at")?.unwrap_or(Timestamp::MIN),
        last_seen_at: row.instant("last_seen_at")?.unwrap_or(Timestamp::MIN),
        address: row.get("address")?,
        user_agent: row.get("user_agent")?,
    })
}

async fn insert(link: &mut Link<'_>, token: &str, session: &AdminSession) -> Result<(), StoreError> {
    let sql = format!("INSERT INTO {SESSION} (hashed_token, {COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7)");
    let query = query(sql).bind(token).bind(session.id.0).bind(session.key.0);
    let query = query.bind(session.created_at).bind(session.last_seen_at);
    query.bind(&session.address).bind(&session.user_agent).execute(link).await
}

#[async_trait]
impl<S: SqlStore> AdminSessions for S {
    async fn insert_login_link(
        &self,
        token: &str,
        key: AdminKeyId,
        at: Timestamp,
        expired: Timestamp,
    ) -> Result<(), StoreError> {
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        query(format!("DELETE FROM {LINK} WHERE created_at <= $1")).bind(expired).execute(link).await?;
        let sql = format!("INSERT INTO {LINK} (hashed_token, admin_key_id, created_at) VALUES ($1, $2, $3)");
        query(sql).bind(token).bind(key.0).bind(at).execute(link).await?;
        let made = serde_json::json!({ "created_at": at.to_string() });
        let draft = Draft::of(Action::AdminKeyLoginLink, key.0.to_string(), None::<&()>, &made);
        audit::append(link, &self.context().author, [draft]).await?;
        connection.commit().await
    }

    async fn take_login_link(&self, token: &str) -> Result<Option<(AdminKeyId, Timestamp)>, StoreError> {
        let mut connection = change(self).await?;
        let sql = format!("DELETE FROM {LINK} WHERE hashed_token = $1 RETURNING admin_key_id, created_at");
        let row = query(sql).bind(token).fetch_optional(&mut connection.link()).await?;
        connection.commit().await?;
        let Some(row) = row else { return Ok(None) };
        let made = row.instant("created_at")?.unwrap_or(Timestamp::MIN);
        Ok(Some((AdminKeyId(row.id("admin_key_id", LINK)?), made)))
    }

    async fn insert_session(
        &self,
        token: &str,
        session: &AdminSession,
        began: Timestamp,
        seen: Timestamp,
    ) -> Result<(), StoreError> {
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        let sql = format!("DELETE FROM {SESSION} WHERE created_at <= $1 OR last_seen_at <= $2");
        query(sql).bind(began).bind(seen).execute(link).await?;
        insert(link, token, session).await?;
        let subject = session.key.0.to_string();
        let draft = Draft::of(Action::AdminKeySignIn, subject, None::<&()>, &AuditedSession::from(session));
        audit::append(link, &self.context().author, [draft]).await?;
        connection.commit().await
    }

    async fn session_of_token(&self, token: &str) -> Result<Option<(AdminSession, String)>, StoreError> {
        let columns = COLUMNS.replace(", ", ", s.");
        let sql = format!(
            "SELECT s.{columns}, k.key_prefix FROM {SESSION} s JOIN tenantgate_admin_key k ON k.id = s.admin_key_id
             WHERE s.hashed_token = $1"
        );
        let row = query(sql).bind(token).fetch_optional(&mut acquire(self).await?.link()).await?;
        row.map(|row| Ok((session_of(&row)?, row.get("key_prefix")?))).transpose()
    }

    async fn touch_session(&self, id: SessionId, at: Timestamp) -> Result<(), StoreError> {
        let mut connection = acquire(self).await?;
        self.refuse_change(&mut connection.link()).await?;
        let sql = format!("UPDATE {SESSION} SET last_seen_at = $2 WHERE id = $1");
        query(sql).bind(id.0).bind(at).execute(&mut connection.link()).await
    }

    async fn sessions(&self) -> Result<Vec<AdminSession>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM {SESSION} ORDER BY created_at DESC, id");
        query(sql).fetch_all(&mut acquire(self).await?.link()).await?.iter().map(session_of).collect()
    }

    async fn end_sessions(&self, ending: Ending) -> Result<Vec<AdminSession>, StoreError> {
        let (column, id) = match ending {
            Ending::One(id) => ("id", id.0),
            Ending::OfKey(id) => ("admin_key_id", id.0),
        };
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        let sql = format!("DELETE FROM {SESSION} WHERE {column} = $1 RETURNING {COLUMNS}");
        let rows = query(sql).bind(id).fetch_all(link).await?;
        let ended: Vec<_> = rows.iter().map(session_of).collect::<Result<_, _>>()?;
        let draft = |session: &AdminSession| {
            Draft::of_removed(
                Action::AdminKeySignOut,
                session.key.0.to_string(),
                &AuditedSession::from(session),
            )
        };
        let drafts: Vec<_> = ended.iter().map(draft).collect();
        audit::append(link, &self.context().author, drafts).await?;
        connection.commit().await?;
        Ok(ended)
    }
}
