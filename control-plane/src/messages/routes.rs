//! `/api/v1/messages`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderName, StatusCode},
    response::{IntoResponse, Response},
};
use sea_orm::{
    ColumnTrait, Condition, DatabaseTransaction, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect,
};
use shared::{
    ids::MessageId,
    time::Timestamp,
    wire::{outbox::InboundBody, send::Content},
};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    dto::{MessageDto, MessageFilter, SendMessage},
    entity::{self, Body, Direction, ME, MessageKind, Model},
    policy::MessageStatus,
    recipient::{self, Recipient},
    send::{self, HandOver},
    service::{EXPIRES_AFTER, holder_for_sends, new_wa_id},
};
use crate::{
    audit,
    auth::{Auth, TenantScope, scopes},
    crash,
    error::{ApiError, ApiResult, Kind},
    events,
    extract::{
        PathId, ValidJson, ValidQuery,
        page::{Page, PageQuery},
    },
    idempotency::{IdempotencyKey, Idempotent, Reply},
    jobs::{self, JobKind, NewJob, Seat},
    openapi::{BODY, BY_ID, CALLER, IDEMPOTENT, LIMITED, ReadProblems, WRITE, problem_responses},
    plans::{self, Limit, quota},
    sessions,
    state::App,
};

/// How long the answer to a send is kept for its idempotency key.
const SEND_KEPT: Duration = Duration::from_secs(72 * 3600);
/// The longest wait for an acknowledgement: within the request's own deadline.
const LONGEST_WAIT: Duration = Duration::from_secs(25);
/// How often a waiting request looks, at first and at last.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The routes of messages.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(send_message)).routes(routes!(list_messages)).routes(routes!(get_message))
}

problem_responses!(ReadByIdProblems = CALLER, BY_ID);
problem_responses!(
    SendProblems = CALLER,
    WRITE,
    BODY,
    BY_ID,
    IDEMPOTENT,
    LIMITED,
    &[Kind::SessionNotRunning, Kind::UnsupportedMessage]
);

/// The header as the document lists it.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "a description; the header is read by wait_of")]
struct Prefer {
    /// `wait=10`: answer only when WhatsApp's server has taken the message, or after so many seconds (at most 25).
    #[param(rename = "Prefer", required = false, example = "wait=10")]
    prefer: Option<String>,
}

/// Send a message
///
/// Takes the message and answers at once with `queued`; it is sent as soon as the session is connected, in order within
/// its chat, until it expires after 24 hours. With `Prefer: wait=10`, the answer waits for WhatsApp's acknowledgement.
#[utoipa::path(
    post, path = "/api/v1/messages/send", operation_id = "send_message", tag = "messages",
    security(("person" = []), ("api_key" = ["messages:send"]), ("api_key_header" = ["messages:send"])),
    params(IdempotencyKey, Prefer),
    request_body(content = SendMessage, example = json!({
        "session_id": "ses_01h455vb4pex5vsknk084sn02q",
        "to": "+15550001234",
        "type": "text",
        "text": {"body": "Your table is ready."}
    })),
    responses((status = 202, description = "The message, taken.", body = MessageDto), SendProblems),
)]
async fn send_message(
    State(app): State<App>,
    auth: Auth<scopes::MessagesSend>,
    headers: HeaderMap,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<SendMessage>,
) -> ApiResult<Response> {
    let recipient = recipient::parse(&body.to)?;
    let mut accepted = None;
    let answer = idempotent
        .run(&app, SEND_KEPT, async |tx| {
            let taken = accept(&app, tx, auth.tenant(), body, recipient).await?;
            let reply = Reply::json(StatusCode::ACCEPTED, &MessageDto::from(taken.message.clone()));
            accepted = Some(taken);
            reply
        })
        .await;
    if let Err(ApiError::Refused(refusal)) = &answer
        && refusal.kind() == Kind::QuotaExceeded
    {
        quota::tell_of_refusal(&app, auth.tenant(), Timestamp::now()).await;
    }
    let response = answer?;
    crash::point("send-committed");
    let accepted = accepted.map(|Accepted { message, at_once, deliveries }| {
        match at_once {
            Some((seat, hand_over)) => seat.run(Arc::new(hand_over)),
            None => app.bell.ring(JobKind::SendMessages),
        }
        if deliveries {
            app.bell.ring(JobKind::DeliverWebhook);
        }
        message.id
    });
    match (accepted, wait_of(&headers)) {
        (Some(id), Some(wait)) => match settled(&app, auth.tenant(), &id, wait).await? {
            Some(row) => Ok((StatusCode::ACCEPTED, Json(MessageDto::from(row))).into_response()),
            None => Ok(response),
        },
        _ => Ok(response),
    }
}

/// A message that was taken.
struct Accepted {
    message: Model,
    /// If it can be handed over without a claim.
    at_once: Option<(Seat, HandOver)>,
    /// Whether something is to be delivered to webhooks.
    deliveries: bool,
}

/// Writes the message, its job, and the unit of the quota that it takes.
async fn accept(
    app: &App,
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    body: SendMessage,
    to: Recipient,
) -> ApiResult<Accepted> {
    let session = sessions::entity::Entity::of_tenant(scope, &body.session_id).one(tx).await?.ok_or(Kind::NotFound)?;
    let now = Timestamp::now();
    let holder = holder_for_sends(tx, &session, now).await?;
    let entitlements = plans::entitlements(tx, scope, now).await?;
    let body = InboundBody::Content { content: Content::Text { body: body.text.body } };
    let row = Model {
        id: MessageId::new(),
        tenant_id: scope.id().clone(),
        session_id: session.id.clone(),
        direction: Direction::Outbound,
        wa_id: new_wa_id(),
        chat: to.jid,
        sender: ME.into(),
        chat_pn: to.pn,
        chat_lid: to.lid,
        sender_pn: None,
        sender_lid: None,
        push_name: None,
        kind: MessageKind::of(&body),
        content: Some(Body(body)),
        status: MessageStatus::Queued,
        reason: None,
        tries: 0,
        try_open: false,
        expires_at: Some(now.plus(EXPIRES_AFTER)),
        reserved_in: entitlements.limit(Limit::MessagesPerMonth).map(|_| quota::month_of(now)),
        created_at: now,
        sent_at: None,
        delivered_at: None,
        read_at: None,
        played_at: None,
        failed_at: None,
    };
    let job = NewJob {
        tenant_id: scope.id().clone(),
        kind: JobKind::SendMessages,
        lane: send::lane(&session.id),
        subject: row.id.to_string(),
        run_at: now,
        // The message's own expiry ends it.
        max_attempts: u32::MAX,
    };
    let at_once = match send::Holder::of(&session, holder.as_ref()) {
        Some(holder) => app.direct.enqueue(tx, job).await?.map(|seat| (seat, holder)),
        None => jobs::enqueue(tx, job).await.map(|_| None)?,
    };
    // What is handed over without a claim is committed with its try already open.
    let row = Model { tries: i64::from(at_once.is_some()), try_open: at_once.is_some(), ..row };
    entity::Entity::insert(row.clone().into_active_model()).exec_without_returning(tx).await?;
    let told = quota::reserve(tx, scope, &entitlements, now).await?;
    let deliveries = events::record(tx, app, scope, told).await?.deliveries;
    audit::accepted(&app.audit, tx, StatusCode::ACCEPTED.as_u16(), row.id.as_str()).await?;
    metrics::counter!("control_plane_messages_accepted_total").increment(1);
    let at_once = at_once.map(|(seat, holder)| {
        (seat.to_be_committed(), HandOver { scope: scope.clone(), message: row.clone(), holder })
    });
    Ok(Accepted { message: row, at_once, deliveries })
}

/// `wait=` of the `Prefer` header (RFC 7240 §4.3), bounded. What isn't understood is ignored, as the RFC asks.
fn wait_of(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get_all(PREFER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ';']))
        .find_map(|preference| preference.trim().strip_prefix("wait=")?.trim().parse().ok())
        .map(|seconds| Duration::from_secs(seconds).min(LONGEST_WAIT))
}

/// Waits until a message is no longer queued, or for `wait`; gives it as it is then.
async fn settled(app: &App, scope: &TenantScope, id: &MessageId, wait: Duration) -> ApiResult<Option<Model>> {
    let deadline = tokio::time::Instant::now() + wait;
    let mut pause = LOOK.0;
    let waiter = app.waiting.wait_for(id);
    loop {
        let moved = waiter.moved();
        tokio::pin!(moved);
        // Listening before looking: a move in between isn't missed.
        moved.as_mut().enable();
        let row = entity::Entity::of_tenant(scope, id).one(app.db.read()).await?;
        let waits = row.as_ref().is_some_and(|row| row.status == MessageStatus::Queued);
        if !waits || tokio::time::Instant::now() >= deadline {
            return Ok(row);
        }
        tokio::select! {
            () = app.stop.cancelled() => return Ok(row),
            () = moved => {}
            () = tokio::time::sleep_until(deadline.min(tokio::time::Instant::now() + pause)) => {}
        }
        pause = (pause * 2).min(LOOK.1);
    }
}

/// List messages
///
/// The history in both directions, newest first.
#[utoipa::path(
    get, path = "/api/v1/messages", operation_id = "list_messages", tag = "messages",
    security(("person" = []), ("api_key" = ["messages:read"]), ("api_key_header" = ["messages:read"])),
    params(PageQuery, MessageFilter),
    responses((status = 200, description = "A page of messages.", body = Page<MessageDto>), ReadProblems),
)]
async fn list_messages(
    State(app): State<App>,
    auth: Auth<scopes::MessagesRead>,
    ValidQuery(page): ValidQuery<PageQuery>,
    ValidQuery(filter): ValidQuery<MessageFilter>,
) -> ApiResult<Json<Page<MessageDto>>> {
    let mut select = entity::Entity::all_of_tenant(auth.tenant());
    if let Some(before) = page.before::<MessageId>()? {
        select = select.filter(entity::Column::Id.lt(before));
    }
    if let Some(session) = filter.session_id {
        select = select.filter(entity::Column::SessionId.eq(session));
    }
    if let Some(chat) = &filter.chat {
        let jid = recipient::parse(chat).map_or_else(|_| chat.clone(), |recipient| recipient.jid);
        select = select.filter(
            Condition::any()
                .add(entity::Column::Chat.eq(jid.clone()))
                .add(entity::Column::ChatPn.eq(jid.clone()))
                .add(entity::Column::ChatLid.eq(jid)),
        );
    }
    if let Some(direction) = filter.direction {
        select = select.filter(entity::Column::Direction.eq(direction));
    }
    if let Some(status) = filter.status {
        select = select.filter(entity::Column::Status.eq(status));
    }
    let rows = select.order_by_desc(entity::Column::Id).limit(page.rows()).all(app.db.read()).await?;
    Ok(Json(page.page(rows, |row| &row.id, MessageDto::from)))
}

/// Get a message
///
/// One message of the history, as it stands now.
#[utoipa::path(
    get, path = "/api/v1/messages/{id}", operation_id = "get_message", tag = "messages",
    security(("person" = []), ("api_key" = ["messages:read"]), ("api_key_header" = ["messages:read"])),
    params(("id" = MessageId, Path, description = "The message.")),
    responses((status = 200, description = "The message.", body = MessageDto), ReadByIdProblems),
)]
async fn get_message(
    State(app): State<App>,
    auth: Auth<scopes::MessagesRead>,
    PathId(id): PathId<MessageId>,
) -> ApiResult<Json<MessageDto>> {
    let row = entity::Entity::of_tenant(auth.tenant(), &id).one(app.db.read()).await?.ok_or(Kind::NotFound)?;
    Ok(Json(row.into()))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("wait=10", Some(10))]
    #[case("respond-async, wait=3", Some(3))]
    #[case("wait=4000", Some(25))]
    #[case("wait=soon", None)]
    #[case("return=minimal", None)]
    fn the_wait_is_read_and_bounded(#[case] prefer: &'static str, #[case] seconds: Option<u64>) {
        let headers = HeaderMap::from_iter([(PREFER, HeaderValue::from_static(prefer))]);
        assert_eq!(wait_of(&headers), seconds.map(Duration::from_secs));
    }
}
