//! What changes messages, inside the caller's transaction, which holds the session's row lock.

use std::time::Duration;

use rand::RngExt;
use sea_orm::{ActiveEnum, ActiveModelTrait, DatabaseTransaction, DbErr, IntoActiveModel};
use serde_json::json;
use shared::time::Timestamp;

use super::{
    dto::MessageDto,
    entity::Model,
    policy::{Word, apply, steps},
};
use crate::{
    auth::TenantScope,
    error::{ApiResult, Kind},
    events::{EventType, NewEvent},
    plans::quota,
    sessions::{
        self,
        entity::DesiredColumn,
        status::{Facts, State as SessionState, status},
    },
    usage::{self, Fact, Meter},
    workers,
};

/// How long a message waits for its chance, unless it is sent.
pub(super) const EXPIRES_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Refuses messages for a session that isn't to run, or can't; gives the worker that holds it, if one does.
///
/// # Errors
/// 409 `session-not-running`; as the driver.
pub(super) async fn holder_for_sends(
    tx: &DatabaseTransaction,
    session: &sessions::entity::Model,
    now: Timestamp,
) -> ApiResult<Option<workers::entity::Model>> {
    let holder = sessions::service::holder(tx, session).await?;
    let status = status(Facts::of(session, holder.as_ref(), now)).status;
    let ended =
        matches!(status, SessionState::Stopped | SessionState::LoggedOut | SessionState::Banned | SessionState::Failed);
    if session.desired != DesiredColumn::Running || ended {
        return Err(Kind::SessionNotRunning.because(format!("the session is {}", status.as_str())).into());
    }
    Ok(holder)
}

/// A new id on WhatsApp, as its web clients make them: `3EB0` and 18 upper-case hexadecimal digits.
#[must_use]
pub fn new_wa_id() -> String {
    let random: [u8; 9] = rand::rng().random();
    random.iter().fold(String::from("3EB0"), |id, byte| format!("{id}{byte:02X}"))
}

/// Takes what became known of an outgoing message, writes it if it is news, counts it when it is first sent, and gives
/// the events to be recorded.
///
/// # Errors
/// As the driver.
pub(super) async fn learn(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    mut row: Model,
    word: &Word,
    now: Timestamp,
) -> Result<(Model, Vec<NewEvent>), DbErr> {
    let before = row.progress();
    let after = apply(before.clone(), word);
    if after == before && !(row.try_open && after.status.through()) {
        return Ok((row, Vec::new()));
    }
    row.set_progress(after.clone());
    if after.status.through() {
        row.try_open = false;
    }
    let given_back = if after.status.ended() { row.reserved_in.take() } else { None };
    let row = row.into_active_model().reset_all().update(tx).await?;
    let mut events = Vec::new();
    if let Some(month) = given_back {
        quota::release(tx, scope, month).await?;
    }
    if after.status == before.status {
        return Ok((row, events));
    }
    if after.status.accepted() && !before.status.accepted() {
        let fact = Fact {
            tenant: scope,
            session_id: Some(&row.session_id),
            meter: Meter::MessagesSent,
            thing: row.id.as_str(),
            quantity: 1,
            occurred_at: row.sent_at.unwrap_or(now),
        };
        let at = fact.occurred_at;
        if usage::record(tx, fact).await? && row.reserved_in.is_none() {
            quota::count_sent(tx, scope, at).await?;
        }
        events.push(told(EventType::MessageSent, &row, row.sent_at.unwrap_or(now)));
    }
    let mut previous = before.status;
    for step in steps(before.status, after.status) {
        metrics::counter!("control_plane_message_status_total", "status" => step.to_value()).increment(1);
        events.push(NewEvent {
            kind: EventType::MessageStatus,
            session_id: Some(row.session_id.clone()),
            occurred_at: after.at(step).unwrap_or(now),
            data: json!({
                "message_id": row.id,
                "wa_id": row.wa_id,
                "status": step,
                "reason": row.reason,
                "previous": previous,
            }),
        });
        previous = step;
    }
    Ok((row, events))
}

/// An event that tells a whole message.
pub(super) fn told(kind: EventType, row: &Model, occurred_at: Timestamp) -> NewEvent {
    NewEvent { kind, session_id: Some(row.session_id.clone()), occurred_at, data: json!(MessageDto::from(row.clone())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_on_whatsapp_has_the_form_of_its_web_clients() {
        let id = new_wa_id();
        assert_eq!(id.len(), 22);
        assert!(id.starts_with("3EB0"));
        assert!(id.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)));
        assert_ne!(id, new_wa_id());
    }
}
