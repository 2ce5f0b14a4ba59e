//! The command `ready`: shows whether the server on this machine is ready.
//!
//! It requests `/readyz` and is made for health checks of images without a shell or curl.

use std::fmt::Display;
use std::time::Duration;

use http::Method;
use serde::Serialize;
use tokio::time::timeout;

use super::Failure;
use super::view::Text;
use crate::envoy::http::{HttpResponse, Server, address, send};

/// The time limit: a health check that hangs has failed.
const PATIENCE: Duration = Duration::from_secs(2);

/// The options of `ready`.
#[derive(clap::Args, Clone)]
pub(super) struct ReadyArgs {
    /// The ops listener of the server, as given to `serve`
    #[arg(long, env = "TENANTGATE_OPS_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:9464")]
    ops_listen: String,
}

/// The result.
#[derive(Serialize)]
pub(super) struct ReadyView {
    /// Whether the server should get requests.
    pub(super) ready: bool,
    readyz: serde_json::Value,
}

impl Text for ReadyView {
    fn text(&self) -> String {
        self.readyz.to_string()
    }
}

/// Requests `/readyz`.
pub(super) async fn check(args: ReadyArgs) -> Result<ReadyView, Failure> {
    let target = reachable(&args.ops_listen);
    let failed = |why: &dyn Display| Failure::unavailable(format!("{target} does not respond: {why}"));
    let url = address(&target).map_err(|why| Failure::usage(format!("--ops-listen: {why}")))?;
    let server = Server { url, ca: None };
    let response = timeout(PATIENCE, send(&server, &Method::GET, "/readyz", &[]));
    let response =
        response.await.map_err(|_| failed(&format!("no response within {} s", PATIENCE.as_secs())))?;
    let response = response.map_err(|error| failed(&error))?;
    read(&response).ok_or_else(|| failed(&"it is not the ops listener of tenantgate"))
}

/// Replaces an address that stands for all addresses of the machine by the one of loopback.
fn reachable(listen: &str) -> String {
    let host = |all: &str, one: &str| listen.strip_prefix(all).map(|port| format!("{one}{port}"));
    host("0.0.0.0:", "127.0.0.1:").or_else(|| host("[::]:", "[::1]:")).unwrap_or_else(|| listen.to_owned())
}

fn read(response: &HttpResponse) -> Option<ReadyView> {
    let ready = match response.status {
        200 => true,
        503 => false,
        _ => return None,
    };
    let readyz: serde_json::Value = serde_json::from_str(&response.body).ok()?;
    readyz.get("status")?;
    Some(ReadyView { ready, readyz })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_stands_for_all_becomes_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:9464", "127.0.0.1:9464"),
            ("[::]:9464", "[::1]:9464"),
            ("10.0.0.0:9464", "10.0.0.0:9464"),
            ("localhost:1", "localhost:1"),
        ] {
            assert_eq!(reachable(listen), asked);
        }
    }
}
