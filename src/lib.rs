//! Tenant-aware API keys for everything behind Envoy.
pub mod clock;
pub mod decision;
pub mod ext_authz;
pub mod key;
pub mod record;
pub mod request;
pub mod stats;
pub mod tenant;
pub mod verify;
