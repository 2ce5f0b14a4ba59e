//! Decisions on random requests, by a snapshot and by a literal and slow implementation of the contract.
//!
//! The slow one works on the texts of the rows as the database has them. It knows nothing of profiles, bit sets,
//! numbers of scopes and trees of rules, which the snapshot keeps up to date from one change to the next.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tenantgate::clock::Timestamp;
use tenantgate::decision::{Decision, Facts, FoundKey, Freshness, Grant, Proof, decide};
use tenantgate::gate::{Terms, access};
use tenantgate::plan::PlanRow;
use tenantgate::policy::{self, Routing};
use tenantgate::profile::ProfileRow;
use tenantgate::replica::{Snapshot, TenantEntry};
use tenantgate::request::{Credential, DEFAULT_KEY_HEADER, PublicPaths, RequestOptions, RequestReader};
use tenantgate::route::RouteRow;
use tenantgate::tenant::TenantStatus;

use super::dice::Dice;
use super::state::State;

/// A request with a key or without one. Its key is always proven, if it exists.
#[derive(Debug)]
pub(super) struct Asked {
    method: &'static str,
    host: &'static str,
    path: &'static str,
    address: IpAddr,
    key: Option<String>,
}

/// An instant in the middle of the expiries that the writers choose.
const NOW: Timestamp = Timestamp(1_900_000_000_000_000);

fn pick<T: Copy>(dice: &mut Dice, all: &[T]) -> T {
    all[usize::try_from(dice.below(all.len() as u64)).expect("few")]
}

impl Asked {
    pub(super) fn random(dice: &mut Dice, state: &State) -> Self {
        let key = (!dice.one_in(6)).then(|| {
            let at = usize::try_from(dice.below(state.keys.len() as u64 + 2)).expect("few");
            let prefix = state.keys.get(at).map_or("llmk_nobody", |(key, _)| &*key.prefix);
            format!("{prefix}_Secret-0123456789")
        });
        let addresses =
            ["10.0.0.1", "10.1.2.3", "192.0.2.7", "203.0.113.9", "2001:db8::7", "::ffff:10.1.2.3"];
        Self {
            method: pick(dice, &["GET", "HEAD", "POST", "DELETE"]),
            host: pick(
                dice,
                &["api.example.com", "x.api.example.com", "example.com", "API.example.com:8443"],
            ),
            path: pick(
                dice,
                &["/", "/v1", "/v1/a", "/v1/a/", "/v1/a/b", "/v1/c/b?x=/v1/a", "/v1/a/b/c", "/w", "/v1//a"],
            ),
            address: pick(dice, &addresses).parse().expect("an address"),
            key,
        }
    }

    /// Returns the decision of a replica, as text.
    pub(super) fn by(&self, snapshot: &Snapshot) -> String {
        let options = RequestOptions { public: PublicPaths::none(), ..RequestOptions::default() };
        let mut reader = RequestReader::new(&options);
        if let Some(key) = &self.key {
            reader.header(DEFAULT_KEY_HEADER.as_bytes(), key.as_bytes());
        }
        let request = reader.finish(self.method.as_bytes(), self.host.as_bytes(), self.path.as_bytes());
        let routing = Routing::of(snapshot.routes(), policy::PolicyOptions::default(), &request);
        let mut terms = Terms::default();
        let prefix = match request.credential {
            Credential::Presented(key) => Some(key.prefix()),
            Credential::Malformed | Credential::Missing => None,
        };
        let found = prefix.and_then(|prefix| snapshot.key(prefix)).map(|entry| {
            let key = entry.record();
            let tenant = snapshot.tenant(key.tenant_id).map(TenantEntry::tenant);
            let (access, told) = access(snapshot, &routing, (entry, tenant), &|| Some(self.address));
            terms = told;
            // Few hashes of the writers are sound; what becomes of the others is known before anything else is judged.
            FoundKey { key, tenant, proof: Proof::Right, access }
        });
        let (entrance, credential) = (routing.entrance, request.credential);
        let facts = Facts { entrance, credential, freshness: Freshness::Fresh, found, now: NOW };
        match decide(&facts).expect("nothing is pending") {
            Decision::Allow(grant @ (Grant::Tenant(..) | Grant::RuleShadow(..))) => {
                let limits = terms.plan.and_then(|plan| plan.plan().ok()).map(|plan| {
                    let [requests, total] =
                        [plan.request, plan.total].map(|limit| limit.map(|l| l.to_string()));
                    format!("{} {requests:?} {total:?}", plan.name)
                });
                let rule_shadow = matches!(grant, Grant::RuleShadow(..));
                format!("ok, rule_shadow {rule_shadow}, rule {:?}, plan {limits:?}", terms.route)
            }
            Decision::Allow(grant) => grant.as_str().to_owned(),
            Decision::Deny(denial) => denial.reason.as_str().to_owned(),
            Decision::Unable(fault, _) => fault.as_str().to_owned(),
        }
    }

    /// Returns the decision that the contract describes.
    pub(super) fn expected(&self, state: &State) -> String {
        self.judged(state).unwrap_or_else(str::to_owned)
    }

    fn judged(&self, state: &State) -> Result<String, &'static str> {
        if !state.rules.is_empty() && self.path.contains("//") {
            return Err("path_ambiguous");
        }
        let rule = self.winner(&state.rules);
        let sound = rule.filter(|rule| !is_damaged_rule(rule, &state.rules));
        match sound.map(|rule| rule.mode.as_str()) {
            Some("public") => return Err("public"),
            Some("optional") if self.key.is_none() => return Err("anonymous"),
            _ => {}
        }
        let presented = self.key.as_ref().ok_or("missing")?;
        let held = state.keys.iter().find(|(key, _)| presented.starts_with(&format!("{}_", &*key.prefix)));
        let (key, profile) = held.ok_or("unknown")?;
        let refuse = |when: bool, reason| if when { Err(reason) } else { Ok(()) };
        refuse(key.revoked, "revoked")?;
        refuse(key.disabled, "disabled")?;
        refuse(key.expires_at.at().is_some_and(|at| at <= NOW), "expired")?;
        refuse(key.not_before > NOW, "not_yet_valid")?;
        let tenant = state.tenants.iter().find(|tenant| tenant.id == key.tenant_id).ok_or("damaged_row")?;
        refuse(tenant.status != TenantStatus::Active, "tenant_inactive")?;
        refuse(tenant.schema == "Damaged" || Reading::of_key(profile) == Reading::Damaged, "damaged_row")?;
        let named = profile.plan.as_deref().or(tenant.plan.as_deref());
        let plan = named.map(|name| state.plans.iter().find(|plan| plan.name == name).ok_or("damaged_row"));
        let plan = plan.transpose()?;
        let networks = profile.networks.as_deref();
        refuse(networks.is_some_and(|all| !all.split(' ').any(|one| self.is_in(one))), "network")?;
        refuse(rule.is_some() && sound.is_none(), "damaged_route")?;
        let needs = sound.and_then(|rule| rule.scopes.as_deref());
        let lacks = profile.scopes.as_deref().zip(needs).is_some_and(|(scopes, needs)| !meets(scopes, needs));
        let shadow = sound.is_some_and(|rule| rule.shadow);
        refuse(lacks && !shadow, "scope")?;
        // A damaged rule got its answer above.
        let (name, limits) = (rule.and_then(|rule| rule.name.as_deref()), plan.map(limits));
        Ok(format!("ok, rule_shadow {lacks}, rule {name:?}, plan {limits:?}"))
    }

    /// Returns the most specific rule that matches, or a damaged one that could have matched.
    fn winner<'r>(&self, rules: &'r [RouteRow]) -> Option<&'r RouteRow> {
        let ranked = rules.iter().filter_map(|rule| Some((self.rank(rule)?, rule)));
        ranked.max_by_key(|(rank, _)| rank.clone()).map(|(_, rule)| rule)
    }

    /// Returns how specific a matching rule is: by host, by segment, by method.
    fn rank(&self, rule: &RouteRow) -> Option<(usize, Vec<u8>, u8)> {
        const EVERYTHING: (usize, Vec<u8>, u8) = (usize::MAX, Vec::new(), 0);
        if !is_host(&rule.host) {
            return Some(EVERYTHING);
        }
        let asked = self.host.to_lowercase();
        let asked = asked.split(':').next().unwrap_or_default();
        let host = match rule.host.strip_prefix('*') {
            Some("") => 0,
            Some(below) => asked.ends_with(below).then_some(below.len())?,
            None => (asked == rule.host).then_some(usize::MAX - 1)?,
        };
        if !is_method(&rule.method) || !is_path(&rule.path) {
            return Some((host, vec![u8::MAX], 0));
        }
        let method = match (rule.method.as_str(), self.method) {
            ("*", _) => 0,
            ("GET", "HEAD") => 1,
            (named, asked) => (named == asked).then_some(2)?,
        };
        let path = self.path.split('?').next().unwrap_or_default();
        let (mut wanted, mut there) = (parts(&rule.path), parts(path).peekable());
        let mut shape = Vec::new();
        loop {
            match (wanted.next(), there.peek().is_some()) {
                (Some("**"), _) => {
                    shape.push(0);
                    return Some((host, shape, method));
                }
                (None, false) => {
                    shape.push(1);
                    return Some((host, shape, method));
                }
                (Some(one), true) if one.starts_with('{') => shape.push(2),
                (Some(one), true) if there.peek() == Some(&one) => shape.push(3),
                _ => return None,
            }
            there.next();
        }
    }

    fn is_in(&self, network: &str) -> bool {
        let (base, length) = network.split_once('/').unwrap_or((network, "128"));
        let (base, own) = (base.parse::<IpAddr>().expect("a network"), self.address.to_canonical());
        let length: usize = length.parse().expect("a length");
        let (base, own) = (bits(base), bits(own));
        base.len() == own.len() && base.chars().zip(own.chars()).take(length).all(|(one, other)| one == other)
    }
}

fn bits(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{:032b}", address.to_bits()),
        IpAddr::V6(address) => format!("{:0128b}", address.to_bits()),
    }
}

fn limits(plan: &PlanRow) -> String {
    format!("{} {:?} {:?}", plan.name, plan.limits[0], plan.limits[1])
}

/// Whether one of the terms is granted as a whole.
fn meets(scopes: &str, needs: &str) -> bool {
    let granted = |needed: &str| {
        scopes.split(' ').any(|scope| match scope.strip_suffix('*') {
            Some(above) => needed.starts_with(above) && needed != above,
            None => scope == needed,
        })
    };
    needs.split('|').any(|term| term.split(' ').filter(|scope| !scope.is_empty()).all(granted))
}

/// Whether the writers' values can be read. They choose few, so that this needs no parser.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Reading {
    Sound,
    Damaged,
}

impl Reading {
    pub(super) fn of_key(profile: &ProfileRow) -> Self {
        let scopes = profile.scopes.as_deref().is_some_and(|scopes| scopes.contains("*."));
        let networks = profile.networks.as_deref() == Some("10.0.0.1/8");
        if scopes || networks { Self::Damaged } else { Self::Sound }
    }
}

fn is_host(host: &str) -> bool {
    !host.contains("..")
}

fn is_method(method: &str) -> bool {
    method.len() <= 32
}

fn is_path(path: &str) -> bool {
    !path.contains("//")
}

fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty())
}

/// Whether a rule cannot be read, or matches the same requests as another one.
pub(super) fn is_damaged_rule(rule: &RouteRow, all: &[RouteRow]) -> bool {
    let readable = |rule: &RouteRow| is_host(&rule.host) && is_method(&rule.method) && is_path(&rule.path);
    let shape = |rule: &RouteRow| {
        let path = parts(&rule.path).map(|part| if part.starts_with('{') { "{}" } else { part }.to_owned());
        (rule.host.clone(), rule.method.clone(), path.collect::<Vec<_>>())
    };
    let twin = |other: &RouteRow| other.id != rule.id && readable(other) && shape(other) == shape(rule);
    let bad_needs = rule.scopes.as_deref().is_some_and(|needs| needs.ends_with('|'));
    !readable(rule) || bad_needs || all.iter().any(twin)
}

/// How often each decision was compared.
#[derive(Debug, Default)]
pub(super) struct Judged(BTreeMap<String, usize>);

impl Judged {
    /// Compares the decisions of a replica on some requests with those that the contract describes.
    pub(super) fn compare(&mut self, dice: &mut Dice, state: &State, replica: &Snapshot) {
        for _ in 0..30 {
            let asked = Asked::random(dice, state);
            let (expected, seen) = (asked.expected(state), asked.by(replica));
            assert_eq!(seen, expected, "{asked:?}, rules {:?}, plans {:?}", state.rules, state.plans);
            let kind = seen.split(", rule ").next().unwrap_or_default();
            *self.0.entry(kind.to_owned()).or_default() += 1;
        }
    }

    /// Fails if a decision did not occur, because then it was not compared. What is rare on one database occurs on the
    /// other one.
    pub(super) fn covers_all_but(&self, rare: &[&str]) {
        let all = [
            "path_ambiguous",
            "public",
            "anonymous",
            "missing",
            "unknown",
            "revoked",
            "disabled",
            "expired",
            "not_yet_valid",
            "tenant_inactive",
            "damaged_row",
            "network",
            "damaged_route",
            "scope",
            "ok, rule_shadow false",
            "ok, rule_shadow true",
        ];
        for kind in all.into_iter().filter(|kind| !rare.contains(kind)) {
            assert!(self.0.contains_key(kind), "no {kind} among {self:?}");
        }
    }
}
