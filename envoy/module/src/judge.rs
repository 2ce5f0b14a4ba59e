//! Judges a request by the shared memory.
//!
//! This file only collects the facts. [`decide`] judges them by the same table as for a Check.

use tenantgate_core::clock::{Clock, Timestamp};
use tenantgate_core::decision::{
    Access, Decision, Entrance, Facts, FoundKey, Freshness, Grant, Proof, decide,
};
use tenantgate_core::key::KeyId;
use tenantgate_core::record::KeyRecord;
use tenantgate_core::request::{
    AUTHORIZATION, Credential, PublicPaths, RequestOptions, RequestReader, Waived,
};
use tenantgate_core::tenant::{Tenant, TenantId, TenantStatus};
use tenantgate_snapshot::{self as snapshot, Answer, Memory, Proven, Settings};
use uuid::Uuid;

use crate::exchange::Exchange;

/// The most header lines, and bytes of them, of a request that the module judges: half of Envoy's defaults. Where a
/// request and the headers of its tenant exceed Envoy's limits together, `ext_authz` rejects it, and a module cannot read
/// these limits.
const MOST_LINES: usize = 50;
const MOST_BYTES: usize = 30 * 1_024;

/// The memory that a server has published.
#[derive(Debug)]
pub(crate) struct Published<M> {
    reader: snapshot::Reader<M>,
    options: RequestOptions,
    answers: Vec<Answer>,
}

/// A judgement.
#[derive(Debug)]
pub(crate) enum Judgement<'b> {
    /// The module must ask the server.
    Ask,
    /// The request passes as this key.
    Allow(Box<Proven<&'b str>>),
    /// The request is rejected. The key is present if it was proven.
    Deny(&'b Answer, Option<Box<Proven<&'b str>>>),
}

impl<M: Memory> Published<M> {
    /// Reads the settings; `None` if the memory is damaged or has options that this version does not know.
    pub(crate) fn new(reader: snapshot::Reader<M>) -> Option<Self> {
        let Settings { key_header, accept_bearer, preflight, public, answers } = reader.settings()?;
        let mut paths = PublicPaths::none();
        for path in &public {
            paths.add(path).ok()?;
        }
        let options = RequestOptions { key_header, accept_bearer, public: paths, preflight };
        Some(Self { reader, options, answers })
    }

    /// Returns whether the server has the clock of this process. A heartbeat from the future would be trusted for longer
    /// than a second, as soon as that time comes; another time namespace (`time_namespaces(7)`) makes one.
    pub(crate) fn has_our_clock(&self, clock: &dyn Clock) -> bool {
        // Read first: the heartbeat of this clock cannot be later.
        let beat = self.reader.heartbeat();
        u128::from(beat) <= clock.uptime().as_millis()
    }

    /// Judges a request. The record of its key is copied into `bytes`.
    pub(crate) fn judge<'b>(
        &'b self,
        exchange: &dyn Exchange,
        clock: &dyn Clock,
        bytes: &'b mut Vec<u8>,
    ) -> Judgement<'b> {
        let [mut methods, mut paths, mut keys, mut bearers] = [const { Vec::new() }; 4];
        let (mut lines, mut size) = (0, 0);
        exchange.each_header(&mut |name, value| {
            (lines, size) = (lines + 1, size + name.len() + value.len());
            let values = match name {
                b":method" => &mut methods,
                b":path" => &mut paths,
                _ if name == self.options.key_header.as_bytes() => &mut keys,
                _ if self.options.accept_bearer && name == AUTHORIZATION.as_bytes() => &mut bearers,
                _ => return,
            };
            values.push(value.to_vec());
        });
        let ([method], [path]) = (&methods[..], &paths[..]) else { return Judgement::Ask };
        if lines > MOST_LINES || size > MOST_BYTES {
            return Judgement::Ask;
        }
        let mut reader = RequestReader::new(&self.options);
        for (name, values) in [(self.options.key_header.as_str(), &keys), (AUTHORIZATION, &bearers)] {
            for value in values {
                reader.header(name.as_bytes(), value);
            }
        }
        let request = reader.finish(method, b"", path);
        // The server judges public requests, and those that may be a preflight, whose headers are not read here.
        let preflight = self.options.preflight && method == b"OPTIONS";
        if request.waived != Waived::No || request.patterns || request.bearer || preflight {
            return Judgement::Ask;
        }
        let uptime = clock.uptime();
        let uptime_ms = u64::try_from(uptime.as_millis()).unwrap_or(0);
        let proven = match request.credential {
            Credential::Presented(presented) => {
                match self.reader.find(uptime_ms, presented.prefix().as_bytes(), bytes) {
                    snapshot::Found::Absent => None,
                    // The server judges another secret than the proven one, because it limits guessing.
                    snapshot::Found::Proven(proven) if self.reader.is_of(&proven, presented.expose()) => {
                        Some(proven)
                    }
                    _ => return Judgement::Ask,
                }
            }
            Credential::Missing | Credential::Malformed if self.reader.is_fresh(uptime_ms) => None,
            Credential::Missing | Credential::Malformed => return Judgement::Ask,
        };
        let rows = proven.as_deref().map(rows);
        let database = self.reader.database_clock().map(|ahead| Timestamp(ahead).after(uptime));
        let facts = Facts {
            entrance: Entrance::Required,
            credential: request.credential,
            freshness: Freshness::Fresh,
            found: rows.as_ref().map(|(key, tenant)| FoundKey {
                key,
                tenant: Some(tenant),
                proof: Proof::Right,
                access: Access::FREE,
            }),
            now: database.map_or(clock.now(), |database| database.max(clock.now())),
        };
        match (decide(&facts), proven) {
            (Some(Decision::Allow(Grant::Tenant(..))), Some(proven)) => Judgement::Allow(proven),
            (Some(Decision::Deny(denial)), proven) if denial.identity.is_some() == proven.is_some() => {
                let answer = self.answers.iter().find(|answer| answer.reason == denial.reason.as_str());
                answer.map_or(Judgement::Ask, |answer| Judgement::Deny(answer, proven))
            }
            _ => Judgement::Ask,
        }
    }
}

/// Returns the rows of a published key. Only valid rows are published, so the fields that are not judged get any valid
/// value.
fn rows(proven: &Proven<&str>) -> (KeyRecord, Tenant) {
    let tenant_id = TenantId(Uuid::from_bytes(proven.tenant_id));
    let key = KeyRecord {
        id: KeyId(Uuid::from_bytes(proven.key_id)),
        tenant_id,
        prefix: proven.prefix.into(),
        hash: None,
        expires_at: Some(Timestamp(proven.expires_at)).filter(|at| at.0 != i64::MAX).into(),
        not_before: Timestamp(proven.not_before),
        revoked: proven.revoked,
        disabled: proven.disabled,
    };
    let tenant = Tenant {
        id: tenant_id,
        name: "t".to_owned(),
        schema: "t".to_owned(),
        status: TenantStatus::parse(proven.tenant_status),
        mode: None,
        created_at: Timestamp::MIN,
        plan: None,
    };
    (key, tenant)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    use tenantgate_core::clock::ManualClock;
    use tenantgate_snapshot::{MemoryKey, State, Writer, words_for};

    use super::*;

    const KEY: &str = "llmk_a_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Pg";

    struct Headers(Vec<(&'static str, &'static str)>);

    impl Exchange for Headers {
        fn each_header(&self, each: &mut dyn FnMut(&[u8], &[u8])) {
            self.0.iter().for_each(|(name, value)| each(name.as_bytes(), value.as_bytes()));
        }
        fn has_body(&self) -> bool {
            false
        }
        fn values(&self, name: &str) -> Vec<Vec<u8>> {
            let ours = self.0.iter().filter(|header| header.0 == name);
            ours.map(|header| header.1.as_bytes().to_vec()).collect()
        }
        fn set_header(&mut self, _: &str, _: Option<&str>) -> bool {
            false
        }
        fn set_metadata(&mut self, _: &str, _: &[(&str, &str)]) {}
        fn set_flag(&mut self, _: &str, _: &str, _: bool) {}
        fn route(&self) -> Option<crate::exchange::ContextPolicy> {
            None
        }
        fn clear_route_cache(&mut self) {}
        fn respond(&mut self, _: u16, _: &[(&str, &str)], _: &str, _: &str) {}
        fn count(&mut self, _: usize) {}
    }

    fn proven() -> Proven {
        Proven {
            prefix: "llmk_a".into(),
            digest: MemoryKey::from([1; 32]).digest(KEY.as_bytes()),
            tenant_status: "active".into(),
            expires_at: i64::MAX,
            not_before: i64::MIN,
            ..Proven::default()
        }
    }

    fn settings() -> Settings {
        let reasons =
            ["missing", "malformed", "unknown", "revoked", "expired", "not_yet_valid", "tenant_inactive"];
        let answer = |reason: &&str| Answer { reason: (*reason).to_owned(), ..Answer::default() };
        Settings {
            key_header: "x-key".into(),
            accept_bearer: true,
            preflight: true,
            public: vec!["GET /open".into()],
            answers: reasons.iter().map(answer).collect(),
        }
    }

    /// Returns the judgement 500 ms after a poll, with this row published: the reason, `ok` or `ask`.
    fn judged(row: &Proven, database: Option<i64>, headers: &[(&'static str, &'static str)]) -> String {
        let clock = ManualClock::at(Timestamp(1_000_000));
        clock.advance(Duration::from_millis(5_500));
        let memory: Arc<[AtomicU64]> = (0..words_for(3, 300)).map(|_| AtomicU64::new(0)).collect();
        let key = MemoryKey::from([1; 32]);
        let mut writer = Writer::new(Arc::clone(&memory), key.clone(), 3, &settings(), 1_000).unwrap();
        writer
            .change(|change| {
                change.open(true);
                change.set("llmk_b", State::Absent, State::Known)?;
                change.set("llmk_a", State::Absent, State::Proven(row))
            })
            .unwrap();
        let now = u64::try_from(clock.uptime().as_millis()).unwrap();
        writer.beat(now - 500, database);
        let published = Published::new(snapshot::Reader::new(memory, key).unwrap()).unwrap();
        let mut all = headers.to_vec();
        if !headers.iter().any(|header| header.0 == ":method") {
            all.extend([(":method", "GET"), (":path", "/v1")]);
        }
        match published.judge(&Headers(all), &clock, &mut Vec::new()) {
            Judgement::Ask => "ask".into(),
            Judgement::Allow(found) => {
                assert_eq!(*found, row.borrowed());
                "ok".into()
            }
            Judgement::Deny(answer, _) => answer.reason.clone(),
        }
    }

    #[test]
    fn a_request_is_judged_by_its_key_or_left_to_the_server() {
        let key = [("x-key", KEY)];
        for (headers, expected) in [
            (&key[..], "ok"),
            (&[], "missing"),
            (&[("x-key", "")], "missing"),
            (&[("x-key", "nonsense")], "malformed"),
            (&[key[0], key[0]], "malformed"),
            (&[("x-key", "llmk_c_0123456789")], "unknown"),
            // Keys that were not proven, or only with another secret.
            (&[("x-key", "llmk_a_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Ph")], "ask"),
            (&[("x-key", "llmk_b_0123456789")], "ask"),
            // A key in `authorization` must be removed there; another token is not a key.
            (&[("authorization", "Bearer llmk_a_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Pg")], "ask"),
            (&[("authorization", "Bearer other")], "missing"),
            (&[key[0], ("authorization", "Basic x")], "ok"),
            // Public requests.
            (&[(":method", "GET"), (":path", "/open?x"), key[0]], "ask"),
            (&[(":method", "OPTIONS"), (":path", "/v1"), key[0]], "ask"),
            // Not a complete request.
            (&[(":method", "CONNECT"), key[0]], "ask"),
        ] {
            assert_eq!(judged(&proven(), None, headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_request_near_the_limits_of_envoy_is_left_to_the_server() {
        let long: &'static str = "v".repeat(MOST_BYTES).leak();
        for (more, expected) in [
            (vec![("x-more", "v"); MOST_LINES - 3], "ok"),
            (vec![("x-more", "v"); MOST_LINES - 2], "ask"),
            (vec![("x-more", &long[..MOST_BYTES - 200])], "ok"),
            (vec![("x-more", long)], "ask"),
        ] {
            let headers = [&[("x-key", KEY)], &more[..]].concat();
            assert_eq!(judged(&proven(), None, &headers), expected, "{} headers", headers.len());
        }
    }

    #[test]
    fn a_server_with_another_clock_is_not_trusted() {
        let clock = ManualClock::at(Timestamp(1_000_000));
        clock.advance(Duration::from_secs(9));
        for (beat, expected) in [(0, true), (8_000, true), (9_000, true), (9_001, false), (14_000, false)] {
            let memory: Arc<[AtomicU64]> = (0..words_for(3, 300)).map(|_| AtomicU64::new(0)).collect();
            let key = MemoryKey::from([1; 32]);
            let writer = Writer::new(Arc::clone(&memory), key.clone(), 3, &settings(), 1_000).unwrap();
            writer.beat(beat, None);
            let published = Published::new(snapshot::Reader::new(memory, key).unwrap()).unwrap();
            assert_eq!(published.has_our_clock(&clock), expected, "{beat}");
        }
    }

    #[test]
    fn a_proven_key_is_judged_by_its_row_and_by_the_later_clock() {
        let now = 1_000_000 + 5_500_000;
        for (row, database, expected) in [
            (Proven { revoked: true, ..proven() }, None, "revoked"),
            // The settings have no response for this reason.
            (Proven { disabled: true, ..proven() }, None, "ask"),
            (Proven { expires_at: now, ..proven() }, None, "expired"),
            (Proven { expires_at: now + 1, ..proven() }, None, "ok"),
            (Proven { expires_at: now + 1, ..proven() }, Some(now), "expired"),
            (Proven { not_before: now + 1, ..proven() }, None, "not_yet_valid"),
            (Proven { tenant_status: "suspended".into(), ..proven() }, None, "tenant_inactive"),
            (Proven { tenant_status: "new word".into(), ..proven() }, None, "tenant_inactive"),
        ] {
            assert_eq!(judged(&row, database, &[("x-key", KEY)]), expected, "{row:?}");
        }
    }
}
