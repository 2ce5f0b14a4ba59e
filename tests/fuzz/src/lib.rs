//! The code that the fuzz targets share.
//!
//! [`fixtures`] lists the tenants and keys, [`server`] assembles the modules of tenantgate around them, and [`model`]
//! computes the expected result in the slowest and most obvious way. [`routes`] does the same for rules and paths.
//! [`seeds`] are the first inputs for mutation, and [`wire`] encodes a call.

pub mod fixtures;
pub mod model;
pub mod routes;
pub mod seeds;
pub mod server;
pub mod wire;
