//! Is a server ready?
//!
//! Asks `/readyz`, for where nothing else can: the health check of an image without a shell. Knows nothing of
//! what the server is for.

use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Failure;
use super::view::Text;

/// How long to wait for the answer: a health check that hangs is a no.
const PATIENCE: Duration = Duration::from_secs(2);

/// More than the answer has; a stranger at the port may send for ever.
const LONGEST: u64 = 64 * 1024;

/// The options of `ready`.
#[derive(clap::Args, Clone)]
pub(super) struct ReadyArgs {
    /// The ops listener of the server, as given to `serve`
    #[arg(long, env = "TENANTGATE_OPS_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:9464")]
    ops_listen: String,
}

/// What the server said.
#[derive(Serialize)]
pub(super) struct ReadyView {
    /// Whether to send it requests.
    pub(super) ready: bool,
    readyz: serde_json::Value,
}

impl Text for ReadyView {
    fn text(&self) -> String {
        self.readyz.to_string()
    }
}

/// Asks the server how it is.
pub(super) async fn ready(args: ReadyArgs) -> Result<ReadyView, Failure> {
    let address = reachable(&args.ops_listen);
    let silent = |why: &str| Failure::unavailable(format!("{address} gives no answer: {why}"));
    let page = timeout(PATIENCE, page(&address)).await.map_err(|_| silent("it takes too long"))?;
    let page = page.map_err(|e| silent(&e.to_string()))?;
    read(&page).ok_or_else(|| silent("that is not the ops listener of tenantgate"))
}

/// All addresses are bound, of which one can be asked.
fn reachable(listen: &str) -> String {
    let host = |all: &str, one: &str| listen.strip_prefix(all).map(|port| format!("{one}{port}"));
    host("0.0.0.0:", "127.0.0.1:").or_else(|| host("[::]:", "[::1]:")).unwrap_or_else(|| listen.to_owned())
}

async fn page(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let question = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(question.as_bytes()).await?;
    let mut page = String::new();
    stream.take(LONGEST).read_to_string(&mut page).await?;
    Ok(page)
}

fn read(page: &str) -> Option<ReadyView> {
    let (head, body) = page.split_once("\r\n\r\n")?;
    let ready = match head.split(' ').nth(1)? {
        "200" => true,
        "503" => false,
        _ => return None,
    };
    let readyz: serde_json::Value = serde_json::from_str(body).ok()?;
    readyz.get("status")?;
    Some(ReadyView { ready, readyz })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_asked_at_one_of_them() {
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
