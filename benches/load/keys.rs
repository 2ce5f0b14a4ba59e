//! Writes any number of keys by plain SQL.
//!
//! Their hashes match no key. With a memo this does not matter, because bcrypt is not used; without one, every secret
//! is wrong and costs as much as a right one.

use tenantgate::key::KeyId;
use tenantgate::key::format::parse;
use tenantgate::record::{KeyRecord, SecretHash};
use tenantgate::tenant::TenantId;
use tenantgate::verify::memo::{MemoPolicy, Peppers};
use tenantgate::verify::pepper::Pepper;
use uuid::Uuid;

use crate::support::World;

/// Returns the text of the n-th key with a memo.
pub(crate) fn text(n: usize) -> String {
    format!("llmk_acmecorpinc1{n:08}_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5V{n:08}")
}

/// Creates keys with memos. Returns the file with their pepper.
pub(crate) fn with_memos(world: &World, keys: usize) -> String {
    let pepper = Pepper::random().expect("randomness");
    let file = world.db.dir().join("pepper");
    std::fs::write(&file, pepper.expose_line().as_bytes()).expect("written");
    let peppers = Peppers::new(vec![pepper], MemoPolicy::Optional);
    let tenant_id = TenantId(Uuid::parse_str(&world.acme.id).expect("a UUID"));
    let rows: Vec<String> = (0..keys).map(|n| row(n, tenant_id, &peppers)).collect();
    insert(world, "id, hashed_key, key_prefix, tenant_id, key_memo", &rows);
    file.to_str().expect("plain").to_owned()
}

/// Creates keys of this cost without memos, `llmk_cold0` and so on.
pub(crate) fn unproven(world: &World, keys: usize, cost: u32) {
    let row = |n| format!("('{}', 'llmk_cold{n}', '{}')", hash(n, cost), world.acme.id);
    insert(world, "hashed_key, key_prefix, tenant_id", &(0..keys).map(row).collect::<Vec<_>>());
}

fn insert(world: &World, columns: &str, rows: &[String]) {
    let mut session = world.db.session();
    for rows in rows.chunks(5_000) {
        session.sql(&format!("INSERT INTO api_keys ({columns}) VALUES {}", rows.join(",")));
    }
}

/// Returns a hash with a different salt for each n.
fn hash(n: usize, cost: u32) -> String {
    format!("$2b${cost:02}$GTTFGCHDwvAbQ{n:08}uA2Wu8xIGmmjQISNsMTajrvXAU13pjae")
}

fn row(n: usize, tenant_id: TenantId, peppers: &Peppers) -> String {
    // A different cost, so that no hash occurs twice.
    let (key, id, hash) = (text(n), Uuid::from_u128(n as u128), hash(n, 11));
    let record = KeyRecord::new(
        KeyId(id),
        tenant_id,
        key.rsplit_once('_').expect("a prefix").0.into(),
        SecretHash::parse(&hash),
    );
    let memo = peppers.memo(&record, parse(key.as_bytes()).expect("a key")).expect("a memo");
    format!("('{id}', '{hash}', '{}', '{}', '{memo}')", record.prefix, tenant_id.0)
}
