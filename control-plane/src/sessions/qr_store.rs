//! QR codes, kept in Redis until they expire, so that whoever shows one asks the worker once for each code, through whichever replica.
//!
//! A code belongs to one moment of the session: to a generation, a restart, a state and its number in it. It is shown only while the
//! session's row tells of that very moment, so a code that was scanned, or followed by another, isn't shown any longer than without Redis;
//! nothing needs to be dropped in time. It links a device to an account: it lies there sealed.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use shared::{
    time::Timestamp,
    wire::{
        linking::QrCode,
        session::{Observed, SessionView},
    },
};

use super::entity::{DesiredColumn, Model};
use crate::{
    redis::sealed::{self, Slot},
    state::App,
};

/// Which code it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Moment {
    generation: i64,
    restart_seq: i64,
    since_ms: i64,
    qr_seq: i64,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    moment: Moment,
    code: QrCode,
}

/// The moment that the row tells of, while a code is to be scanned.
fn of_row(row: &Model) -> Option<Moment> {
    let pairing = row.observed.as_ref().is_some_and(|observed| observed.0 == Observed::Pairing);
    let runs = row.desired == DesiredColumn::Running && row.worker_id.is_some();
    (pairing && runs && row.observed_generation == row.generation).then_some(())?;
    Some(Moment {
        generation: row.generation,
        restart_seq: row.observed_restart_seq,
        since_ms: row.observed_since?.as_millis(),
        qr_seq: row.qr_seq?,
    })
}

/// The moment that the worker tells of.
fn of_view(view: &SessionView) -> Option<Moment> {
    Some(Moment {
        generation: view.report.generation,
        restart_seq: view.report.restart_seq,
        since_ms: Timestamp::from(view.report.since).as_millis(),
        qr_seq: view.report.qr_seq?,
    })
}

/// The code that the session shows now, if it is known here.
pub(super) async fn current(app: &App, row: &Model, now: DateTime<Utc>) -> Option<QrCode> {
    let moment = of_row(row)?;
    let kept: Kept = sealed::get(app, Slot::Qr, &row.id).await?;
    (kept.moment == moment && kept.code.expires_at > now).then_some(kept.code)
}

/// Keeps what the worker showed until it expires.
pub(super) async fn keep(app: &App, view: &SessionView, now: DateTime<Utc>) {
    let (Some(code), Some(moment)) = (&view.qr, of_view(view)) else { return };
    // Nothing is left of one that has expired.
    let Ok(left) = (code.expires_at - now).to_std() else { return };
    sealed::put(app, Slot::Qr, &view.report.session_id, &Kept { moment, code: code.clone() }, left).await;
}
