//! Tenant-aware API keys for everything behind Envoy.
pub mod clock;
pub mod decision;
pub mod ext_authz;
pub mod key;
pub mod record;
pub mod replica;
pub mod request;
pub mod stats;
pub mod store;
pub mod tenant;
pub mod usage;
pub mod verify;
