//! Opens connections that see only one schema.
//!
//! Settings are set after connecting, because poolers reject them as startup parameters. They are read back, and a
//! connection that has lost them is not used.

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _};
use tokio::time::timeout;

use super::PostgresStore;
use super::address::{DatabaseUrl, SessionSettings};
use crate::store::{CONNECT_TIMEOUT, StoreError};

impl PostgresStore {
    /// Opens a connection for one operation. There is no pool of the driver, because its retries would hide a refused
    /// connection.
    pub(super) async fn connect(&self) -> Result<PgConnection, StoreError> {
        let address = self.address_now()?;
        // Overrides the role's statement_timeout, because bulk commands run long.
        let patience =
            address.settings.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case("statement_timeout"));
        let patience = patience.map_or("0", |(_, value)| value);
        let own = [("lock_timeout", &*millis(self.lock_timeout)), ("statement_timeout", patience)];
        let settings = self.settings(&address, &own);
        self.connect_to(&address, &settings).await
    }

    pub(super) async fn connect_to(
        &self,
        address: &DatabaseUrl,
        settings: &SessionSettings,
    ) -> Result<PgConnection, StoreError> {
        address.files().map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let limit = address.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
        let mut connection = timeout(limit, address.options.connect())
            .await
            .unwrap_or(Err(sqlx::Error::PoolTimedOut))
            .map_err(|error| self.at_host(address, error))?;
        self.vetted.check(&mut connection, address).await?;
        if let Err(error) = pin(&mut connection, settings).await {
            self.vetted.forget();
            return Err(error);
        }
        Ok(connection)
    }

    /// Adds the host to an error, and for rejected credentials what to correct.
    pub(super) fn at_host(&self, address: &DatabaseUrl, error: sqlx::Error) -> StoreError {
        let host = super::host(&address.options);
        // Postgres has a code of its own for a wrong password. The other codes of the class are about the role.
        let code = error.as_database_error().and_then(|said| said.code().map(String::from));
        let password = code.as_deref() == Some("28P01");
        match error.into() {
            StoreError::Unavailable(why) => StoreError::Unavailable(format!("{host}: {why}")),
            StoreError::Credentials(why) if password => {
                StoreError::Credentials(format!("{host}: {why}: {}", self.source.where_the_password_is()))
            }
            StoreError::Credentials(why) => StoreError::Credentials(format!(
                "{host}: {why}: check the role in the database URL, its LOGIN, and pg_hba.conf on the server"
            )),
            other => other,
        }
    }

    /// Returns the settings of a session: those of the URL, those that every session needs, and `more`.
    pub(super) fn settings(&self, address: &DatabaseUrl, more: &[(&str, &str)]) -> SessionSettings {
        // pg_temp is listed last explicitly; otherwise Postgres searches it first, and behind a pooler its tables may
        // be those of another client.
        let path = ("search_path", format!("pg_catalog, {}, pg_temp", quoted(&self.schema)));
        // Pinned because string quoting depends on it.
        let quotes = ("standard_conforming_strings", "on".to_owned());
        let names = ("quote_all_identifiers", "off".to_owned());
        // A policy that would hide rows becomes an error.
        let rows = ("row_security", "off".to_owned());
        let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let ours = [quotes, names, path, rows].into_iter().chain(more);
        let ours = ours.map(|(name, value)| (name.to_owned(), value));
        let mut settings = SessionSettings::new();
        for setting in address.settings.iter().cloned().chain(ours) {
            // The last one counts. One that was set twice could not be read back.
            settings.retain(|(name, _)| !name.eq_ignore_ascii_case(&setting.0));
            settings.push(setting);
        }
        settings
    }
}

/// Applies the settings and reads them back.
pub(super) async fn pin(connection: &mut PgConnection, settings: &SessionSettings) -> Result<(), StoreError> {
    let set =
        |(name, value): &(String, String)| format!("set_config({}, {}, false)", text(name), text(value));
    let read = |(name, _): &(String, String)| format!("current_setting({})", text(name));
    let set = answers(connection, &settings.iter().map(set).collect::<Vec<_>>()).await?;
    let encoding = "current_setting('server_encoding')".to_owned();
    let mut read =
        answers(connection, &settings.iter().map(read).chain([encoding]).collect::<Vec<_>>()).await?;
    if read.pop().as_deref() == Some("SQL_ASCII") {
        // Otherwise one text that is not UTF-8 would make Postgres reject all rows. Now it only damages its own row.
        answers(connection, &["set_config('client_encoding', 'SQL_ASCII', false)".to_owned()]).await?;
    }
    if set == read {
        return Ok(());
    }
    // The next client of this backend must not get them.
    for (name, _) in settings {
        let reset = format!("RESET {}", name.split('.').map(quoted).collect::<Vec<_>>().join("."));
        let _ = sqlx::raw_sql(AssertSqlSafe(reset)).execute(&mut *connection).await;
    }
    Err(StoreError::pooler())
}

/// Evaluates SQL expressions through the simple protocol, because prepared statements do not work behind a pooler in
/// transaction mode.
async fn answers(connection: &mut PgConnection, questions: &[String]) -> Result<Vec<String>, StoreError> {
    let sql = format!("SELECT {}", questions.join(", "));
    let row: PgRow = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(connection).await?;
    (0..row.len()).map(|at| Ok(row.try_get_unchecked(at)?)).collect()
}

/// Quotes a string constant.
fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// Quotes an identifier.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(super) fn millis(span: Duration) -> String {
    format!("{}ms", span.as_millis())
}
