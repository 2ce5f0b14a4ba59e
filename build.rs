//! Compiles `proto/` without protoc.
//!
//! Two things come out: the message types and the client (they describe the protocol as
//! it is), and the descriptor set that gRPC reflection serves. The server's half is
//! written by hand: see `grpc` and `ext_authz::codec`.

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
