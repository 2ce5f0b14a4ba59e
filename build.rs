//! Compiles `proto/` without protoc.
//!
//! It creates the message types and the client, and the descriptor set for gRPC reflection. The server part is written
//! by hand: see `transport` and `ext_authz::codec`.

#![expect(clippy::disallowed_methods, reason = "cargo speaks to build scripts through the environment")]

use std::path::PathBuf;

use prost::Message as _;

const PROTOS: [&str; 1] = ["envoy/service/auth/v3/external_auth.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().build_server(false).include_file("envoy.rs").compile_fds(descriptors)?;
    Ok(())
}
