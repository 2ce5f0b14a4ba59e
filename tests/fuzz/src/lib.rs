//! What do the fuzz targets share?
//!
//! [`people`] says who is there, [`house`] puts the machines of tenantgate together around
//! them, and [`model`] says what should come out, in the slowest and most obvious way.
//! [`routes`] is the same for rules and paths,
//! [`seeds`] is what mutation starts from, [`wire`] how a call looks from outside.

pub mod house;
pub mod model;
pub mod people;
pub mod routes;
pub mod seeds;
pub mod wire;
