//! The tasks of one client.
//!
//! The library detaches most of its tasks. Here they all belong to the session: [`SessionRuntime::stop`] ends every one of
//! them at its next await, so that an aborted client is gone, not merely told to go.

use std::{future::Future, pin::Pin, time::Duration};

use async_trait::async_trait;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wacore::runtime::{AbortHandle, Runtime};

type Task = Pin<Box<dyn Future<Output = ()> + Send + 'static>>;

/// Where one client's tasks run.
#[derive(Clone, Default)]
pub struct SessionRuntime {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl SessionRuntime {
    /// Ends all tasks, and waits for it at most `patience`. Answers whether all have ended.
    pub async fn stop(&self, patience: Duration) -> bool {
        self.stop.cancel();
        self.tasks.close();
        timeout(patience, self.tasks.wait()).await.is_ok()
    }

    /// Runs a task that ends with the client.
    pub fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// Runs a task to its end, and keeps the client's end waiting for it.
    pub fn run_to_end<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.tasks.spawn(task)
    }
}

#[async_trait]
impl Runtime for SessionRuntime {
    fn spawn(&self, future: Task) -> AbortHandle {
        let stop = self.stop.clone();
        let task = self.tasks.spawn(async move {
            stop.run_until_cancelled(future).await;
        });
        AbortHandle::new(move || task.abort())
    }

    fn spawn_detached(&self, future: Task) {
        self.run(future);
    }

    fn sleep(&self, duration: Duration) -> Task {
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send + 'static>) -> Task {
        let work = self.tasks.spawn_blocking(work);
        Box::pin(async move {
            // The library can't be told of a panic here; the process's hook has logged it.
            work.await.unwrap_or_default();
        })
    }

    fn yield_now(&self) -> Option<Task> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn stopping_ends_even_detached_tasks_that_would_never_end() {
        let runtime = SessionRuntime::default();
        runtime.spawn_detached(Box::pin(pending()));
        runtime.spawn(Box::pin(pending())).detach();
        let nested = runtime.clone();
        runtime.spawn_detached(Box::pin(async move {
            nested.spawn_detached(Box::pin(pending()));
            pending::<()>().await;
        }));
        tokio::task::yield_now().await;
        assert!(runtime.stop(Duration::from_secs(5)).await);
    }
}
