//! P9: transactional enqueues, one job a transaction, at several sizes of what waits already.

use std::time::Duration;

use clap::Args;
use control_plane::{
    db::Db,
    jobs::{self, JobKind, NewJob},
};
use serde_json::json;
use shared::{ids::TenantId, time::Timestamp};
use tokio::{task::JoinSet, time::Instant};

use crate::{Common, report::Report, system};

#[derive(Debug, Args)]
pub struct Options {
    /// Jobs that wait already.
    #[arg(long, value_delimiter = ',', default_value = "1000,20000,200000")]
    sizes: Vec<usize>,
    /// Callers at once.
    #[arg(long, default_value_t = 32)]
    callers: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

pub async fn run(common: &Common, options: &Options) -> anyhow::Result<Report> {
    let mut report = Report::new(
        format!("Transactional enqueues, {}", common.database.name()),
        json!({ "callers": options.callers, "seconds": options.seconds }),
        &["jobs that wait", "enqueues a second", "µs each"],
    );
    let folder = tempfile::tempdir()?;
    let url = system::database(common.database, folder.path(), "enqueue").await?;
    let db = Db::connect(&url, u32::try_from(options.callers)?).await?;
    db.migrate().await?;
    let mut points = Vec::new();
    let mut waiting = 0;
    for size in &options.sizes {
        if *size > waiting {
            let tx = db.write().await?;
            for number in waiting..*size {
                jobs::enqueue(&tx, job(number)).await?;
            }
            tx.commit().await?;
        }
        let began = Instant::now();
        let end = began + Duration::from_secs(options.seconds);
        let mut callers = JoinSet::new();
        for caller in 0..options.callers {
            let db = db.clone();
            callers.spawn(async move {
                let mut done = 0_u32;
                while Instant::now() < end {
                    let tx = db.write().await?;
                    jobs::enqueue(&tx, job(caller)).await?;
                    tx.commit().await?;
                    done += 1;
                }
                Ok::<_, sea_orm::DbErr>(done)
            });
        }
        let mut done = 0;
        for caller in callers.join_all().await {
            done += caller?;
        }
        let rate = f64::from(done) / began.elapsed().as_secs_f64();
        report.row(vec![(*size).into(), rate.into(), (1e6 / rate).into()]);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        points.push((*size as f64, 1e6 / rate));
        waiting = *size + usize::try_from(done)?;
    }
    if let Some(exponent) = crate::report::exponent(&points) {
        report.note(format!("Cost grows with the backlog to the power of {exponent:.2}."));
    }
    db.close().await;
    Ok(report)
}

fn job(lane: usize) -> NewJob {
    NewJob {
        tenant_id: TenantId::new(),
        kind: JobKind::DeliverWebhook,
        lane: format!("bench:{}", lane % 1_000),
        subject: "bench".into(),
        run_at: Timestamp::now(),
        max_attempts: 5,
    }
}
