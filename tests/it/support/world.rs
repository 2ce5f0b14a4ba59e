//! The same tenants and keys for every test, on either store.
//!
//! The program's own commands create this world once per store, and each test gets a copy. All keys except `issued`
//! then get a known text and a hash of cost 4, so that tests do not wait for bcrypt unless they want to.

use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;

use super::postgres::Cluster;
use super::{Backend, Database, eventually};

/// A tenant as commands show it.
#[derive(Clone, Debug)]
pub(crate) struct Tenant {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) schema: String,
}

/// A key as commands show it, with its full text.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) prefix: String,
    pub(crate) text: String,
}

impl Key {
    /// The prefix of the key with a wrong secret.
    pub(crate) fn with_wrong_secret(&self) -> String {
        format!("{}_WrongWrongWrong0", self.prefix)
    }
}

/// All tenants and keys.
#[derive(Clone, Debug)]
pub(crate) struct People {
    /// Active.
    pub(crate) acme: Tenant,
    /// Suspended.
    pub(crate) sleepy: Tenant,
    /// Still `pending_provisioning`.
    pub(crate) newborn: Tenant,
    /// Deleted.
    pub(crate) gone: Tenant,
    /// A key of Acme as issued by `key create`: cost 12, expires in 90 days.
    pub(crate) issued: Key,
    /// A key of Acme that never expires.
    pub(crate) live: Key,
    /// A second key of Acme that never expires.
    pub(crate) other: Key,
    /// A revoked key of Acme.
    pub(crate) revoked: Key,
    /// An expired key of Acme.
    pub(crate) expired: Key,
    /// The key of each inactive tenant.
    pub(crate) of_sleepy: Key,
    pub(crate) of_newborn: Key,
    pub(crate) of_gone: Key,
}

/// A database of the test's own with all tenants and keys.
pub(crate) struct World {
    pub(crate) db: Database,
    people: People,
}

impl std::ops::Deref for World {
    type Target = People;

    fn deref(&self) -> &People {
        &self.people
    }
}

/// A key with the highest accepted cost, 14.
pub(crate) const SLOW: &str = "llmk_prod1cost14_cK9vXw2LmQ4tR7yU0pZs";

/// Its hash by Python's bcrypt.
const SLOW_HASH: &str = "$2b$14$GTTFGCHDwvAbQ6JowkLIYeA2Wu8xIGmmjQISNsMTajrvXAU13pjay";

/// The name of the Postgres database from which worlds are copied.
const TEMPLATE: &str = "world";

static SQLITE: LazyLock<(Vec<u8>, People)> = LazyLock::new(|| {
    let database = Database::sqlite(None);
    let people = populate(&database);
    database.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let bytes = std::fs::read(database.dir().join("tenantgate.db")).expect("the commands created the file");
    (bytes, people)
});

static POSTGRES: LazyLock<Option<(&Cluster, People)>> = LazyLock::new(|| {
    let cluster = Cluster::shared()?;
    cluster.admin(&format!("CREATE DATABASE {TEMPLATE}"));
    let database = Database::at(Backend::Postgres, &cluster.url(TEMPLATE));
    database.cli(&["migrate"]).ok();
    Some((cluster, populate(&database)))
});

impl World {
    /// A new copy of the world; `None` with a message if the machine has no Postgres.
    pub(crate) fn on(backend: Backend) -> Option<Self> {
        match backend {
            Backend::Sqlite => Some(Self { db: Database::sqlite(Some(&SQLITE.0)), people: SQLITE.1.clone() }),
            Backend::Postgres => POSTGRES.as_ref().map(|(cluster, people)| Self {
                db: Database::postgres(cluster, TEMPLATE),
                people: people.clone(),
            }),
        }
    }

    /// Replaces `live` by [`SLOW`], for which bcrypt takes about a second, and which never expires.
    pub(crate) fn slow_down(&self) {
        let prefix = SLOW.rsplit_once('_').expect("a prefix").0;
        self.db.sql(&format!(
            "UPDATE api_keys SET key_prefix = '{prefix}', hashed_key = '{SLOW_HASH}', expires_at = NULL, revoked_at = NULL \
             WHERE key_prefix IN ('{}', '{prefix}')",
            self.live.prefix
        ));
    }

    /// A world on SQLite, for tests for which the store does not matter.
    pub(crate) fn somewhere() -> Self {
        Self::on(Backend::Sqlite).expect("SQLite is always there")
    }
}

/// A hash of low cost, `$2b$` as in deployments.
pub(crate) fn quick_hash(text: &str) -> String {
    bcrypt::non_truncating_hash(text, 4).expect("at most 71 bytes")
}

/// A string in a JSON object.
#[track_caller]
pub(crate) fn string(object: &Value, name: &str) -> String {
    object[name].as_str().unwrap_or_else(|| panic!("no string `{name}` in {object}")).to_owned()
}

fn populate(database: &Database) -> People {
    let tenant = |args: &[&str]| {
        let made = database.json(&[&["tenant", "create"], args].concat());
        Tenant {
            id: string(&made, "id"),
            name: string(&made, "name"),
            schema: string(&made, "db_schema_name"),
        }
    };
    let acme = tenant(&["Acme Corp"]);
    let sleepy = tenant(&["Sleepy Ltd"]);
    let newborn = tenant(&["Newborn", "--status", "pending_provisioning"]);
    let gone = tenant(&["Gone Inc"]);
    let key = |tenant: &Tenant, args: &[&str]| {
        let made = database.json(&[&["key", "create", &tenant.id], args].concat());
        Key { id: string(&made, "id"), prefix: string(&made, "key_prefix"), text: string(&made, "key") }
    };
    let known = |tenant: &Tenant, name: &str, args: &[&str]| rewrite(database, key(tenant, args), name);
    let people = People {
        issued: key(&acme, &["--name", "issued", "--expires-in", "90d"]),
        live: known(&acme, "live", &["--name", "live"]),
        other: known(&acme, "other", &["--name", "other"]),
        revoked: known(&acme, "revoked", &["--name", "revoked"]),
        expired: known(&acme, "expired", &["--name", "expired", "--expires-in", "1s"]),
        of_sleepy: known(&sleepy, "sleepy", &[]),
        of_newborn: known(&newborn, "newborn", &[]),
        of_gone: known(&gone, "gone", &[]),
        acme,
        sleepy,
        newborn,
        gone,
    };
    database.json(&["key", "revoke", &people.revoked.id]);
    database.json(&["tenant", "suspend", &people.sleepy.id]);
    database.json(&["tenant", "delete", &people.gone.id, "--yes"]);
    eventually("the key with a lifetime of one second expires", Duration::from_secs(10), || {
        let shown = database.json(&["key", "show", &people.expired.id]);
        if shown["status"] == "expired" { Ok(()) } else { Err(shown) }
    });
    people
}

/// Gives a key a known text and a hash of low cost.
fn rewrite(database: &Database, key: Key, name: &str) -> Key {
    let prefix = format!("llmk_{name}");
    let text = format!("{prefix}_{name}-Secret-0123456789");
    let hash = quick_hash(&text);
    let issued = &key.prefix;
    database.sql(&format!(
        "UPDATE api_keys SET key_prefix = '{prefix}', hashed_key = '{hash}' WHERE key_prefix = '{issued}'"
    ));
    Key { prefix, text, ..key }
}
