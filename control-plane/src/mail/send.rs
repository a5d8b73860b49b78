//! The job that sends one mail.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, Statement};
use shared::{ids::MailId, time::Timestamp};

use super::{
    Letter, MailConfigError, REDRIVEN_WITHIN, call_off, place,
    transport::{Failure, Sent, Transport},
};
use crate::{
    config::MailConfig,
    error::{ApiError, ApiResult, Kind, database_error_kind},
    jobs::{Claimed, DeadJob, Handler, JobKind, Outcome},
    state::App,
};

/// How many mails this process sends at once.
const CONCURRENCY: usize = 8;
/// How long to wait after a failure of ours.
const OUR_FAULT_WAIT: Duration = Duration::from_secs(10);
/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(3 * 3600);

/// A letter could not be written now.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The database doesn't answer.
    #[error(transparent)]
    Database(#[from] DbErr),
    /// What is stored can't be used: it never will be.
    #[error("{0}")]
    Defect(&'static str),
}

impl From<ApiError> for WriteError {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Database(error) => Self::Database(error),
            ApiError::Defect(what) => Self::Defect(what),
            ApiError::Refused(_) => Self::Defect("a letter was refused"),
        }
    }
}

/// Writes the letters of one domain.
#[async_trait]
pub trait Writer: Send + Sync + 'static {
    /// The kinds that it knows.
    fn kinds(&self) -> &'static [&'static str];

    /// Writes one; nothing if there is nobody to write to, or no need any more. May be called again for the same mail, which may have
    /// arrived: what it carries (a token) is to be the same.
    async fn write(&self, app: &App, mail: &MailId, kind: &str, about: &[u8]) -> Result<Option<Letter>, WriteError>;
}

/// Runs the jobs of mails.
pub struct Sender {
    transport: Transport,
    writers: Vec<Arc<dyn Writer>>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender(…)")
    }
}

impl Sender {
    /// With the writers of every domain that sends mail.
    ///
    /// # Errors
    /// [`MailConfigError`] if the settings can't be used.
    pub fn new(config: &MailConfig, writers: Vec<Arc<dyn Writer>>) -> Result<Self, MailConfigError> {
        Ok(Self { transport: Transport::new(config)?, writers })
    }

    async fn send(&self, app: &App, job: &Claimed) -> Result<Outcome, WriteError> {
        let id: MailId = job.subject.parse().map_err(|_| WriteError::Defect("a mail's job has no mail"))?;
        let engine = app.db.engine();
        let query = "SELECT kind, sealed_data FROM mails WHERE id = $1";
        let row =
            app.db.read().query_one_raw(Statement::from_sql_and_values(engine, query, [id.clone().into()])).await?;
        let Some(row) = row else { return Ok(Outcome::Done) };
        let (kind, sealed): (String, Vec<u8>) = (row.try_get("", "kind")?, row.try_get("", "sealed_data")?);
        let writer = self
            .writers
            .iter()
            .find_map(|writer| writer.kinds().iter().find(|known| **known == kind).map(|known| (writer, *known)));
        let Some((writer, kind)) = writer else { return Err(WriteError::Defect("nobody writes this kind of mail")) };
        let about = app
            .master_key
            .open(&place(&id, kind), &sealed)
            .map_err(|_| WriteError::Defect("a mail's row doesn't open"))?;
        let (outcome, word) = match writer.write(app, &id, kind, &about).await? {
            None => (Outcome::Done, "dropped"),
            Some(letter) => match self.transport.send(&id, kind, &letter).await {
                Ok(Sent::Accepted) => (Outcome::Done, "sent"),
                Ok(Sent::Shown) => (Outcome::Done, "shown"),
                Err(Failure::Later(why)) => {
                    tracing::warn!(mail = %id, attempt = job.attempts, why, "a mail was not sent; trying again");
                    (Outcome::RetryAt(Timestamp::now().plus(wait_after(job.attempts)), why), "failed")
                }
                Err(Failure::Never(why)) => {
                    tracing::warn!(mail = %id, why, "a mail can't be sent");
                    (Outcome::Dead(why), "failed")
                }
            },
        };
        metrics::counter!("mails_total", "kind" => kind, "outcome" => word).increment(1);
        // One that is given up can be redriven.
        if outcome == Outcome::Done {
            call_off(app.db.autocommit(), id).await?;
        }
        Ok(outcome)
    }
}

/// Doubling from 5 s to three hours.
fn wait_after(attempts: u32) -> Duration {
    (Duration::from_secs(5) * 2_u32.saturating_pow(attempts.saturating_sub(1).min(20))).min(LONGEST_WAIT)
}

#[async_trait]
impl Handler for Sender {
    fn kind(&self) -> JobKind {
        JobKind::SendMail
    }

    fn batch(&self) -> usize {
        1
    }

    fn concurrency(&self) -> usize {
        CONCURRENCY
    }

    async fn run(&self, app: &App, jobs: Vec<Claimed>) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(jobs.len());
        for job in jobs {
            outcomes.push(match self.send(app, &job).await {
                Ok(outcome) => outcome,
                Err(WriteError::Database(error)) => {
                    tracing::warn!(kind = database_error_kind(&error), "a mail waits for the database");
                    Outcome::RetryAt(Timestamp::now().plus(OUR_FAULT_WAIT), "our fault")
                }
                Err(WriteError::Defect(what)) => {
                    tracing::error!(what, "a mail can't be written");
                    Outcome::Dead(what)
                }
            });
        }
        outcomes
    }

    /// What the mail is about was kept. Whether there is still somebody to write to, its writer looks up when it is sent.
    async fn revive(&self, _: &App, tx: &DatabaseTransaction, job: &DeadJob) -> ApiResult<()> {
        let query = "SELECT created_at FROM mails WHERE id = $1";
        let values = [job.subject.as_str().into()];
        let row = tx.query_one_raw(Statement::from_sql_and_values(tx.get_database_backend(), query, values)).await?;
        let Some(row) = row else { return Err(Kind::Conflict.because("it is not kept any more").into()) };
        let asked_for: Timestamp = row.try_get("", "created_at")?;
        if Timestamp::now().since(asked_for) >= REDRIVEN_WITHIN {
            return Err(Kind::Conflict.because("it was asked for more than a week ago").into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::ATTEMPTS;

    #[test]
    fn all_attempts_together_take_between_half_a_day_and_two() {
        let all: Duration = (1..ATTEMPTS).map(wait_after).sum();
        assert!((12 * 3600..48 * 3600).contains(&all.as_secs()), "{all:?}");
        assert_eq!(wait_after(u32::MAX), LONGEST_WAIT);
    }
}
