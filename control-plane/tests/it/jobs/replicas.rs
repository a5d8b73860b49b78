//! Replicas that die in the middle of their work.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use control_plane::{
    jobs::{Claimed, Handler, JobKind, NewJob, Outcome, Runner, RunnerOptions},
    state::App,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rstest::rstest;
use shared::time::Timestamp;

use super::{FAST, KIND, enqueue, in_state, job};
use crate::{
    harness::Engine,
    parts::{Parts, eventually, number},
};

/// A lane may be taken from a replica that is held up for so long.
const OPTIONS: RunnerOptions = RunnerOptions { lease: Duration::from_secs(4), ..FAST };

/// What all replicas of a test saw.
#[derive(Default)]
struct Watch {
    running: Mutex<HashMap<String, usize>>,
    finished: Mutex<HashMap<String, usize>>,
    overlaps: AtomicUsize,
}

/// A lane that is worked on, for as long as this lives: also when the work is dropped half-way.
struct Busy<'a>(&'a Watch, String);

impl<'a> Busy<'a> {
    fn new(watch: &'a Watch, lane: &str) -> Self {
        let mut running = watch.running.lock().unwrap();
        let count = running.entry(lane.to_owned()).or_default();
        *count += 1;
        if *count > 1 {
            watch.overlaps.fetch_add(1, Ordering::Relaxed);
        }
        drop(running);
        Self(watch, lane.to_owned())
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        *self.0.running.lock().unwrap().get_mut(&self.1).unwrap() -= 1;
    }
}

/// A handler that takes a while, and succeeds, fails, panics or says nothing by chance.
struct Chancy {
    watch: Arc<Watch>,
    rng: Mutex<StdRng>,
}

#[async_trait]
impl Handler for Chancy {
    fn kind(&self) -> JobKind {
        KIND
    }
    fn batch(&self) -> usize {
        3
    }
    fn concurrency(&self) -> usize {
        6
    }
    async fn run(&self, _: &App, jobs: Vec<Claimed>) -> Vec<Outcome> {
        let _busy = Busy::new(&self.watch, &jobs[0].lane);
        assert!(jobs.iter().all(|job| job.lane == jobs[0].lane), "a batch is of one lane");
        assert!(jobs.windows(2).all(|pair| pair[0].id < pair[1].id), "the oldest first");
        let (work, chance) = {
            let mut rng = self.rng.lock().unwrap();
            (rng.random_range(0..15), rng.random_range(0..100))
        };
        tokio::time::sleep(Duration::from_millis(work)).await;
        match chance {
            0..3 => panic!("by chance"),
            3..6 => Vec::new(),
            6..20 => jobs.iter().map(|_| Outcome::RetryAt(Timestamp::now(), "by chance")).collect(),
            _ => {
                let mut finished = self.watch.finished.lock().unwrap();
                for job in &jobs {
                    *finished.entry(job.subject.clone()).or_default() += 1;
                }
                jobs.iter().map(|_| Outcome::Done).collect()
            }
        }
    }
}

/// Two replicas work, and one after the other is killed: its runtime is dropped, leases and all.
#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_job_is_lost_or_run_twice_at_once_while_replicas_die(#[case] engine: Engine, #[values(1, 2)] seed: u64) {
    const JOBS: usize = 120;
    let Some(parts) = Parts::new(engine).await else { return };
    let parts = Arc::new(parts);
    let app = parts.replica().await;
    let watch = Arc::new(Watch::default());
    let mut rng = StdRng::seed_from_u64(seed);
    for number in 0..JOBS {
        let new = NewJob { max_attempts: 1000, ..job(format!("lane:{}", rng.random_range(0..9)), number.to_string()) };
        enqueue(&app, new).await;
    }
    let start = |number: u64| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (parts, watch) = (Arc::clone(&parts), Arc::clone(&watch));
        runtime.spawn(async move {
            let app = parts.replica().await;
            let rng = Mutex::new(StdRng::seed_from_u64(seed * 100 + number));
            let runner = Runner::start_with(&app, vec![Arc::new(Chancy { watch, rng })], OPTIONS);
            runner.stopped().await;
        });
        runtime
    };
    let mut replicas = vec![start(0), start(1)];
    for number in 2..5 {
        // Killed somewhere in the middle of its work.
        let progress = watch.finished.lock().unwrap().len();
        let more = rng.random_range(1..12);
        eventually("some progress", async || {
            let finished = watch.finished.lock().unwrap().len();
            finished >= progress + more || finished == JOBS
        })
        .await;
        replicas.remove(0).shutdown_background();
        replicas.push(start(number));
    }
    eventually("every job is done", async || in_state(&app, "done").await == JOBS as i64).await;
    assert_eq!(watch.overlaps.load(Ordering::Relaxed), 0, "a lane was worked on twice at once");
    assert_eq!(watch.finished.lock().unwrap().len(), JOBS);
    assert_eq!(number(&app, "SELECT COUNT(*) FROM jobs").await, JOBS as i64);
    for replica in replicas {
        replica.shutdown_background();
    }
    app.db.clone().close().await;
    eventually("the replicas are gone", async || Arc::strong_count(&parts) == 1).await;
    Arc::try_unwrap(parts).ok().unwrap().remove().await;
}
