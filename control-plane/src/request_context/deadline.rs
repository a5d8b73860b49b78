//! How long a request may take, and whose fault it is if it takes longer: 408 if it was its body that was waited for, else 503.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::error::Kind;

/// The layer.
pub(super) async fn deadline(within: Duration, request: Request, next: Next) -> Response {
    let waiting = Arc::new(AtomicBool::new(false));
    let request = request.map(|body| Body::new(Arriving { body, waiting: Arc::clone(&waiting) }));
    let Ok(response) = tokio::time::timeout(within, next.run(request)).await else {
        let (kind, what) = if waiting.load(Ordering::Relaxed) {
            (Kind::RequestTimeout, "the body took")
        } else {
            (Kind::Unavailable, "this took")
        };
        return kind.because(format!("{what} longer than {} s", within.as_secs())).into_response();
    };
    response
}

/// A body that tells whether more of it is being waited for.
struct Arriving {
    body: Body,
    waiting: Arc<AtomicBool>,
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.waiting.store(frame.is_pending(), Ordering::Relaxed);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
