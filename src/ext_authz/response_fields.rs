//! Options for what responses say about a caller: the identity headers for upstreams, and the metadata for Envoy.

use crate::invalid::InvalidValue;

/// A property of the caller that can be sent upstream in a header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IdentityField {
    /// `tenants.id`.
    TenantId,
    /// `tenants.name`, percent-encoded.
    TenantName,
    /// `tenants.db_schema_name`.
    TenantSchema,
    /// `api_keys.id`.
    KeyId,
    /// `api_keys.key_prefix`.
    KeyPrefix,
    /// `api_keys.scopes`; absent if the key is granted everything.
    Scopes,
    /// The plan of the key, or else of its tenant.
    Plan,
}

impl IdentityField {
    /// Every field.
    pub const ALL: [Self; 7] = [
        Self::TenantId,
        Self::TenantName,
        Self::TenantSchema,
        Self::KeyId,
        Self::KeyPrefix,
        Self::Scopes,
        Self::Plan,
    ];

    /// Returns the name that `--identity-header` uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TenantId => "tenant-id",
            Self::TenantName => "tenant-name",
            Self::TenantSchema => "tenant-schema",
            Self::KeyId => "key-id",
            Self::KeyPrefix => "key-prefix",
            Self::Scopes => "scopes",
            Self::Plan => "plan",
        }
    }

    /// Returns the default name of its header.
    #[must_use]
    pub fn default_header(self) -> String {
        format!("x-llmcore-{}", self.as_str())
    }

    /// Returns whether every caller has it.
    #[must_use]
    pub fn is_always_set(self) -> bool {
        !matches!(self, Self::Scopes | Self::Plan)
    }

    /// Returns whether it is the same for all keys of a tenant.
    #[must_use]
    pub fn is_of_tenant(self) -> bool {
        matches!(self, Self::TenantId | Self::TenantName | Self::TenantSchema)
    }
}

/// The identity headers. On every allowed request, each of them is either set or removed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdentityHeaders(Vec<(IdentityField, String)>);

impl Default for IdentityHeaders {
    fn default() -> Self {
        use IdentityField::{KeyId, TenantId, TenantName, TenantSchema};
        let fields = [TenantId, TenantName, TenantSchema, KeyId];
        Self(fields.into_iter().map(|field| (field, field.default_header())).collect())
    }
}

impl IdentityHeaders {
    /// Creates an empty list.
    #[must_use]
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// Adds a header, given as `FIELD` or `FIELD=NAME`.
    ///
    /// # Errors
    ///
    /// Returns that the field is unknown, or that the name is invalid, reserved or already used.
    pub fn add(&mut self, text: &str) -> Result<(), InvalidValue> {
        let (field, name) = text.split_once('=').map_or((text, None), |(field, name)| (field, Some(name)));
        let known = IdentityField::ALL.into_iter().find(|known| known.as_str() == field);
        let known = known.ok_or_else(|| {
            let all = IdentityField::ALL.map(IdentityField::as_str).join(", ");
            format!("unknown field {field:?}: expected one of {all}, or none")
        })?;
        let name = match name {
            None => known.default_header(),
            Some(name) => header_name(name)?,
        };
        if self.0.iter().any(|(_, other)| *other == name) {
            return Err(format!("the header {name} is used twice").into());
        }
        self.0.push((known, name));
        Ok(())
    }

    /// Returns the fields and the names of their headers.
    pub fn iter(&self) -> impl Iterator<Item = (IdentityField, &str)> {
        self.0.iter().map(|(field, name)| (*field, name.as_str()))
    }

    /// Returns the names of the headers.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(_, name)| name.as_str())
    }
}

/// Headers that Envoy or HTTP interprets: setting or removing one would change the request.
const RESERVED: [&str; 9] = [
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
    "authorization",
    "cookie",
];

fn header_name(name: &str) -> Result<String, InvalidValue> {
    let parsed = http::HeaderName::from_bytes(name.as_bytes());
    let name = parsed.map_err(|_| format!("invalid header name {name:?}"))?.as_str().to_owned();
    if RESERVED.contains(&name.as_str()) || name.starts_with("x-envoy-") || name.starts_with("x-forwarded-") {
        return Err(format!("the header {name} is reserved: choose another name").into());
    }
    Ok(name)
}

/// A metadata field that is present only if the key was proven.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MetadataField {
    /// `input_limit`.
    InputLimit,
    /// `key_expires_at`.
    KeyExpiresAt,
    /// `key_id`.
    KeyId,
    /// `key_prefix`.
    KeyPrefix,
    /// `output_limit`.
    OutputLimit,
    /// `plan`.
    Plan,
    /// `request_limit`.
    RequestLimit,
    /// `route`.
    Route,
    /// `scopes`.
    Scopes,
    /// `tenant_id`.
    TenantId,
    /// `tenant_name`.
    TenantName,
    /// `tenant_schema`.
    TenantSchema,
    /// `tenant_status`.
    TenantStatus,
    /// `total_limit`.
    TotalLimit,
}

impl MetadataField {
    /// Every field, in the order of their names.
    pub const ALL: [Self; 14] = [
        Self::InputLimit,
        Self::KeyExpiresAt,
        Self::KeyId,
        Self::KeyPrefix,
        Self::OutputLimit,
        Self::Plan,
        Self::RequestLimit,
        Self::Route,
        Self::Scopes,
        Self::TenantId,
        Self::TenantName,
        Self::TenantSchema,
        Self::TenantStatus,
        Self::TotalLimit,
    ];

    /// Returns the name of the field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InputLimit => "input_limit",
            Self::KeyExpiresAt => "key_expires_at",
            Self::KeyId => "key_id",
            Self::KeyPrefix => "key_prefix",
            Self::OutputLimit => "output_limit",
            Self::Plan => "plan",
            Self::RequestLimit => "request_limit",
            Self::Route => "route",
            Self::Scopes => "scopes",
            Self::TenantId => "tenant_id",
            Self::TenantName => "tenant_name",
            Self::TenantSchema => "tenant_schema",
            Self::TenantStatus => "tenant_status",
            Self::TotalLimit => "total_limit",
        }
    }
}

/// The fields that are always present.
const ALWAYS: [&str; 3] = ["decision", "decision_id", "reason"];

/// A set of metadata fields.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MetadataFields(u16);

impl Default for MetadataFields {
    fn default() -> Self {
        Self(u16::MAX)
    }
}

impl MetadataFields {
    /// Creates an empty set; the fields that are always present do not belong to it.
    #[must_use]
    pub fn none() -> Self {
        Self(0)
    }

    /// Adds a field by its name. Ignores the names of fields that are always present.
    ///
    /// # Errors
    ///
    /// Returns the list of fields if `name` is none of them.
    pub fn add(&mut self, name: &str) -> Result<(), InvalidValue> {
        if ALWAYS.contains(&name) {
            return Ok(());
        }
        let known = MetadataField::ALL.into_iter().find(|known| known.as_str() == name);
        let known = known.ok_or_else(|| {
            let all = MetadataField::ALL.map(MetadataField::as_str).join(", ");
            format!("unknown field {name:?}: expected one of {all}")
        })?;
        self.0 |= 1 << known as u16;
        Ok(())
    }

    /// Returns whether the set contains `field`.
    #[must_use]
    pub fn has(self, field: MetadataField) -> bool {
        self.0 >> field as u16 & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_headers_are_chosen_by_field_with_an_optional_name() {
        let mut headers = IdentityHeaders::none();
        for text in ["scopes", "key-id=X-Key", "tenant-id"] {
            headers.add(text).unwrap();
        }
        assert_eq!(headers.names().collect::<Vec<_>>(), ["x-llmcore-scopes", "x-key", "x-llmcore-tenant-id"]);
        for bad in [
            "",
            "id",
            "plan=",
            "plan=a b",
            "plan=x-key",
            "scopes",
            "plan=Host",
            "plan=x-envoy-a",
            "plan=:path",
        ] {
            assert!(headers.clone().add(bad).is_err(), "{bad}");
        }
        let default: Vec<_> = IdentityHeaders::default().names().map(str::to_owned).collect();
        let names = ["tenant-id", "tenant-name", "tenant-schema", "key-id"];
        assert_eq!(default, names.map(|name| format!("x-llmcore-{name}")));
    }

    #[test]
    fn metadata_fields_are_chosen_by_name() {
        let mut fields = MetadataFields::none();
        for name in ["decision", "plan", "request_limit"] {
            fields.add(name).unwrap();
        }
        let chosen = MetadataField::ALL.into_iter().filter(|field| fields.has(*field));
        assert_eq!(chosen.map(MetadataField::as_str).collect::<Vec<_>>(), ["plan", "request_limit"]);
        assert!(fields.add("shadow").unwrap_err().to_string().contains("expected one of input_limit, "));
        assert!(MetadataField::ALL.into_iter().all(|field| MetadataFields::default().has(field)));
    }
}
