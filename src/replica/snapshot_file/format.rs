//! The format of the snapshot file.
//!
//! ```text
//! "tenantgate snapshot 2\n" │ pepper, 4 bytes │ Head │ Key … │ Tenant … │ Plan … │ Rule … │ HMAC-SHA-256, 32 bytes
//!                             each of these is protobuf with its length before it
//! ```
//!
//! Nothing in the file is used before the HMAC is verified. Whether a valid file may be served is decided elsewhere.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use hmac::{Hmac, Mac};
use prost::Message;
use sha2::Sha256;
use uuid::Uuid;

use super::UnusableFile;
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::plan::PlanRow;
use crate::profile::{ProfileRow, Unreadable};
use crate::record::{KeyRecord, Memo, PepperId, SecretHash};
use crate::replica::Snapshot;
use crate::route::{RouteId, RouteRow};
use crate::store::{SnapshotRow, SyncPoint};
use crate::tenant::{Mode, Tenant, TenantId, TenantStatus};
use crate::verify::memo::Peppers;

const MAGIC: &[u8] = b"tenantgate snapshot 2\n";
const DOMAIN: &[u8] = b"tenantgate snapshot/v2\0";
const MAC_BYTES: usize = 32;

/// The properties of the whole file.
#[derive(Clone, Message)]
pub(super) struct FileHead {
    /// The start of the last poll by the wall clock, in microseconds since 1970.
    #[prost(sint64, tag = "1")]
    pub(super) synced_at: i64,
    /// The id of the boot that `uptime_ms` counts from.
    #[prost(string, tag = "2")]
    pub(super) boot: String,
    #[prost(uint64, tag = "3")]
    pub(super) uptime_ms: u64,
    #[prost(string, tag = "4")]
    pub(super) source: String,
    #[prost(sint64, optional, tag = "5")]
    pub(super) database_now: Option<i64>,
    #[prost(string, tag = "6")]
    pub(super) identity: String,
    #[prost(string, tag = "7")]
    pub(super) position: String,
    #[prost(string, optional, tag = "8")]
    pub(super) newest_change: Option<String>,
    #[prost(uint64, tag = "9")]
    pub(super) keys: u64,
    #[prost(uint64, tag = "10")]
    pub(super) tenants: u64,
    #[prost(string, tag = "11")]
    pub(super) place: String,
    #[prost(uint64, tag = "12")]
    pub(super) plans: u64,
    #[prost(uint64, tag = "13")]
    pub(super) rules: u64,
    #[prost(string, tag = "14")]
    pub(super) tables: String,
}

impl FileHead {
    pub(super) fn sync_point(self) -> SyncPoint {
        let now = self.database_now.map(Timestamp);
        SyncPoint {
            now,
            identity: self.identity,
            place: self.place,
            tables: self.tables,
            position: self.position,
            newest_change: self.newest_change,
        }
    }
}

#[derive(Clone, Message)]
struct Key {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    tenant_id: Vec<u8>,
    #[prost(string, tag = "3")]
    prefix: String,
    #[prost(string, tag = "4")]
    hash: String,
    #[prost(sint64, optional, tag = "5")]
    expires_at: Option<i64>,
    #[prost(bool, tag = "6")]
    revoked: bool,
    #[prost(string, tag = "7")]
    memo: String,
    #[prost(sint64, optional, tag = "8")]
    not_before: Option<i64>,
    #[prost(bool, tag = "9")]
    disabled: bool,
    #[prost(string, optional, tag = "10")]
    scopes: Option<String>,
    #[prost(string, optional, tag = "11")]
    networks: Option<String>,
    #[prost(string, optional, tag = "12")]
    plan: Option<String>,
    /// The name of a column that could not be read.
    #[prost(string, optional, tag = "13")]
    unreadable: Option<String>,
}

impl Key {
    fn of(record: &KeyRecord, memo: Option<Memo>, profile: &ProfileRow) -> Self {
        let text = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
        Self {
            id: record.id.0.as_bytes().to_vec(),
            tenant_id: record.tenant_id.0.as_bytes().to_vec(),
            prefix: record.prefix.to_string(),
            hash: record.hash.map_or_else(String::new, |hash| hash.text().as_str().to_owned()),
            expires_at: record.expires_at.at().map(|at| at.0),
            revoked: record.revoked,
            memo: memo.map_or_else(String::new, |memo| memo.to_string()),
            not_before: Some(record.not_before.0).filter(|_| record.not_before != Timestamp::MIN),
            disabled: record.disabled,
            scopes: text(&profile.scopes),
            networks: text(&profile.networks),
            plan: text(&profile.plan),
            unreadable: profile.unreadable.map(|column| column.column().to_owned()),
        }
    }

    fn row(self) -> Result<SnapshotRow, UnusableFile> {
        let record = KeyRecord {
            id: KeyId(uuid(&self.id)?),
            tenant_id: TenantId(uuid(&self.tenant_id)?),
            prefix: self.prefix.as_str().into(),
            hash: SecretHash::parse(&self.hash),
            expires_at: self.expires_at.map(Timestamp).into(),
            not_before: self.not_before.map_or(Timestamp::MIN, Timestamp),
            revoked: self.revoked,
            disabled: self.disabled,
        };
        let text = |text: Option<String>| text.map(Into::into);
        let (scopes, networks, plan) = (text(self.scopes), text(self.networks), text(self.plan));
        let column = |name: String| Unreadable::named(&name).ok_or(UnusableFile::Malformed);
        let unreadable = self.unreadable.map(column).transpose()?;
        Ok(SnapshotRow::Key(
            record,
            Memo::parse(&self.memo),
            ProfileRow { scopes, networks, plan, unreadable },
        ))
    }
}

#[derive(Clone, Message)]
struct TenantRecord {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    schema: String,
    #[prost(string, tag = "4")]
    status: String,
    #[prost(sint64, tag = "5")]
    created_at: i64,
    #[prost(string, optional, tag = "6")]
    mode: Option<String>,
    #[prost(string, optional, tag = "7")]
    plan: Option<String>,
}

impl TenantRecord {
    fn of(tenant: &Tenant) -> Self {
        Self {
            id: tenant.id.0.as_bytes().to_vec(),
            name: tenant.name.clone(),
            schema: tenant.schema.clone(),
            status: tenant.status.as_str().to_owned(),
            created_at: tenant.created_at.0,
            mode: tenant.mode.map(|mode| mode.as_str().to_owned()),
            plan: tenant.plan.as_deref().map(str::to_owned),
        }
    }

    fn row(self) -> Result<SnapshotRow, UnusableFile> {
        Ok(SnapshotRow::Tenant(Tenant {
            id: TenantId(uuid(&self.id)?),
            name: self.name,
            schema: self.schema,
            status: TenantStatus::parse(&self.status),
            mode: self.mode.as_deref().map(Mode::parse),
            created_at: Timestamp(self.created_at),
            plan: self.plan.map(Into::into),
        }))
    }
}

#[derive(Clone, Message)]
struct PlanMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, optional, tag = "2")]
    request_limit: Option<String>,
    #[prost(string, optional, tag = "3")]
    total_limit: Option<String>,
    #[prost(string, optional, tag = "4")]
    input_limit: Option<String>,
    #[prost(string, optional, tag = "5")]
    output_limit: Option<String>,
}

impl PlanMessage {
    fn of(plan: &PlanRow) -> Self {
        let [request_limit, total_limit, input_limit, output_limit] = plan.limits.clone();
        Self { name: plan.name.clone(), request_limit, total_limit, input_limit, output_limit }
    }

    fn row(self) -> SnapshotRow {
        let limits = [self.request_limit, self.total_limit, self.input_limit, self.output_limit];
        SnapshotRow::Plan(PlanRow { name: self.name, limits })
    }
}

#[derive(Clone, Message)]
struct RuleMessage {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
    #[prost(string, tag = "3")]
    host: String,
    #[prost(string, tag = "4")]
    method: String,
    #[prost(string, tag = "5")]
    path: String,
    #[prost(string, tag = "6")]
    mode: String,
    #[prost(string, optional, tag = "7")]
    scopes: Option<String>,
    #[prost(bool, tag = "8")]
    shadow: bool,
}

impl RuleMessage {
    fn of(rule: &RouteRow) -> Self {
        let RouteRow { id, name, host, method, path, mode, scopes, shadow } = rule.clone();
        Self { id: id.0.as_bytes().to_vec(), name, host, method, path, mode, scopes, shadow }
    }

    fn row(self) -> Result<SnapshotRow, UnusableFile> {
        let Self { id, name, host, method, path, mode, scopes, shadow } = self;
        let id = RouteId(uuid(&id)?);
        Ok(SnapshotRow::Route(RouteRow { id, name, host, method, path, mode, scopes, shadow }))
    }
}

fn uuid(bytes: &[u8]) -> Result<Uuid, UnusableFile> {
    Uuid::from_slice(bytes).map_err(|_| UnusableFile::Malformed)
}

/// Verifies the HMAC of a file and returns its head, and the bytes of its rows.
pub(super) fn open<'a>(bytes: &'a [u8], peppers: &Peppers) -> Result<(FileHead, &'a [u8]), UnusableFile> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(UnusableFile::Malformed)?;
    let (id, rest) = rest.split_first_chunk::<4>().ok_or(UnusableFile::Malformed)?;
    let (mut body, mac) = rest.split_last_chunk::<MAC_BYTES>().ok_or(UnusableFile::Malformed)?;
    let pepper =
        peppers.list().iter().find(|pepper| pepper.id() == PepperId(*id)).ok_or(UnusableFile::NotOurs)?;
    let mut ours = pepper.mac(DOMAIN);
    ours.update(body);
    ours.verify(mac.into()).map_err(|_| UnusableFile::NotOurs)?;
    Ok((next(&mut body)?, body))
}

/// Passes every row of the file to `sink`.
pub(super) fn rows(
    head: &FileHead,
    mut body: &[u8],
    mut sink: impl FnMut(SnapshotRow),
) -> Result<(), UnusableFile> {
    for _ in 0..head.keys {
        sink(next::<Key>(&mut body)?.row()?);
    }
    for _ in 0..head.tenants {
        sink(next::<TenantRecord>(&mut body)?.row()?);
    }
    for _ in 0..head.plans {
        sink(next::<PlanMessage>(&mut body)?.row());
    }
    for _ in 0..head.rules {
        sink(next::<RuleMessage>(&mut body)?.row()?);
    }
    if body.is_empty() { Ok(()) } else { Err(UnusableFile::Malformed) }
}

fn next<M: Message + Default>(body: &mut &[u8]) -> Result<M, UnusableFile> {
    M::decode_length_delimited(body).map_err(|_| UnusableFile::Malformed)
}

/// Writes a new file and renames it over the old one: there is a complete file at every moment. Returns the number of
/// bytes of its rows.
pub(super) fn save(path: &Path, head: FileHead, snapshot: &Snapshot, peppers: &Peppers) -> io::Result<u64> {
    let pepper = peppers.list().first().ok_or_else(|| io::Error::other("no pepper"))?;
    let beside = path.with_added_extension("new");
    // A file left behind by a crash may have other permissions.
    let _ = fs::remove_file(&beside);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let mut sealed = Sealed { file: BufWriter::new(file), mac: pepper.mac(DOMAIN), bytes: 0 };
    sealed.file.write_all(MAGIC)?;
    sealed.file.write_all(&pepper.id().0)?;
    let (keys, tenants) = (snapshot.key_count() as u64, snapshot.tenant_count() as u64);
    let (plans, rules) = (snapshot.plans().count() as u64, snapshot.rules().count() as u64);
    sealed.put(&FileHead { keys, tenants, plans, rules, ..head })?;
    for entry in snapshot.keys() {
        let profile = snapshot.profile(entry.profile()).row();
        sealed.put(&Key::of(entry.record(), entry.memo(peppers), profile))?;
    }
    for tenant in snapshot.tenants() {
        sealed.put(&TenantRecord::of(tenant))?;
    }
    for plan in snapshot.plans() {
        sealed.put(&PlanMessage::of(plan))?;
    }
    for rule in snapshot.rules() {
        sealed.put(&RuleMessage::of(rule))?;
    }
    let (file, bytes) = sealed.finish()?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    Ok(bytes)
}

/// A file whose HMAC is computed while it is written.
struct Sealed {
    file: BufWriter<File>,
    mac: Hmac<Sha256>,
    bytes: u64,
}

impl Sealed {
    fn put(&mut self, message: &impl Message) -> io::Result<()> {
        let bytes = message.encode_length_delimited_to_vec();
        self.mac.update(&bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(&bytes)
    }

    fn finish(mut self) -> io::Result<(File, u64)> {
        let mac = self.mac.finalize().into_bytes();
        self.file.write_all(&mac)?;
        Ok((self.file.into_inner().map_err(io::IntoInnerError::into_error)?, self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::memo::MemoPolicy;
    use crate::verify::pepper::Pepper;

    #[test]
    fn save_returns_the_size_and_reading_accepts_exactly_the_rows_of_the_head() {
        let peppers = Peppers::new(vec![Pepper::random().unwrap()], MemoPolicy::Optional);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        let written = save(&path, FileHead::default(), &Snapshot::empty(), &peppers).unwrap();
        assert_eq!(written, 1, "the length of an empty head");
        let head = FileHead { source: "here".into(), keys: 9, ..FileHead::default() };
        let written = save(&path, head, &Snapshot::empty(), &peppers).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, written + (MAGIC.len() + 4 + MAC_BYTES) as u64);
        let (head, body) = open(&bytes, &peppers).unwrap();
        assert_eq!((head.source.as_str(), head.keys, body), ("here", 0, &[][..]));
        assert!(rows(&head, body, |_| ()).is_ok());
        assert!(matches!(rows(&head, &[0], |_| ()), Err(UnusableFile::Malformed)), "a row too many");
        let more = FileHead { tenants: 1, ..head };
        assert!(matches!(rows(&more, body, |_| ()), Err(UnusableFile::Malformed)), "a row too few");
    }
}
