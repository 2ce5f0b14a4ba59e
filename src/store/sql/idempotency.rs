//! Idempotency-Keys of management requests.
//!
//! An attempt claims its key in a separate transaction, so that another attempt sees that it is running. The answer is
//! stored in the transaction of the change. An attempt that took too long and lost its claim therefore cannot commit
//! its change after another attempt has.

use uuid::Uuid;

use super::connection::{Link, query};
use crate::store::{Claim, Claimed, StoreError};

/// Claims an Idempotency-Key, in the current transaction of the connection.
pub(super) async fn claim(link: &mut Link<'_>, claim: &Claim) -> Result<Claimed, StoreError> {
    // On SQLite, instants are texts of fixed width in UTC, which sort by time.
    let sql =
        "DELETE FROM tenantgate_idempotency WHERE started_at < $1 OR (answer IS NULL AND started_at < $2)";
    query(sql).bind(claim.forgotten_before).bind(claim.dead_before).execute(link).await?;
    let sql =
        "INSERT INTO tenantgate_idempotency (admin_key_id, path, key, attempt, body_hash, started_at, pepper)
               VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (admin_key_id, path, key) DO NOTHING";
    let insert = query(sql).bind(claim.admin_key.0).bind(&claim.path).bind(&claim.key).bind(claim.attempt);
    insert.bind(&claim.body_hash).bind(claim.at).bind(&claim.pepper).execute(link).await?;
    let sql = "SELECT attempt, body_hash, pepper, CAST(answer AS text) AS answer FROM tenantgate_idempotency
               WHERE admin_key_id = $1 AND path = $2 AND key = $3";
    let query = query(sql).bind(claim.admin_key.0).bind(&claim.path).bind(&claim.key);
    let Some(row) = query.fetch_optional(link).await? else {
        // The other attempt failed and was deleted between the two statements.
        return Ok(Claimed::Running);
    };
    let attempt = row.id("attempt", "tenantgate_idempotency")?;
    Ok(if attempt == claim.attempt {
        Claimed::First
    } else if row.get::<String>("body_hash")? != claim.body_hash {
        Claimed::OtherBody
    } else {
        match row.get("answer")? {
            Some(answer) => Claimed::Done { attempt, pepper: row.get("pepper")?, answer },
            None => Claimed::Running,
        }
    })
}

/// Stores the answer of an attempt, in the transaction of its change. [`StoreError::Conflict`] if the attempt has lost
/// its claim.
pub(super) async fn keep(link: &mut Link<'_>, attempt: Uuid, answer: &str) -> Result<(), StoreError> {
    let json = link.dialect().json;
    let sql = format!(
        "UPDATE tenantgate_idempotency SET answer = $2{json} WHERE attempt = $1 AND answer IS NULL
         RETURNING CAST(attempt AS text) AS attempt"
    );
    match query(sql).bind(attempt).bind(answer).fetch_optional(link).await? {
        Some(_) => Ok(()),
        None => Err(StoreError::Conflict(
            "the request took so long that another attempt with its Idempotency-Key began".into(),
        )),
    }
}

/// Deletes an attempt that has no answer.
pub(super) async fn give_up(link: &mut Link<'_>, attempt: Uuid) -> Result<(), StoreError> {
    let sql = "DELETE FROM tenantgate_idempotency WHERE attempt = $1 AND answer IS NULL";
    query(sql).bind(attempt).execute(link).await
}
