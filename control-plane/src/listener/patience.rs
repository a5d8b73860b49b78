//! How long a connection may say nothing.
//!
//! Two clocks, of which one runs while no request is in flight: that of an idle connection, and, from the first byte of a
//! request's head, that of the head, which further bytes don't wind again. Over HTTP/2 there is one: heads come in frames beside
//! others, so everything between two requests is idling, whatever frames come. When one runs out the peer seems to
//! have closed the connection, and it is closed. A third runs while an answer can't be written.
//!
//! While an answer is made no clock runs, so nothing would make anybody look again when it is sent: whoever sends it wakes who reads.
//!
//! hyper has one clock for the first two: either idle connections are closed under proxies that keep them for a minute, or
//! a head may take as long as that.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, Bytes};
use futures_util::task::AtomicWaker;
use http::Version;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::Terms;

/// What the socket has to know of the requests on it.
#[derive(Debug, Default)]
pub(super) struct Watch {
    in_flight: AtomicUsize,
    /// How many have come: one can come and go between two looks.
    begun: AtomicUsize,
    /// Frames of HTTP/2 are no heads.
    http2: AtomicBool,
    /// It isn't HTTP any more.
    upgraded: AtomicBool,
    /// Who reads, while a request is in flight.
    reader: AtomicWaker,
}

impl Watch {
    /// A request has come whole.
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> Served {
        if version == Version::HTTP_2 {
            self.http2.store(true, Ordering::Relaxed);
        }
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Served(Arc::clone(self))
    }

    /// From now on something else than HTTP is spoken, which has its own clocks.
    pub(super) fn leave(&self) {
        self.upgraded.store(true, Ordering::Relaxed);
    }
}

/// A request in flight, until its answer is sent.
pub(super) struct Served(Arc<Watch>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.reader.wake();
    }
}

impl Served {
    /// The answer's body, at whose end the request isn't in flight any more.
    pub(super) const fn until_sent(self, body: Body) -> Answer {
        Answer { body, _served: self }
    }
}

/// A body that keeps its request in flight.
pub(super) struct Answer {
    body: Body,
    _served: Served,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Head,
    Busy,
}

/// A stream whose peer is given up.
pub(super) struct Patient<S> {
    stream: S,
    watch: Arc<Watch>,
    header_timeout: Duration,
    keep_alive: Duration,
    phase: Phase,
    /// How many requests had come at the last look.
    seen: usize,
    reading: Pin<Box<Sleep>>,
    /// Runs while something can't be written.
    writing: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(super) fn new(stream: S, watch: Arc<Watch>, terms: &Terms) -> Self {
        Self {
            stream,
            watch,
            header_timeout: terms.header_timeout,
            keep_alive: terms.keep_alive,
            phase: Phase::Idle,
            seen: 0,
            // A connection is opened to be used.
            reading: Box::pin(tokio::time::sleep(terms.header_timeout)),
            writing: None,
        }
    }

    fn wind(&mut self, phase: Phase, time: Duration) {
        self.phase = phase;
        self.reading.as_mut().reset(Instant::now() + time);
    }

    /// Which clock runs now.
    fn look(&mut self) {
        let begun = self.watch.begun.load(Ordering::Relaxed);
        let others = begun != std::mem::replace(&mut self.seen, begun);
        if self.watch.in_flight.load(Ordering::Relaxed) > 0 || self.watch.upgraded.load(Ordering::Relaxed) {
            self.phase = Phase::Busy;
        } else if others || self.phase == Phase::Busy {
            self.wind(Phase::Idle, self.keep_alive);
        }
    }

    /// The peer has said something. On HTTP/2 that is no head, but the answer to a ping of ours, say: it says that the peer is alive, not
    /// that it wants anything.
    fn heard(&mut self) {
        if self.phase == Phase::Idle && !self.watch.http2.load(Ordering::Relaxed) {
            self.wind(Phase::Head, self.header_timeout);
        }
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() || self.watch.upgraded.load(Ordering::Relaxed) {
            self.writing = None;
            return outcome;
        }
        let patience = self.keep_alive;
        let clock = self.writing.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match clock.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => outcome,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.look();
        let before = buf.filled().len();
        if let Poll::Ready(outcome) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            if buf.filled().len() > before {
                self.heard();
            }
            return Poll::Ready(outcome);
        }
        if self.phase == Phase::Busy {
            self.watch.reader.register(cx.waker());
            // The last answer may have been sent since the look.
            self.look();
        }
        if self.phase == Phase::Busy {
            return Poll::Pending;
        }
        self.reading.as_mut().poll(cx).map(|()| Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.written(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.written(cx, outcome)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const HEAD: Duration = Duration::from_millis(100);
    const KEEP: Duration = Duration::from_secs(5);

    fn pair() -> (Patient<DuplexStream>, DuplexStream, Arc<Watch>) {
        let (near, far) = duplex(16);
        let watch = Arc::new(Watch::default());
        let terms =
            Terms { header_timeout: HEAD, keep_alive: KEEP, header_limit: 8192, connections: 1, allow: Vec::new() };
        (Patient::new(near, Arc::clone(&watch), &terms), far, watch)
    }

    /// The clocks are real: a slow machine may be late, but less than the one clock is longer than the other.
    #[track_caller]
    fn assert_about(elapsed: Duration, expected: Duration) {
        assert!((expected..expected + KEEP - HEAD).contains(&elapsed), "{elapsed:?} instead of {expected:?}");
    }

    /// Reads until the connection seems closed, and says after how long.
    async fn closed_after(patient: &mut Patient<DuplexStream>) -> Duration {
        let started = Instant::now();
        while patient.read(&mut [0; 16]).await.unwrap() > 0 {}
        started.elapsed()
    }

    #[tokio::test]
    async fn a_head_has_its_time_however_often_another_byte_of_it_comes() {
        let (mut patient, mut far, _) = pair();
        let drip = tokio::spawn(async move {
            loop {
                if far.write_all(b"x").await.is_err() {
                    return;
                }
                tokio::time::sleep(HEAD / 4).await;
            }
        });
        assert_about(closed_after(&mut patient).await, HEAD);
        drip.abort();
    }

    #[tokio::test]
    async fn a_new_connection_that_says_nothing_is_not_kept_as_long_as_one_that_was_used() {
        let (mut patient, _far, watch) = pair();
        assert_about(closed_after(&mut patient).await, HEAD);
        let served = watch.begin(Version::HTTP_11);
        patient.look();
        drop(served);
        assert_about(closed_after(&mut patient).await, KEEP);
    }

    #[tokio::test]
    async fn the_head_of_a_second_request_has_as_long_as_the_first_s() {
        let (mut patient, mut far, watch) = pair();
        drop(watch.begin(Version::HTTP_11));
        patient.phase = Phase::Busy;
        tokio::spawn(async move {
            tokio::time::sleep(KEEP / 2).await;
            far.write_all(b"GET").await.unwrap();
            std::future::pending::<()>().await;
        });
        assert_about(closed_after(&mut patient).await, KEEP / 2 + HEAD);
    }

    #[tokio::test]
    async fn no_clock_runs_while_a_request_is_in_flight_or_something_else_is_spoken() {
        let (mut patient, _far, watch) = pair();
        let served = watch.begin(Version::HTTP_11);
        let long = KEEP + HEAD;
        assert!(tokio::time::timeout(long, patient.read(&mut [0; 16])).await.is_err());
        watch.leave();
        drop(served);
        assert!(tokio::time::timeout(long, patient.read(&mut [0; 16])).await.is_err());
    }

    #[tokio::test]
    async fn frames_of_http_2_are_no_heads_and_keep_no_connection_that_nobody_uses() {
        let (mut patient, mut far, watch) = pair();
        drop(watch.begin(Version::HTTP_2));
        tokio::spawn(async move {
            for _ in 0..3 {
                tokio::time::sleep(KEEP / 2).await;
                far.write_all(b"ping").await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        assert_about(closed_after(&mut patient).await, KEEP);
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let (mut patient, _far, watch) = pair();
        let _served = watch.begin(Version::HTTP_11);
        let started = Instant::now();
        let error = patient.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_about(started.elapsed(), KEEP);
    }
}
