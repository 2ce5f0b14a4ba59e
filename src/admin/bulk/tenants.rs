//! Imports tenants in bulk, and creates their schemas in the same transaction.

use serde::Deserialize;
use uuid::Uuid;

use super::super::{Admin, AdminError};
use super::{Import, Numbered, Outcome, instant, read, split_at_duplicates, uuid};
use crate::audit::Action;
use crate::clock::Timestamp;
use crate::invalid::InvalidValue;
use crate::key::format::holds_key;
use crate::plan::PlanName;
use crate::random;
use crate::store::StoreError;
use crate::tenant::{
    Mode, Tenant, TenantId, TenantStatus, default_schema_name, is_schema_name, is_tenant_name,
};

/// A tenant in a file: unchecked texts.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantRow {
    /// Its id; `None` for a new one.
    pub id: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Its schema; `None` derives it from the name.
    pub db_schema_name: Option<String>,
    /// Its status; `None` for active.
    pub status: Option<String>,
    /// Its mode; `None` for that of the server.
    pub mode: Option<String>,
    /// Its plan.
    pub plan: Option<String>,
    /// When it was created; `None` for now.
    pub created_at: Option<String>,
}

/// A valid row.
struct Candidate {
    line: u64,
    id: Option<Uuid>,
    name: String,
    schema: String,
    status: Option<TenantStatus>,
    mode: Option<Mode>,
    plan: Option<Box<str>>,
    created_at: Option<Timestamp>,
}

impl Candidate {
    fn read(line: u64, row: TenantRow) -> Result<Self, InvalidValue> {
        let name = row.name.filter(|name| is_tenant_name(name) && !holds_key(name));
        let name = name.ok_or("name is not 1 to 255 characters, without control characters and keys")?;
        let schema = row.db_schema_name.unwrap_or_else(|| default_schema_name(&name));
        if !is_schema_name(&schema) {
            return Err(format!("invalid schema name {schema:?}").into());
        }
        let status = row.status.as_deref().map(TenantStatus::parse);
        if let Some(TenantStatus::Other(other)) = &status {
            return Err(format!(
                "invalid status {other:?}: expected one of {}",
                TenantStatus::KNOWN.join(", ")
            )
            .into());
        }
        let mode = mode(row.mode.as_deref())?;
        let plan = read(row.plan.as_deref(), PlanName::parse)?.map(|plan| plan.as_str().into());
        let (id, created_at) =
            (uuid("id", row.id.as_deref())?, instant("created_at", row.created_at.as_deref())?);
        Ok(Self { line, id, name, schema, status, mode, plan, created_at })
    }

    fn names(&self) -> Vec<String> {
        self.id.map(|id| id.to_string()).into_iter().chain([self.schema.clone()]).collect()
    }

    /// Returns the column in which the row contradicts the existing tenant; `None` if there is none.
    fn contradiction(&self, there: &Tenant) -> Option<&'static str> {
        let differing = [
            (self.schema != there.schema, "schema"),
            (self.id.is_some_and(|id| id != there.id.0), "id"),
            (self.name != there.name, "name"),
            (self.status.as_ref().is_some_and(|status| *status != there.status), "status"),
            (self.mode.is_some() && self.mode != there.mode, "mode"),
            (self.plan.is_some() && self.plan != there.plan, "plan"),
            (self.created_at.is_some_and(|at| at != there.created_at), "created_at"),
        ];
        differing.into_iter().find_map(|(differs, column)| differs.then_some(column))
    }

    fn tenant(&self, now: Timestamp) -> Tenant {
        Tenant {
            id: TenantId(self.id.unwrap_or_else(random::new_id)),
            name: self.name.clone(),
            schema: self.schema.clone(),
            status: self.status.clone().unwrap_or(TenantStatus::Active),
            mode: self.mode,
            plan: self.plan.clone(),
            created_at: self.created_at.unwrap_or(now),
        }
    }
}

/// Parses a mode. An empty text means no mode.
fn mode(text: Option<&str>) -> Result<Option<Mode>, InvalidValue> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let known = Mode::ALL.into_iter().find(|mode| mode.as_str() == text);
    known.map(Some).ok_or_else(|| {
        format!("invalid mode {text:?}: expected one of {}", Mode::ALL.map(Mode::as_str).join(", ")).into()
    })
}

impl Admin {
    /// Imports a batch of tenants. Rejected rows are part of the outcome.
    ///
    /// # Errors
    ///
    /// The database is not available, or rejects the whole batch.
    pub async fn import_tenants(
        &self,
        import: &mut Import,
        rows: Vec<Numbered<TenantRow>>,
    ) -> Result<Outcome, AdminError> {
        let mut outcome = Outcome::default();
        let mut candidates = Vec::with_capacity(rows.len());
        for (line, row) in rows {
            match Candidate::read(line, row) {
                Ok(candidate) => candidates.push(candidate),
                Err(why) => outcome.refuse(line, why),
            }
        }
        let candidates =
            self.with_known_plans(candidates, |row| (row.line, row.plan.as_deref()), &mut outcome).await?;
        for part in split_at_duplicates(candidates, Candidate::names) {
            self.import_tenants_part(import, part, &mut outcome).await?;
        }
        Ok(outcome)
    }

    async fn import_tenants_part(
        &self,
        import: &mut Import,
        part: Vec<Candidate>,
        outcome: &mut Outcome,
    ) -> Result<(), AdminError> {
        let new = self.compare_tenants(import, part, outcome).await?;
        if !import.dry_run && !new.is_empty() {
            let now = self.now();
            let tenants: Vec<_> = new.iter().map(|candidate| candidate.tenant(now)).collect();
            let lines: Vec<_> = new.iter().map(|candidate| candidate.line).collect();
            let ids: Vec<_> = tenants.iter().map(|tenant| tenant.id.0).collect();
            let draft = import.draft(Action::TenantImport, &lines, &ids);
            match self.store.import_tenants(&tenants, draft).await {
                Err(StoreError::Conflict(_)) => {
                    let why =
                        "another command creates the same tenants at the same time: import the file again";
                    for candidate in &new {
                        outcome.refuse(candidate.line, why);
                    }
                    return Ok(());
                }
                done => done?,
            }
        }
        outcome.imported += new.len() as u64;
        Ok(())
    }

    /// Compares rows with the database. Returns those that do not exist yet.
    async fn compare_tenants(
        &self,
        import: &mut Import,
        part: Vec<Candidate>,
        outcome: &mut Outcome,
    ) -> Result<Vec<Candidate>, AdminError> {
        let names: Vec<_> = part.iter().flat_map(Candidate::names).collect();
        let there = self.store.tenants_named(&names).await?;
        let mut new = Vec::with_capacity(part.len());
        for candidate in part {
            let same = |t: &&Tenant| t.schema == candidate.schema || Some(t.id.0) == candidate.id;
            match there.iter().find(same) {
                None if import.dry_run
                    && candidate.names().iter().filter(|name| !import.is_new(name)).count() > 0 =>
                {
                    outcome.refuse(candidate.line, format!("{} occurs twice in the file", candidate.schema));
                }
                None => new.push(candidate),
                Some(tenant) => match candidate.contradiction(tenant) {
                    None => outcome.already_there += 1,
                    Some(column) => {
                        let why = format!("{} already exists with another {column}", tenant.schema);
                        outcome.refuse(candidate.line, why);
                    }
                },
            }
        }
        Ok(new)
    }
}
