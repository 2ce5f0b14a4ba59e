//! Bridges `h2` streams to tower services.
//!
//! Health and reflection are tower services, which use `http_body`. They are called rarely, so each call gets a
//! task, and its bodies are passed on frame by frame.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::Limited;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::ServiceExt as _;

use super::memory_budget::CountedBuf;

/// Answers a call with the service that it names, which reads at most `most` bytes of its body. Calls
/// `unknown` first if there is no such service or method.
pub(super) async fn answer(
    others: Routes,
    request: Request<RecvStream>,
    most: usize,
    mut respond: SendResponse<CountedBuf>,
    unknown: impl FnOnce(),
) {
    let response: Result<Response<_>, Infallible> =
        others.oneshot(request.map(|body| Limited::new(Incoming(body), most))).await;
    let Ok(response) = response;
    let (head, body) = response.into_parts();
    let ended = body.is_end_stream();
    if Status::from_header_map(&head.headers).is_some_and(|status| status.code() == Code::Unimplemented) {
        unknown();
    }
    if let Ok(stream) = respond.send_response(Response::from_parts(head, ()), ended)
        && !ended
    {
        send(stream, body).await;
    }
}

async fn send(mut stream: SendStream<CountedBuf>, body: tonic::body::Body) {
    let mut body = std::pin::pin!(body);
    // Stops streaming once the client resets the stream.
    let mut next = async |stream: &mut SendStream<CountedBuf>| {
        poll_fn(|cx| match stream.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(Err(Gone)),
            Poll::Pending => body.as_mut().poll_frame(cx).map(Ok),
        })
        .await
    };
    while let Ok(frame) = next(&mut stream).await {
        match frame.map(|frame| frame.map(Frame::into_data)) {
            None => return drop(stream.send_data(Bytes::new().into(), true)),
            Some(Err(_)) => return stream.send_reset(Reason::INTERNAL_ERROR),
            Some(Ok(Ok(data))) => {
                if send_all(&mut stream, data).await.is_err() {
                    return;
                }
            }
            Some(Ok(Err(frame))) => {
                return drop(frame.into_trailers().map(|trailers| stream.send_trailers(trailers)));
            }
        }
    }
}

/// The peer has reset the stream or disconnected.
struct Gone;

/// Sends data as fast as the peer's flow-control window allows, so that no backlog builds up.
async fn send_all(stream: &mut SendStream<CountedBuf>, mut data: Bytes) -> Result<(), Gone> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = poll_fn(|cx| stream.poll_capacity(cx)).await.ok_or(Gone)?.map_err(|_| Gone)?;
        let part = data.split_to(room.min(data.len()));
        stream.send_data(part.into(), false).map_err(|_| Gone)?;
    }
    Ok(())
}

/// The body of a request.
struct Incoming(RecvStream);

impl Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match ready!(self.0.poll_data(cx)) {
            Some(Ok(data)) => {
                let _ = self.0.flow_control().release_capacity(data.len());
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => match ready!(self.0.poll_trailers(cx)) {
                Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(None) => Poll::Ready(None),
                Err(error) => Poll::Ready(Some(Err(error))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
