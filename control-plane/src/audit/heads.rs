//! The ends of all logs, copied hourly to the object store: what was there then can't be cut off unseen.
//!
//! One file for each hour, of JSON lines, each with an HMAC of its own. Files stay until somebody removes them.

use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Seek, Write},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use sea_orm::{ColumnTrait, DbErr, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use serde::{Deserialize, Serialize};
use shared::time::Timestamp;

use super::{entity::head, log::Log, metrics};
use crate::{
    objects::{ObjectError, Objects},
    state::App,
};

/// How many heads are read at once.
const BATCH: u64 = 1000;
/// The largest file that is read, in bytes.
const LARGEST: u64 = 256 << 20;
const HOUR: Duration = Duration::from_secs(3600);

/// Heads could not be copied or read.
#[derive(Debug, thiserror::Error)]
pub enum HeadsError {
    /// The database said no.
    #[error("the database said no ({})", crate::error::database_error_kind(.0))]
    Database(#[from] DbErr),
    /// The store said no.
    #[error(transparent)]
    Objects(#[from] ObjectError),
    /// A file at hand could not be used.
    #[error("a file can't be read or written")]
    File(#[from] io::Error),
    /// A head has no JSON form.
    #[error("a line of heads can't be read")]
    Json(#[from] serde_json::Error),
    /// Which file of the object store it is.
    #[error("{0} in the object store can't be used")]
    Named(String, #[source] Box<Self>),
    /// Too large.
    #[error("a file of heads is larger than 256 MiB")]
    TooLarge,
}

/// One line of a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    tenant_id: String,
    position: i64,
    /// Base64.
    link: String,
    exported_at: Timestamp,
    /// Base64, over the rest.
    mac: String,
}

impl Line {
    fn mac(&self, log: &Log) -> String {
        let text = format!("audit head 1\n{}\n{}\n{}\n{}", self.tenant_id, self.position, self.link, self.exported_at);
        STANDARD.encode(log.head_key.keyed_hash(text.as_bytes()))
    }
}

/// Ends of logs as they were at some time: by log and position, the link there.
#[derive(Debug, Default)]
pub struct Heads {
    pub(super) links: BTreeMap<String, BTreeMap<i64, Vec<u8>>>,
    /// How many lines weren't written by this installation.
    pub(super) forged: usize,
    /// How many files were read.
    pub files: usize,
}

impl Heads {
    /// Adds the lines of a file.
    ///
    /// # Errors
    /// [`HeadsError::Json`] for a line that isn't one.
    pub fn add(&mut self, log: &Log, text: &[u8]) -> Result<(), HeadsError> {
        self.files += 1;
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line: Line = serde_json::from_slice(line)?;
            match STANDARD.decode(&line.link) {
                Ok(link) if line.mac == line.mac(log) => {
                    self.links.entry(line.tenant_id).or_default().insert(line.position, link);
                }
                _ => self.forged += 1,
            }
        }
        Ok(())
    }

    /// Those of the last days in the object store, as far as there are any.
    ///
    /// # Errors
    /// [`HeadsError`].
    pub async fn of_last_days(log: &Log, objects: &Objects, days: u32) -> Result<Self, HeadsError> {
        let mut heads = Self::default();
        let now = Timestamp::now();
        for hours in 0..=days.saturating_mul(24) {
            let file = name(now.minus(HOUR * hours));
            let reading = match objects.read(&file).await {
                Ok(reading) => reading,
                Err(ObjectError::Missing) => continue,
                Err(error) => return Err(error.into()),
            };
            if reading.bytes > LARGEST {
                return Err(HeadsError::TooLarge);
            }
            let parts: Vec<bytes::Bytes> = reading.content.try_collect().await?;
            heads.add(log, &parts.concat()).map_err(|error| HeadsError::Named(file, Box::new(error)))?;
        }
        Ok(heads)
    }
}

/// Of the file of an hour.
fn name(at: Timestamp) -> String {
    let at: DateTime<Utc> = DateTime::from_timestamp_millis(at.as_millis()).unwrap_or_default();
    format!("audit/heads/{}.jsonl", at.format("%Y-%m-%dT%H"))
}

/// Copies the ends of all logs to the object store.
///
/// # Errors
/// [`HeadsError`].
pub async fn export(app: &App) -> Result<(), HeadsError> {
    let done = export_now(app).await;
    if done.is_err() {
        metrics::failed("heads");
    }
    done
}

async fn export_now(app: &App) -> Result<(), HeadsError> {
    let now = Timestamp::now();
    let mut file = BufWriter::new(tempfile::tempfile()?);
    let mut after = String::new();
    loop {
        let heads = head::Entity::find()
            .filter(head::Column::TenantId.gt(after.as_str()))
            .order_by_asc(head::Column::TenantId)
            .limit(BATCH)
            .all(app.db.read())
            .await?;
        let Some(last) = heads.last() else { break };
        after.clone_from(&last.tenant_id);
        for head in heads {
            let mut line = Line {
                tenant_id: head.tenant_id,
                position: head.position,
                link: STANDARD.encode(&head.link),
                exported_at: now,
                mac: String::new(),
            };
            line.mac = line.mac(&app.audit);
            serde_json::to_writer(&mut file, &line)?;
            file.write_all(b"\n")?;
        }
    }
    let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    app.objects.store(&name(now), file).await?;
    Ok(())
}
