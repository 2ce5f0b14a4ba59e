//! Compiles `proto/` without protoc.
//!
//! Three things come out: the message types and the client (they describe the
//! protocol as it is), the server half with the codec of `ext_authz::codec`, and
//! the descriptor set that gRPC reflection serves.

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
    server_half();
    Ok(())
}

/// The server takes what `CheckCodec` reads, not the generated message: see `ext_authz::codec`.
fn server_half() {
    let check = tonic_build::manual::Method::builder()
        .name("check")
        .route_name("Check")
        .input_type("crate::ext_authz::codec::WireRequest")
        .output_type("crate::ext_authz::codec::WireResponse")
        .codec_path("crate::ext_authz::codec::CheckCodec")
        .build();
    let service = tonic_build::manual::Service::builder()
        .name("Authorization")
        .package("envoy.service.auth.v3")
        .method(check)
        .build();
    tonic_build::manual::Builder::new().build_client(false).compile(&[service]);
}
