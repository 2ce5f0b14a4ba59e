//! Converts `timestamptz`.
//!
//! It uses no calendar library, because none can represent both infinities of Postgres and its largest year, 294276.

use sqlx::postgres::{PgRow, PgTypeInfo, PgValueRef};
use sqlx::{ColumnIndex, Decode, Encode, Postgres, Row as _, Type};

use crate::clock::Timestamp;

/// A `timestamptz` in microseconds, with the two infinities of Postgres at the ends of the range.
/// <https://www.postgresql.org/docs/current/datatype-datetime.html>
#[derive(Clone, Copy)]
pub(in crate::store) struct Micros(pub(in crate::store) Timestamp);

/// The value of `infinity`.
pub(in crate::store) const INFINITY: Timestamp = Timestamp(i64::MAX);

/// Postgres counts from 2000-01-01.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

impl Type<Postgres> for Micros {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("timestamptz")
    }
}

impl sqlx::postgres::PgHasArrayType for Micros {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("timestamptz[]")
    }
}

impl<'r> Decode<'r, Postgres> for Micros {
    fn decode(value: PgValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
        let micros = i64::from_be_bytes(value.as_bytes()?.try_into()?);
        let infinite = micros == i64::MAX || micros == i64::MIN;
        Ok(Self(Timestamp(if infinite { micros } else { micros.saturating_add(POSTGRES_EPOCH) })))
    }
}

impl Encode<'_, Postgres> for Micros {
    fn encode_by_ref(
        &self,
        buffer: &mut sqlx::postgres::PgArgumentBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        buffer.extend(&self.0.0.saturating_sub(POSTGRES_EPOCH).to_be_bytes());
        Ok(sqlx::encode::IsNull::No)
    }
}

/// Reads an instant; `None` for NULL.
pub(in crate::store) fn instant(
    row: &PgRow,
    column: impl ColumnIndex<PgRow>,
) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(row.try_get::<Option<Micros>, _>(column)?.map(|m| m.0))
}

/// Reads `expires_at`; `None` for NULL and `infinity`, which both mean never.
pub(in crate::store) fn expiry(
    row: &PgRow,
    column: impl ColumnIndex<PgRow>,
) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(instant(row, column)?.filter(|at| *at != INFINITY))
}
