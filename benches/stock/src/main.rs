//! The server for comparison: it allows every request.
//!
//! It uses tonic and the generated types of Envoy's protocol as their documentation shows. It listens on the address of
//! its first argument, `host:port` or `unix:/path`, and prints that address.

use envoy_types::ext_authz::v3::CheckResponseExt as _;
use envoy_types::ext_authz::v3::pb::{Authorization, AuthorizationServer, CheckRequest, CheckResponse};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

struct Yes;

#[tonic::async_trait]
impl Authorization for Yes {
    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        Ok(Response::new(CheckResponse::with_status(Status::ok(""))))
    }
}

#[tokio::main(worker_threads = 1)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).ok_or("missing argument: the address")?;
    let router = Server::builder().add_service(AuthorizationServer::new(Yes));
    if let Some(path) = address.strip_prefix("unix:") {
        let listener = UnixListener::bind(path)?;
        println!("listening {address}");
        router.serve_with_incoming(UnixListenerStream::new(listener)).await?;
    } else {
        let listener = TcpListener::bind(&address).await?;
        println!("listening {}", listener.local_addr()?);
        router.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))).await?;
    }
    Ok(())
}
