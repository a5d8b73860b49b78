//! The rest of a body that nobody read.
//!
//! Who refuses a request by its head leaves the body unread; the server would answer and close the connection, and a simple
//! client, which writes first and reads afterwards, would see a broken pipe and not the answer. So what is left is read and
//! thrown away first, up to a limit in size and time. A caller who waits to be asked for the body
//! (`Expect: 100-continue`) isn't asked.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{StatusCode, header},
    middleware::Next,
    response::Response,
};
use futures_util::StreamExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

/// How long the rest may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How much is read of a body that was refused for its size, in bytes: it is larger than the limit.
const TOO_LARGE: usize = 32 << 20;

/// The layer, for bodies of up to `limit` bytes.
pub(super) async fn drain(limit: usize, request: Request, next: Next) -> Response {
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return next.run(request).await;
    }
    let rest = Rest::default();
    let request = request.map(|body| Body::new(Lent { body: Some(body), rest: rest.clone() }));
    let response = next.run(request).await;
    let left = rest.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    let limit = match response.status() {
        // It had its time.
        StatusCode::REQUEST_TIMEOUT => return response,
        StatusCode::PAYLOAD_TOO_LARGE => limit.max(TOO_LARGE),
        _ => limit,
    };
    if let Some(body) = left {
        // Out of time or not, the answer is sent.
        let _in_time = tokio::time::timeout(DEADLINE, discard(body, limit)).await;
    }
    response
}

async fn discard(body: Body, limit: usize) {
    let mut chunks = body.into_data_stream();
    let mut seen = 0;
    while let Some(Ok(chunk)) = chunks.next().await {
        seen += chunk.len();
        if seen > limit {
            return;
        }
    }
}

/// Where a body that wasn't read to its end comes back to.
#[derive(Clone, Default)]
struct Rest(Arc<Mutex<Option<Body>>>);

/// A body that comes back when it is dropped.
struct Lent {
    body: Option<Body>,
    rest: Rest,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let unread = self.body.take().filter(|body| !body.is_end_stream());
        *self.rest.0.lock().unwrap_or_else(PoisonError::into_inner) = unread;
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}
