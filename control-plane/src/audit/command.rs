//! Commands of the program: recording those that change something, and `verify-audit`.

use std::{future::Future, path::Path, sync::Arc};

use anyhow::Context;
use shared::ids::TenantId;

use super::{
    entity::{ActorType, AuditResult, Phase},
    entry::{Answered, ENTRY, Entry},
    heads::Heads,
    log::Log,
    verify,
};
use crate::{db::Db, error::database_error_kind, objects::Objects};

/// Does what a command is for, with an intent before and an outcome after, in the log of the installation.
///
/// # Errors
/// As `work`; without having begun it if the intent can't be written.
pub async fn recorded<T>(
    log: &Log,
    db: &Db,
    operation: &str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let said_no = |error| anyhow::anyhow!("the audit log can't be written ({})", database_error_kind(&error));
    let entry = Arc::new(Entry::new(operation, None, None));
    entry.by(ActorType::Command, None);
    log.write_in(db.autocommit(), entry.fact(Phase::Intent, Answered::default())).await.map_err(said_no)?;
    let done = ENTRY.scope(Arc::clone(&entry), work).await;
    let result = if done.is_ok() { AuditResult::Succeeded } else { AuditResult::Failed };
    let outcome = entry.fact(Phase::Outcome, Answered { result: Some(result), ..Answered::default() });
    log.write_in(db.autocommit(), outcome).await.map_err(said_no)?;
    done
}

/// With which heads a log is compared.
pub enum Against<'a> {
    /// Those of the last days in the object store.
    Store(&'a Objects, u32),
    /// Those of a file.
    File(&'a Path),
}

/// Verifies, and gives what is to be printed and whether all is well.
///
/// # Errors
/// If the log or the heads can't be read.
pub async fn verified(
    log: &Log,
    db: &Db,
    only: Option<&TenantId>,
    against: Against<'_>,
) -> anyhow::Result<(String, bool)> {
    let heads = match against {
        Against::Store(objects, days) => Heads::of_last_days(log, objects, days).await?,
        Against::File(path) => {
            let mut heads = Heads::default();
            let text = tokio::fs::read(path).await.with_context(|| format!("{} can't be read", path.display()))?;
            heads.add(log, &text).with_context(|| format!("{} can't be used", path.display()))?;
            heads
        }
    };
    let report = verify::verify(db.read(), log, only, &heads)
        .await
        .map_err(|error| anyhow::anyhow!("the database said no ({})", database_error_kind(&error)))?;
    anyhow::ensure!(
        only.is_none() || report.rows > 0 || !report.wrong.is_empty(),
        "there is no audit log of this tenant: its id is wrong, or it was deleted"
    );
    let mut said = String::new();
    for (of, wrong) in &report.wrong {
        said.push_str(&format!("{of}\t{wrong}\n"));
    }
    said.push_str(&format!("{} logs, {} rows, {} files of heads: ", report.logs, report.rows, heads.files));
    said.push_str(&match report.wrong.len() {
        0 if heads.files == 0 => "as written; without heads an end that was cut off isn't seen\n".to_owned(),
        0 => "as written\n".to_owned(),
        wrong => format!("{wrong} findings\n"),
    });
    Ok((said, report.wrong.is_empty()))
}
