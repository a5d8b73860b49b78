//! Mail to people: written when it is sent, and sent however often the process dies before it is.
//!
//! **Owns** the table `mails`: what is to be written about, sealed with the master key, until it is sent.
//!
//! A domain asks for a mail in its own transaction ([`ask`]), which commits a row and a job with its change, and rings
//! [`JobKind::SendMail`]. The job asks the domain's [`Writer`] for the letter only when it is about to be sent. So a token in a
//! mail exists nowhere but in that mail (the database holds its hash), and whether there is anybody to write to is looked
//! up long after the request was answered: an answer can't tell, by its content or its time.
//!
//! **Without `SMTP_URL`** (development) nothing is sent: the link of the letter is written to the log, once, at level INFO under
//! the target `control_plane::mail`. It is the one secret that ever is, and never is on an installation that sends mail.
//!
//! **Invariants.** A committed request is sent at least once or given up after [`ATTEMPTS`] attempts, over half a day. A mail
//! that is sent twice has the same `Message-ID`. A sending takes [`DEADLINE`] at most. The row goes when the mail has gone; that of one that was
//! given up is kept for a week, in which its job can be redriven.

mod letter;
mod send;
mod transport;

use std::time::Duration;

pub use letter::{Action, Letter};
use sea_orm::{ConnectionTrait, DbErr, Statement};
pub use send::{Sender, WriteError, Writer};
use serde::Serialize;
use shared::{ids::MailId, seal::Place, time::Timestamp};
pub use transport::MailConfigError;

use crate::{
    error::{ApiError, ApiResult},
    jobs::{self, JobKind, NewJob},
    state::App,
    sweep,
};

/// How often the sending of a mail is tried.
pub const ATTEMPTS: u32 = 16;
/// How long one try may take, all told.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// For how long after it was asked for a mail that was given up can be sent after all. Somebody who gets it later has asked anew, or
/// what it is about is over: no invitation stands for longer.
const REDRIVEN_WITHIN: Duration = Duration::from_secs(7 * 24 * 3600);
/// For how long its row is kept: longer, so that none goes while it is being redriven.
const KEPT: Duration = Duration::from_secs(8 * 24 * 3600);
/// How many rows one statement deletes.
const BATCH: i64 = 1000;

fn place<'a>(id: &'a MailId, kind: &'a str) -> Place<'a> {
    Place { owner: kind, table: "mails", row: id.as_str() }
}

/// Asks for a mail, in the caller's transaction. `kind` names the [`Writer`] that will know what to make of `about`. Ring
/// [`JobKind::SendMail`] after the commit.
///
/// # Errors
/// As the database; a defect if `about` has no JSON form.
pub async fn ask<C: ConnectionTrait, T: Serialize>(
    app: &App,
    connection: &C,
    kind: &'static str,
    about: &T,
) -> ApiResult<MailId> {
    let id = MailId::new();
    let now = Timestamp::now();
    let about = serde_json::to_vec(about).map_err(|_| ApiError::Defect("what a mail is about has no JSON form"))?;
    let sealed = app.master_key.seal(&place(&id, kind), &about)?;
    connection
        .execute_raw(Statement::from_sql_and_values(
            connection.get_database_backend(),
            "INSERT INTO mails (id, kind, sealed_data, created_at) VALUES ($1, $2, $3, $4)",
            [id.clone().into(), kind.into(), sealed.into(), now.into()],
        ))
        .await?;
    let job = NewJob {
        // The installation's own work: when it is asked for, nobody knows yet whether there is a tenant.
        tenant_id: jobs::schedule::installation(),
        kind: JobKind::SendMail,
        lane: format!("mail:{}", id.as_str()),
        subject: id.as_str().into(),
        run_at: now,
        max_attempts: ATTEMPTS,
    };
    jobs::enqueue(connection, job).await?;
    Ok(id)
}

/// Has a mail not sent any more, if it still waits for a try: what it carries was used.
///
/// # Errors
/// As the driver.
pub(crate) async fn call_off<C: ConnectionTrait>(connection: &C, id: MailId) -> Result<(), DbErr> {
    let statement = "DELETE FROM mails WHERE id = $1";
    let statement = Statement::from_sql_and_values(connection.get_database_backend(), statement, [id.into()]);
    connection.execute_raw(statement).await.map(drop)
}

/// Deletes what is kept of mails that were given up, once they can't be redriven any more.
///
/// # Errors
/// As the driver.
pub async fn prune(app: &App) -> Result<(), DbErr> {
    let statement = "DELETE FROM mails WHERE id IN (SELECT id FROM mails WHERE created_at <= $1 AND NOT EXISTS \
                     (SELECT 1 FROM jobs WHERE jobs.lane = 'mail:' || mails.id AND jobs.state = 'ready') AND NOT EXISTS \
                     (SELECT 1 FROM jobs WHERE jobs.lane = 'mail:' || mails.id AND jobs.state = 'running') LIMIT $2)";
    sweep::before(app, BATCH, statement, Timestamp::now().minus(KEPT)).await.map(drop)
}

/// Explains the figures to whoever reads `/metrics`.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!("mails_total", "Mails by kind and what became of them (sent, shown, dropped, failed).");
}
