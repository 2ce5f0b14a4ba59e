//! Parameters and conditions of queries.

use uuid::Uuid;

use super::Dialect;
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::tenant::TenantId;

/// A parameter of a query.
pub(in crate::store) enum SqlValue {
    Id(Option<Uuid>),
    Ids(Vec<Option<Uuid>>),
    Instant(Option<Timestamp>),
    Instants(Vec<Option<Timestamp>>),
    Json(Option<String>),
    Jsons(Vec<Option<String>>),
    Flag(bool),
    Flags(Vec<bool>),
    Number(i64),
    Text(Option<String>),
    Texts(Vec<Option<String>>),
}

impl SqlValue {
    /// Converts the value to the text that SQLite stores. Lists become JSON arrays.
    pub(super) fn text(self) -> Option<String> {
        let json = |list: &[Option<String>]| serde_json::to_string(list).unwrap_or_default();
        match self {
            Self::Id(id) => id.map(|id| id.to_string()),
            Self::Ids(ids) => Some(json(&ids.into_iter().map(|id| Self::Id(id).text()).collect::<Vec<_>>())),
            Self::Instant(at) => at.map(|at| at.to_string()),
            Self::Instants(all) => {
                Some(json(&all.into_iter().map(|at| Self::Instant(at).text()).collect::<Vec<_>>()))
            }
            Self::Number(number) => Some(number.to_string()),
            Self::Text(text) | Self::Json(text) => text,
            Self::Texts(texts) | Self::Jsons(texts) => Some(json(&texts)),
            Self::Flag(flag) => Some(i64::from(flag).to_string()),
            // Never bound on SQLite.
            Self::Flags(_) => None,
        }
    }

    /// Collects one column of many rows into a list parameter.
    pub(super) fn column<const N: usize>(rows: &[[Self; N]], at: usize) -> Self {
        let cells = || rows.iter().filter_map(|row| row.get(at));
        let text = |cell: &Self| match cell {
            Self::Text(text) | Self::Json(text) => text.clone(),
            _ => None,
        };
        match cells().next() {
            Some(Self::Id(_)) => {
                Self::Ids(cells().map(|cell| if let Self::Id(id) = cell { *id } else { None }).collect())
            }
            Some(Self::Instant(_)) => Self::Instants(
                cells().map(|cell| if let Self::Instant(at) = cell { *at } else { None }).collect(),
            ),
            Some(Self::Flag(_)) => {
                Self::Flags(cells().map(|cell| matches!(cell, Self::Flag(true))).collect())
            }
            Some(Self::Json(_)) => Self::Jsons(cells().map(text).collect()),
            _ => Self::Texts(cells().map(text).collect()),
        }
    }

    pub(super) fn array_type(&self) -> &'static str {
        match self {
            Self::Ids(_) => "uuid[]",
            Self::Instants(_) => "timestamptz[]",
            Self::Jsons(_) => "jsonb[]",
            Self::Flags(_) => "bool[]",
            _ => "text[]",
        }
    }
}

/// Defines the conversion of each type to a parameter.
macro_rules! values {
    ($($from:ty => $value:expr),* $(,)?) => {
        $(impl From<$from> for SqlValue {
            fn from(from: $from) -> Self {
                let value: fn($from) -> Self = $value;
                value(from)
            }
        })*
    };
}

values! {
    Uuid => |id| Self::Id(Some(id)),
    Option<Uuid> => Self::Id,
    KeyId => |id| Self::Id(Some(id.0)),
    Option<KeyId> => |id| Self::Id(id.map(|id| id.0)),
    TenantId => |id| Self::Id(Some(id.0)),
    Vec<Uuid> => |ids| Self::Ids(ids.into_iter().map(Some).collect()),
    Timestamp => |at| Self::Instant(Some(at)),
    Option<Timestamp> => Self::Instant,
    i64 => Self::Number,
    bool => Self::Flag,
    String => |text| Self::Text(Some(text)),
    &str => |text| Self::Text(Some(text.to_owned())),
    &String => |text| Self::Text(Some(text.clone())),
    Option<&str> => |text| Self::Text(text.map(str::to_owned)),
    Option<String> => Self::Text,
    &Option<String> => |text| Self::Text(text.clone()),
    &[String] => |texts| Self::Texts(texts.iter().cloned().map(Some).collect()),
}

/// Conditions joined by AND, and their parameters.
#[derive(Default)]
pub(in crate::store) struct Conditions {
    conditions: Vec<String>,
    pub(super) values: Vec<SqlValue>,
}

impl Conditions {
    /// Adds a condition, unless the value is `None`. Each `?` in it stands for the value.
    pub(in crate::store) fn and(mut self, condition: &str, value: Option<impl Into<SqlValue>>) -> Self {
        if let Some(value) = value {
            self.conditions.push(condition.replace('?', &format!("${}", self.next())));
            self.values.push(value.into());
        }
        self
    }

    /// Adds a condition with two values, the first and the second `?` in it.
    pub(in crate::store) fn and_two(
        mut self,
        condition: &str,
        first: impl Into<SqlValue>,
        second: impl Into<SqlValue>,
    ) -> Self {
        let (one, two) = (format!("${}", self.next()), format!("${}", self.next() + 1));
        self.conditions.push(condition.replacen('?', &one, 1).replacen('?', &two, 1));
        self.values.extend([first.into(), second.into()]);
        self
    }

    /// Adds a condition without a value.
    pub(super) fn always(mut self, condition: &str) -> Self {
        self.conditions.push(condition.to_owned());
        self
    }

    /// Adds a condition that already contains the number of its parameter.
    pub(super) fn with(mut self, condition: String, value: impl Into<SqlValue>) -> Self {
        self.conditions.push(condition);
        self.values.push(value.into());
        self
    }

    /// Adds the condition that the expression `before` equals one of these ids, followed by `after`.
    pub(super) fn and_any(self, before: &str, after: &str, dialect: &Dialect, ids: Vec<Uuid>) -> Self {
        let condition = format!("{before} {}{after}", dialect.any(self.next()));
        self.with(condition, ids)
    }

    /// Returns the SQL after WHERE.
    pub(in crate::store) fn sql(&self) -> String {
        if self.conditions.is_empty() { "true".into() } else { self.conditions.join(" AND ") }
    }

    /// Returns the number of the next parameter.
    pub(in crate::store) fn next(&self) -> usize {
        self.values.len() + 1
    }
}
