//! Tenant-aware API keys for everything behind Envoy.
pub mod ext_authz;
