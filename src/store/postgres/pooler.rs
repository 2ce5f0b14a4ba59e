//! Detects poolers in transaction mode before a setting is set, because it would stay in a backend that other clients of the
//! pooler get next.

use std::net::IpAddr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use tokio::time::timeout;

use super::address::DatabaseUrl;
use super::host;
use crate::store::{CONNECT_TIMEOUT, StoreError};

/// How long a backend that is free takes to respond at most.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often both connections are compared. Other clients of a pooler may hide its mode for a moment.
const ROUNDS: usize = 2;

/// Returns whether the server does not listen where the connection was opened: then there is a pooler or a
/// proxy in between, or the address is a name.
pub(super) async fn may_be_at(
    connection: &mut PgConnection,
    options: &PgConnectOptions,
) -> Result<bool, StoreError> {
    let sql = "SELECT pg_catalog.current_setting('port'), coalesce(pg_catalog.inet_server_port()::text, ''),
                      coalesce(pg_catalog.host(pg_catalog.inet_server_addr()), '')";
    let row = sqlx::raw_sql(sql).fetch_one(connection).await?;
    let said = |at: usize| row.try_get_unchecked::<String, _>(at);
    Ok(!leads_to(options, &said(0)?, &said(1)?, &said(2)?))
}

/// Returns whether the server that listens there is the one that the options name.
fn leads_to(options: &PgConnectOptions, listens: &str, port: &str, address: &str) -> bool {
    let wanted = options.get_port().to_string();
    let name = options.get_host();
    if options.get_socket().is_some() || name.starts_with('/') {
        return address.is_empty() && listens == wanted;
    }
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let same = match name.parse::<IpAddr>() {
        Ok(known) => known == address,
        Err(_) => name == "localhost" && address.is_loopback(),
    };
    same && port == wanted
}

/// Returns whether two connections share backends, as behind a pooler in transaction mode: while the second is in a
/// transaction, it has the backend of the first, or the first moves to another one. Nothing is set.
pub(super) async fn shares_backends(
    first: &mut PgConnection,
    address: &DatabaseUrl,
) -> Result<bool, StoreError> {
    let limit = address.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
    // Without a second connection nothing can be compared. Each session checks its backend as well.
    let Ok(Ok(mut second)) = timeout(limit, address.options.connect()).await else { return Ok(false) };
    let mut shared = false;
    for _ in 0..ROUNDS {
        let before = backend(first).await?;
        let begun = async {
            let row =
                sqlx::raw_sql("BEGIN; SELECT pg_catalog.pg_backend_pid()").fetch_one(&mut second).await?;
            Ok::<i32, StoreError>(row.try_get_unchecked(0)?)
        };
        // A pooler in session mode that has one backend gives it to the first connection alone.
        let Ok(other) = timeout(PATIENCE, begun).await else { return Ok(false) };
        // If the transaction has the last backend of the pooler, the first connection waits for it.
        shared = other? == before
            || timeout(PATIENCE, backend(first))
                .await
                .map_or(Ok(true), |after| Ok::<_, StoreError>(after? != before))?;
        sqlx::raw_sql("ROLLBACK").execute(&mut second).await?;
        if shared {
            break;
        }
    }
    second.close().await?;
    Ok(shared)
}

/// Asks through the simple protocol, because prepared statements do not work behind such a pooler.
async fn backend(connection: &mut PgConnection) -> Result<i32, StoreError> {
    let row = sqlx::raw_sql("SELECT pg_catalog.pg_backend_pid()").fetch_one(connection).await?;
    Ok(row.try_get_unchecked(0)?)
}

/// Addresses at which no pooler in transaction mode was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Vetted(std::sync::Arc<std::sync::Mutex<Option<String>>>);

impl Vetted {
    /// Checks the address of this connection, unless that was done before.
    pub(super) async fn check(
        &self,
        connection: &mut PgConnection,
        address: &DatabaseUrl,
    ) -> Result<(), StoreError> {
        let here = host(&address.options);
        if self.known().as_ref() == Some(&here) {
            return Ok(());
        }
        if may_be_at(connection, &address.options).await? && shares_backends(connection, address).await? {
            return Err(StoreError::pooler());
        }
        *self.known() = Some(here);
        Ok(())
    }

    /// Makes the next connection check again: another server may have taken the address.
    pub(super) fn forget(&self) {
        *self.known() = None;
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_listens_elsewhere_may_be_behind_a_pooler() {
        let at = |host: &str, port: u16| PgConnectOptions::new_without_pgpass().host(host).port(port);
        for (options, [listens, port, address], direct) in [
            (at("127.0.0.1", 5432), ["5432", "5432", "127.0.0.1"], true),
            (at("localhost", 5432), ["5432", "5432", "::1"], true),
            (at("127.0.0.1", 6432), ["5432", "5432", "127.0.0.1"], false),
            (at("127.0.0.1", 5432), ["5432", "", ""], false),
            (at("db.internal", 5432), ["5432", "5432", "10.0.0.1"], false),
            (at("10.0.0.2", 5432), ["5432", "5432", "10.0.0.1"], false),
            (at("h", 5432).socket("/run"), ["5432", "", ""], true),
            (at("h", 6432).socket("/run"), ["5432", "", ""], false),
        ] {
            assert_eq!(leads_to(&options, listens, port, address), direct, "{options:?} {address}");
        }
    }
}
