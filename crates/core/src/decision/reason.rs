//! Why a request is denied or cannot be decided.

/// Why a request is denied: for metadata, logs and metrics.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// The key is disabled. Cause: the key's owner.
    Disabled,
    /// The key has expired. Cause: the key's owner.
    Expired,
    /// The presented text is not a valid key, or there is more than one. Cause: the client.
    Malformed,
    /// The prefix is known, but the secret is wrong. Cause: the client.
    Mismatch,
    /// There is no key. Cause: the client.
    Missing,
    /// The key may not be used from the client's address. Cause: the client.
    Network,
    /// The key is not valid yet. Cause: the key's owner.
    NotYetValid,
    /// Envoy and the upstream could interpret the path differently. Cause: the client.
    PathAmbiguous,
    /// The key is revoked. Cause: the key's owner.
    Revoked,
    /// No rule matches the request. Cause: the client, or the operator.
    Route,
    /// The key lacks a scope that the route needs. Cause: the key's owner.
    Scope,
    /// The tenant is not active. Cause: the tenant.
    TenantInactive,
    /// No key has this prefix. Cause: the client.
    Unknown,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 13] = [
        Self::Disabled,
        Self::Expired,
        Self::Malformed,
        Self::Mismatch,
        Self::Missing,
        Self::Network,
        Self::NotYetValid,
        Self::PathAmbiguous,
        Self::Revoked,
        Self::Route,
        Self::Scope,
        Self::TenantInactive,
        Self::Unknown,
    ];

    /// Returns the name that metadata, logs and metrics use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::Malformed => "malformed",
            Self::Mismatch => "mismatch",
            Self::Missing => "missing",
            Self::Network => "network",
            Self::NotYetValid => "not_yet_valid",
            Self::PathAmbiguous => "path_ambiguous",
            Self::Revoked => "revoked",
            Self::Route => "route",
            Self::Scope => "scope",
            Self::TenantInactive => "tenant_inactive",
            Self::Unknown => "unknown",
        }
    }
}

/// Why tenantgate cannot decide. Clients get the same 503 for all of them; only the operator learns which it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Envoy's context extensions for the route are invalid. The operator corrects Envoy's configuration.
    BadRouteContext,
    /// The row of the matching rule is damaged. The operator fixes the row.
    DamagedRoute,
    /// The row of the key, of its tenant or of its plan is damaged. The operator fixes the row.
    DamagedRow,
    /// Verifying the secret takes longer than the caller waits. A retry finds the result.
    DeadlineTooShort,
    /// An unexpected error, which is a bug in tenantgate. The log has the details.
    Internal,
    /// No poll of the database has succeeded since the start. The operator checks the database.
    NeverLoaded,
    /// More secrets wait for their first verification than the CPUs can process. A retry may succeed.
    Overloaded,
    /// The request exceeds the size limit. The operator raises the limit, or configures Envoy to send less.
    TooLarge,
    /// The last successful poll of the database is older than `--max-staleness`.
    TooOld,
    /// No key has this prefix, but the snapshot is stale and the key may be new.
    UnknownWhileStale,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 10] = [
        Self::BadRouteContext,
        Self::DamagedRoute,
        Self::DamagedRow,
        Self::DeadlineTooShort,
        Self::Internal,
        Self::NeverLoaded,
        Self::Overloaded,
        Self::TooLarge,
        Self::TooOld,
        Self::UnknownWhileStale,
    ];

    /// Returns whether a client can cause it by what it sends, such as a first proof that takes too long or a request
    /// that is too large. Such a request must never be allowed because of it, whatever the operator configured for
    /// outages.
    #[must_use]
    pub fn is_caused_by_clients(self) -> bool {
        match self {
            Self::DeadlineTooShort | Self::Internal | Self::Overloaded | Self::TooLarge => true,
            Self::BadRouteContext
            | Self::DamagedRoute
            | Self::DamagedRow
            | Self::NeverLoaded
            | Self::TooOld
            | Self::UnknownWhileStale => false,
        }
    }

    /// Returns the name that logs and metrics use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRouteContext => "bad_route_context",
            Self::DamagedRoute => "damaged_route",
            Self::DamagedRow => "damaged_row",
            Self::DeadlineTooShort => "deadline_too_short",
            Self::Internal => "internal",
            Self::NeverLoaded => "never_loaded",
            Self::Overloaded => "overloaded",
            Self::TooLarge => "too_large",
            Self::TooOld => "too_old",
            Self::UnknownWhileStale => "unknown_while_stale",
        }
    }
}
