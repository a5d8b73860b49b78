//! `POST /internal/v1/events`: what WhatsApp told sessions, on its way into history.

use std::{collections::HashSet, time::Duration};

use axum::{Json, extract::State};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, IntoActiveModel,
    QueryFilter, QueryOrder, Statement, Value, sea_query::OnConflict,
};
use shared::{
    ids::MessageId,
    seal::DataKey,
    time::Timestamp,
    wire::outbox::{
        InboundBody, InboundMessage, MAX_ROWS, OutboxAccepted, OutboxBatch, OutboxEvent, Party, ReceiptKind, row_name,
        row_place,
    },
};

use super::{
    entity::{self, Body, Direction, ME, MessageKind, Model},
    policy::{MessageStatus, Word, refusal},
    service::{learn, told},
    waiting::messages_of,
};
use crate::{
    auth::TenantScope,
    crash,
    error::{ApiError, ApiResult, Kind},
    events::{self, EventType, NewEvent},
    internal::{WireJson, WorkerAuth},
    jobs::JobKind,
    sessions::{self, entity as session},
    state::App,
    sweep,
    usage::{self, Fact, Meter},
    workers::entity as worker,
};

/// The most messages that one receipt may be about.
const MAX_RECEIPT_IDS: usize = 1_000;
/// The longest name or id that is stored, in bytes: four of them fit into an index row of PostgreSQL.
const MAX_NAME: usize = 512;

/// Stores a batch of outbox rows, in one transaction; answers when it is committed.
pub(crate) async fn take_events(
    State(app): State<App>,
    WorkerAuth(worker): WorkerAuth,
    WireJson(batch): WireJson<OutboxBatch>,
) -> ApiResult<Json<OutboxAccepted>> {
    let last = check(&batch, &worker)?;
    let tx = app.db.write().await?;
    let row = session::lock(&tx, &batch.session_id).await?.ok_or(Kind::NotFound)?;
    if row.deleted_at.is_some() {
        // Its key is gone, and nobody is left to read it.
        metrics::counter!("control_plane_outbox_rows_total", "outcome" => "dropped_deleted")
            .increment(batch.rows.len() as u64);
        return Ok(Json(OutboxAccepted { seq: last }));
    }
    if row.store_id.as_ref().is_some_and(|store| *store != worker.store_id) {
        return Err(Kind::Conflict.because("the session's state lies in another store").into());
    }
    let scope = TenantScope::of_row(row.tenant_id.clone());
    let key = sessions::service::data_key(&app, &row)?;
    let new = unseen(&tx, &batch).await?;
    let seen = batch.rows.len() - new.len();
    let mut ingest = Ingest { tx: &tx, scope: &scope, session: &row, now: Timestamp::now(), told: Vec::new() };
    for outbox_row in batch.rows.iter().filter(|outbox_row| new.contains(&outbox_row.seq)) {
        let event = open(&key, &batch, outbox_row.seq, &outbox_row.sealed)?;
        ingest.take(event).await?;
    }
    let told = ingest.told;
    let moved = messages_of(&told);
    let recorded = events::record(&tx, &app, &scope, told).await.map_err(sessions::service::of_record)?;
    tx.commit().await?;
    app.waiting.wake(&moved);
    crash::point("events-committed");
    metrics::counter!("control_plane_outbox_rows_total", "outcome" => "stored").increment(new.len() as u64);
    metrics::counter!("control_plane_outbox_rows_total", "outcome" => "seen").increment(seen as u64);
    if recorded.deliveries {
        app.bell.ring(JobKind::DeliverWebhook);
    }
    Ok(Json(OutboxAccepted { seq: last }))
}

/// Forgets rows that were seen long ago: a worker deletes what was accepted, so only one that
/// was cut off right then ships a row again, and messages have an identity of their own besides.
///
/// # Errors
/// As the driver.
pub async fn prune(app: &App) -> Result<u64, DbErr> {
    const KEEP: Duration = Duration::from_secs(30 * 24 * 60 * 60);
    const BATCH: i64 = 10_000;
    let statement = "DELETE FROM outbox_rows_seen WHERE (session_id, epoch, outbox_seq) IN \
                     (SELECT session_id, epoch, outbox_seq FROM outbox_rows_seen WHERE seen_at <= $1 LIMIT $2)";
    sweep::before(app, BATCH, statement, Timestamp::now().minus(KEEP)).await
}

/// Checks a batch's form; gives its last sequence number.
fn check(batch: &OutboxBatch, worker: &worker::Model) -> ApiResult<i64> {
    if batch.incarnation != worker.incarnation {
        return Err(Kind::WorkerSuperseded.into());
    }
    let rising = batch.rows.windows(2).all(|pair| pair[0].seq < pair[1].seq);
    match batch.rows.last() {
        Some(last) if rising && batch.rows.len() <= MAX_ROWS => Ok(last.seq),
        _ => Err(Kind::Validation.because(format!("1 to {MAX_ROWS} rows, rising by seq")).into()),
    }
}

/// Marks the rows of a batch as seen; gives the numbers of those that were not before.
async fn unseen(tx: &DatabaseTransaction, batch: &OutboxBatch) -> Result<HashSet<i64>, DbErr> {
    let now = Timestamp::now();
    let mut values: Vec<Value> = vec![batch.session_id.clone().into(), batch.epoch.into(), now.into()];
    let mut rows = String::new();
    for (index, row) in batch.rows.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        rows.push_str(&format!("{separator}($1, $2, ${}, $3)", index + 4));
        values.push(row.seq.into());
    }
    let sql = format!(
        "INSERT INTO outbox_rows_seen (session_id, epoch, outbox_seq, seen_at) VALUES {rows} \
         ON CONFLICT (session_id, epoch, outbox_seq) DO NOTHING RETURNING outbox_seq"
    );
    tx.query_all_raw(Statement::from_sql_and_values(tx.get_database_backend(), sql, values))
        .await?
        .iter()
        .map(|row| row.try_get("", "outbox_seq"))
        .collect()
}

fn open(key: &DataKey, batch: &OutboxBatch, seq: i64, sealed: &[u8]) -> ApiResult<OutboxEvent> {
    let name = row_name(batch.epoch, seq);
    let plain = key.open(&row_place(&batch.session_id, &name), sealed).map_err(|_| {
        metrics::counter!("control_plane_outbox_rows_total", "outcome" => "unopened").increment(1);
        tracing::error!(session = %batch.session_id, epoch = batch.epoch, seq, "an outbox row does not open");
        ApiError::from(Kind::Validation.because(format!("row {seq} does not open with the session's key")))
    })?;
    serde_json::from_slice(&plain)
        .map_err(|_| Kind::Validation.because(format!("row {seq} is not an event that this version knows")).into())
}

/// A name or id that somebody else chose, as a column can hold it: PostgreSQL stores no U+0000. A row that can't be stored
/// would come again for ever, and hold up all that come after it.
fn storable(mut name: String) -> String {
    if name.contains('\0') {
        name = name.replace('\0', "\u{fffd}");
    }
    name.truncate(name.floor_char_boundary(MAX_NAME));
    name
}

fn storable_party(party: Party) -> Party {
    Party { id: storable(party.id), pn: party.pn.map(storable), lid: party.lid.map(storable) }
}

/// One batch's way into history.
struct Ingest<'a> {
    tx: &'a DatabaseTransaction,
    scope: &'a TenantScope,
    session: &'a session::Model,
    now: Timestamp,
    told: Vec<NewEvent>,
}

impl Ingest<'_> {
    async fn take(&mut self, event: OutboxEvent) -> Result<(), DbErr> {
        match event {
            OutboxEvent::Message(message) => self.message(message).await,
            OutboxEvent::ServerAck { message_id, wa_id, error, at, tries: _ } => {
                self.ack(&message_id, &wa_id, error, at.into()).await
            }
            OutboxEvent::Receipt { chat, wa_ids, receipt, at } => {
                self.receipt(&storable_party(chat), wa_ids, receipt, at.into()).await
            }
        }
    }

    async fn ack(&mut self, id: &MessageId, wa_id: &str, error: Option<u16>, at: Timestamp) -> Result<(), DbErr> {
        let row = entity::Entity::of_tenant(self.scope, id)
            .filter(entity::Column::SessionId.eq(self.session.id.clone()))
            .filter(entity::Column::WaId.eq(wa_id))
            .one(self.tx)
            .await?;
        let word = match error {
            None => Word::Acked(at),
            Some(code) => Word::Failed(refusal(code), at),
        };
        match row {
            Some(row) => self.learn(row, &word).await,
            None => Ok(()),
        }
    }

    async fn receipt(
        &mut self,
        chat: &Party,
        mut wa_ids: Vec<String>,
        receipt: ReceiptKind,
        at: Timestamp,
    ) -> Result<(), DbErr> {
        // What can't be stored is no id of ours.
        wa_ids.retain(|id| id.len() <= MAX_NAME && !id.contains('\0'));
        wa_ids.truncate(MAX_RECEIPT_IDS);
        let rows = entity::Entity::all_of_tenant(self.scope)
            .filter(entity::Column::SessionId.eq(self.session.id.clone()))
            .filter(entity::Column::WaId.is_in(wa_ids))
            .filter(entity::Column::Direction.eq(Direction::Outbound))
            .order_by_asc(entity::Column::Id)
            .all(self.tx)
            .await?;
        for mut row in rows {
            let names = (row.chat_pn.is_none() && chat.pn.is_some()) || (row.chat_lid.is_none() && chat.lid.is_some());
            if names {
                row.chat_pn = row.chat_pn.or_else(|| chat.pn.clone());
                row.chat_lid = row.chat_lid.or_else(|| chat.lid.clone());
                row = row.into_active_model().reset_all().update(self.tx).await?;
            }
            self.learn(row, &Word::Receipt(receipt, at)).await?;
        }
        Ok(())
    }

    async fn learn(&mut self, row: Model, word: &Word) -> Result<(), DbErr> {
        let (_, events) = learn(self.tx, self.scope, row, word, self.now).await?;
        self.told.extend(events);
        Ok(())
    }

    async fn message(&mut self, message: InboundMessage) -> Result<(), DbErr> {
        let message = InboundMessage {
            wa_id: storable(message.wa_id),
            chat: storable_party(message.chat),
            sender: storable_party(message.sender),
            push_name: message.push_name.map(storable),
            ..message
        };
        if message.from_me && self.is_ours(&message.wa_id).await? {
            return Ok(());
        }
        let row = self.row_of(message);
        let inserted = entity::Entity::insert(row.clone().into_active_model())
            .on_conflict(
                OnConflict::columns([
                    entity::Column::SessionId,
                    entity::Column::Chat,
                    entity::Column::Sender,
                    entity::Column::WaId,
                ])
                .do_nothing()
                .to_owned(),
            )
            .exec_without_returning(self.tx)
            .await?;
        if inserted > 0 {
            return self.came(row).await;
        }
        let held = entity::Entity::all_of_tenant(self.scope)
            .filter(entity::Column::SessionId.eq(row.session_id.clone()))
            .filter(entity::Column::Chat.eq(row.chat.clone()))
            .filter(entity::Column::Sender.eq(row.sender.clone()))
            .filter(entity::Column::WaId.eq(row.wa_id.clone()))
            .one(self.tx)
            .await?;
        match held {
            // The content that could not be decrypted before.
            Some(held) if held.kind == MessageKind::Undecryptable && row.kind != MessageKind::Undecryptable => {
                let held = Model { kind: row.kind, content: row.content, push_name: row.push_name, ..held };
                let held = held.into_active_model().reset_all().update(self.tx).await?;
                self.came(held).await
            }
            _ => Ok(()),
        }
    }

    /// Whether this is what we sent ourselves, coming back.
    async fn is_ours(&self, wa_id: &str) -> Result<bool, DbErr> {
        let ours = entity::Entity::all_of_tenant(self.scope)
            .filter(entity::Column::SessionId.eq(self.session.id.clone()))
            .filter(entity::Column::WaId.eq(wa_id))
            .filter(entity::Column::Sender.eq(ME))
            .filter(entity::Column::ExpiresAt.is_not_null())
            .one(self.tx)
            .await?;
        Ok(ours.is_some())
    }

    fn row_of(&self, message: InboundMessage) -> Model {
        let sent_at = Timestamp::from(message.sent_at);
        let me = message.from_me;
        let undecryptable = message.body == InboundBody::Undecryptable;
        Model {
            id: MessageId::new(),
            tenant_id: self.scope.id().clone(),
            session_id: self.session.id.clone(),
            direction: if me { Direction::Outbound } else { Direction::Inbound },
            wa_id: message.wa_id,
            chat: message.chat.id,
            sender: if me { ME.into() } else { message.sender.id },
            chat_pn: message.chat.pn,
            chat_lid: message.chat.lid,
            sender_pn: message.sender.pn,
            sender_lid: message.sender.lid,
            push_name: message.push_name,
            kind: MessageKind::of(&message.body),
            content: (!undecryptable).then_some(Body(message.body)),
            status: if me { MessageStatus::Sent } else { MessageStatus::Received },
            reason: None,
            tries: 0,
            try_open: false,
            expires_at: None,
            reserved_in: None,
            created_at: self.now,
            sent_at: Some(sent_at),
            delivered_at: None,
            read_at: None,
            played_at: None,
            failed_at: None,
        }
    }

    /// Tells, and counts, a message whose row has just got its content (or is known to have none yet).
    async fn came(&mut self, row: Model) -> Result<(), DbErr> {
        let at = row.sent_at.unwrap_or(self.now);
        let kind = match (row.kind, row.direction) {
            (MessageKind::Undecryptable, _) => EventType::MessageUndecryptable,
            (_, Direction::Outbound) => EventType::MessageSent,
            (_, Direction::Inbound) => {
                let fact = Fact {
                    tenant: self.scope,
                    session_id: Some(&row.session_id),
                    meter: Meter::MessagesReceived,
                    thing: row.id.as_str(),
                    quantity: 1,
                    occurred_at: at,
                };
                usage::record(self.tx, fact).await?;
                EventType::MessageReceived
            }
        };
        self.told.push(told(kind, &row, at));
        Ok(())
    }
}
