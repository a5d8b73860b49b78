//! Hands queued messages to the worker that holds their session.

/// The handler of `JobKind::SendMessages`, for the jobs' runner.
#[derive(Debug, Clone, Copy, Default)]
pub struct SendHandler;
