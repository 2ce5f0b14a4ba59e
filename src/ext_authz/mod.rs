//! How does Envoy ask, and how is it answered?
pub mod proto;
