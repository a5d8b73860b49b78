//! The stream of a logged-in device.
//!
//! After `<success>` the device is passive: it asks, and nothing is delivered. When it says `active`, its backlog follows:
//! a preview, a primer of five stanzas, more as it asks for batches, and an `offline` mark, sent even for an empty one since
//! clients wait for it. From then on everything is delivered as it arrives.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Node, NodeRef, Server};

use super::query::{self, Effect};
use super::{Command, ConnectionRecord, Ended, Wire, stream_error_removed, telling};
use crate::directory::{Account, Link};
use crate::faults::{Decision, Direction};
use crate::login;
use crate::network::Network;
use crate::phone::share_app_state_key;
use crate::routing::{MessageAnswer, accept_message, accept_receipt, release_acknowledged};
use crate::wire::{EndReason, required, server_jid};

/// Backlog stanzas that are sent before the client asks for the first batch.
const PRIMER: usize = 5;
/// The most a client may ask for at once.
const MAX_BATCH: usize = 10_000;
/// Stanzas written in one WebSocket message.
const WRITE_BATCH: usize = 32;
/// Acks that may be late at once; a client that sends on has to wait until one is written.
const MAX_LATE_ACKS: usize = 10_000;

/// How far the delivery of the mailbox has come.
enum Phase {
    /// Not active yet.
    Passive,
    /// The backlog up to `end`, `allowed` more stanzas of it now.
    Backlog { end: u64, allowed: usize, total: usize },
    /// Everything as it comes.
    Live,
}

struct Stream<'a> {
    network: &'a Network,
    wire: &'a mut Wire,
    account: &'a Arc<Account>,
    device: u16,
    /// This connection's number.
    connection: u64,
    cursor: u64,
    phase: Phase,
    /// Acks that the fault plan writes later, by their time; the number keeps those of one moment apart. They end with the connection.
    late_acks: BTreeMap<(Instant, u64), MessageAnswer>,
    late_acks_ever: u64,
}

/// Logs the device in and serves it until the connection ends.
pub(super) async fn run(
    network: &Network,
    record: &Arc<ConnectionRecord>,
    wire: &mut Wire,
    account: &Arc<Account>,
    device: u16,
    commands: mpsc::Sender<Command>,
    mut orders: mpsc::Receiver<Command>,
) -> Ended {
    let wake = Arc::new(Notify::new());
    let link = Link { connection: record.id, wake: Arc::clone(&wake), commands };
    if let Err(reason) = login::take_over(account, device, link) {
        return reason.into();
    }
    let _linked = Linked { account, device, connection: record.id };
    record.show(|shown| {
        shown.jid = Some(account.jid(Server::Pn, device).to_string());
        shown.state = "logged_in";
    });
    let mut stream = Stream {
        network,
        wire,
        account,
        device,
        connection: record.id,
        cursor: 0,
        phase: Phase::Passive,
        late_acks: BTreeMap::new(),
        late_acks_ever: 0,
    };
    if let Err(reason) = stream.wire.writer.send(&[login::success(account, device)]).await {
        return reason.into();
    }
    let idle = network.config().idle_timeout;
    loop {
        let next_ack = stream.late_acks.keys().next().map(|(due, _)| *due);
        let has_room = stream.late_acks.len() < MAX_LATE_ACKS;
        let step = tokio::select! {
            order = orders.recv() => match order {
                Some(Command::End { stanza, reason, goodbye }) => {
                    if let Some(stanza) = stanza
                        && let Err(failed) = stream.wire.writer.send(std::slice::from_ref(&*stanza)).await
                    {
                        return failed.into();
                    }
                    return Ended { reason, goodbye };
                }
                Some(Command::Scanned(_) | Command::CodeEntered(_) | Command::PasskeyAsked(_) | Command::Say(_)) | None => Ok(()),
            },
            () = wake.notified() => Ok(()),
            () = tokio::time::sleep_until(next_ack.unwrap_or_else(Instant::now)), if next_ack.is_some() => {
                stream.write_late_ack().await
            }
            stanza = tokio::time::timeout(idle, stream.wire.reader.next_stanza()), if has_room => match stanza {
                Ok(Ok(stanza)) => stream.take(stanza.get()).await,
                Ok(Err(reason)) => Err(reason),
                Err(_) => Err(EndReason::Idle),
            },
        };
        if let Err(reason) = step {
            return reason.into();
        }
        if matches!(stream.phase, Phase::Live) {
            record.show(|shown| shown.state = "active");
        }
        if let Err(reason) = stream.deliver().await {
            return reason.into();
        }
    }
}

/// Unlinks the connection from its device when it ends, unless a newer one has taken its place.
struct Linked<'a> {
    account: &'a Account,
    device: u16,
    connection: u64,
}

impl Drop for Linked<'_> {
    fn drop(&mut self) {
        if let Some(companion) = self.account.state().companions.get_mut(&self.device) {
            companion.link.take_if(|link| link.connection == self.connection);
        }
    }
}

impl Stream<'_> {
    async fn send(&mut self, stanza: Node) -> Result<(), EndReason> {
        self.wire.writer.send(&[stanza]).await
    }

    async fn take(&mut self, stanza: &NodeRef<'_>) -> Result<(), EndReason> {
        if self.is_muted() {
            return Ok(());
        }
        if matches!(&*stanza.tag, "message" | "receipt" | "ack") {
            match self.network.throw(self.account, self.device, Direction::Up) {
                Decision::Pass | Decision::Duplicate | Decision::Late(_) => {}
                Decision::Drop => return Ok(()),
                Decision::Delay(pause) => tokio::time::sleep(pause).await,
                Decision::Cut => return Err(EndReason::Cut),
            }
        }
        match &*stanza.tag {
            "iq" => self.take_query(stanza).await,
            "message" => {
                let answer = accept_message(self.network, self.account, self.device, stanza)?;
                match self.network.throw(self.account, self.device, Direction::Ack) {
                    Decision::Pass | Decision::Duplicate => {}
                    Decision::Drop => return Ok(()),
                    Decision::Delay(pause) => tokio::time::sleep(pause).await,
                    Decision::Cut => return Err(EndReason::Cut),
                    Decision::Late(lateness) => {
                        self.late_acks_ever += 1;
                        self.late_acks.insert((Instant::now() + lateness, self.late_acks_ever), answer);
                        return Ok(());
                    }
                }
                self.answer(answer).await
            }
            "receipt" => {
                let ack = accept_receipt(self.network, self.account, self.device, stanza)?;
                self.send(ack).await
            }
            "ack" => release_acknowledged(self.network, self.account, self.device, stanza),
            "ib" => self.take_info(stanza),
            "presence" => {
                if let Some(name) = telling::presence(stanza)? {
                    self.account.state().push_name = name;
                }
                Ok(())
            }
            // Typing and calls go nowhere here.
            "chatstate" => telling::chatstate(stanza),
            "call" => Ok(()),
            "xmlstreamend" => Err(EndReason::ClientClosed),
            _ => Err(EndReason::MalformedStanza("tag")),
        }
    }

    /// Writes the ack of a message.
    async fn answer(&mut self, answer: MessageAnswer) -> Result<(), EndReason> {
        self.send(answer.ack).await?;
        if let Some(accepted) = answer.accepted {
            accepted.ack_was_written();
        }
        Ok(())
    }

    /// Writes the oldest late ack; to a device that is muted it is lost.
    async fn write_late_ack(&mut self) -> Result<(), EndReason> {
        match self.late_acks.pop_first() {
            Some((_, answer)) if !self.is_muted() => self.answer(answer).await,
            _ => Ok(()),
        }
    }

    fn is_muted(&self) -> bool {
        let state = self.account.state();
        state.companions.get(&self.device).is_some_and(|companion| companion.faults.muted == Some(self.connection))
    }

    fn take_info(&mut self, stanza: &NodeRef<'_>) -> Result<(), EndReason> {
        let told = telling::info(stanza)?;
        if let Some(count) = told.batch
            && let Phase::Backlog { allowed, .. } = &mut self.phase
        {
            *allowed = allowed.saturating_add(count.min(MAX_BATCH));
        }
        Ok(())
    }

    async fn take_query(&mut self, stanza: &NodeRef<'_>) -> Result<(), EndReason> {
        let id = required(stanza, "id")?;
        match &*required(stanza, "type")? {
            "get" | "set" => {}
            "result" | "error" => return Ok(()),
            _ => return Err(EndReason::MalformedStanza("type")),
        }
        let answer = query::answer(self.network, self.account, self.device, &id, stanza)?;
        self.send(answer.reply).await?;
        match answer.effect {
            Effect::None => Ok(()),
            Effect::Active => self.start_backlog().await,
            Effect::KeysUploaded => {
                self.share_app_state_key();
                Ok(())
            }
            Effect::Removed => {
                self.send(stream_error_removed()).await?;
                Err(EndReason::DeviceRemoved)
            }
        }
    }

    /// The phone writes the app state key as soon as it can write to the companion at all.
    fn share_app_state_key(&self) {
        let due = {
            let mut state = self.account.state();
            state
                .companions
                .get_mut(&self.device)
                .is_some_and(|companion| !std::mem::replace(&mut companion.app_state_key_shared, true))
        };
        if due && share_app_state_key(self.network, self.account, self.device).is_err() {
            tracing::warn!("a phone could not share its app state key");
        }
    }

    async fn start_backlog(&mut self) -> Result<(), EndReason> {
        if !matches!(self.phase, Phase::Passive) {
            return Ok(());
        }
        let (end, counts) = {
            let state = self.account.state();
            let companion = state.companions.get(&self.device).ok_or(EndReason::DeviceRemoved)?;
            (companion.mailbox.end(), companion.mailbox.counts())
        };
        let total: usize = counts.iter().sum();
        self.phase = Phase::Backlog { end, allowed: PRIMER, total };
        if total > 0 {
            let [messages, receipts, notifications] = counts.map(|count| count.to_string());
            let preview = NodeBuilder::new("offline_preview")
                .attr("count", total.to_string())
                .attr("message", messages)
                .attr("receipt", receipts)
                .attr("notification", notifications)
                .attr("appdata", "0")
                .attr("call", "0")
                .build();
            self.send(info(preview)).await?;
        }
        Ok(())
    }

    /// Writes stanzas of the mailbox, as the fault plan lets them through.
    async fn write(&mut self, stanzas: Vec<Node>) -> Result<(), EndReason> {
        if self.network.plan().is_none() {
            return self.wire.writer.send(&stanzas).await;
        }
        for stanza in stanzas {
            match self.network.throw(self.account, self.device, Direction::Down) {
                Decision::Pass | Decision::Late(_) => {}
                Decision::Drop => continue,
                Decision::Delay(pause) => tokio::time::sleep(pause).await,
                Decision::Duplicate => self.send(stanza.clone()).await?,
                Decision::Cut => return Err(EndReason::Cut),
            }
            self.send(stanza).await?;
        }
        Ok(())
    }

    /// Writes what may be written now.
    async fn deliver(&mut self) -> Result<(), EndReason> {
        loop {
            let (end, limit, offline) = match &self.phase {
                Phase::Passive => return Ok(()),
                Phase::Backlog { end, allowed, .. } => (*end, (*allowed).min(WRITE_BATCH), true),
                Phase::Live => (u64::MAX, WRITE_BATCH, false),
            };
            let (stanzas, cursor, more) = {
                let mut state = self.account.state();
                let companion = state.companions.get_mut(&self.device).ok_or(EndReason::DeviceRemoved)?;
                if companion.faults.muted == Some(self.connection) {
                    return Ok(());
                }
                let (stanzas, cursor) = companion.mailbox.deliver(self.cursor, end, limit, offline);
                (stanzas, cursor, companion.mailbox.has_undelivered(cursor, end))
            };
            self.cursor = cursor;
            let written = stanzas.len();
            if written > 0 {
                self.write(stanzas).await?;
            }
            match &mut self.phase {
                Phase::Backlog { total, .. } if !more => {
                    let mark = NodeBuilder::new("offline").attr("count", total.to_string()).build();
                    self.phase = Phase::Live;
                    self.send(info(mark)).await?;
                }
                Phase::Backlog { allowed, .. } => {
                    *allowed -= written;
                    if written == 0 {
                        return Ok(());
                    }
                }
                _ if written == 0 => return Ok(()),
                _ => {}
            }
        }
    }
}

fn info(content: Node) -> Node {
    NodeBuilder::new("ib").attr("from", server_jid()).children([content]).build()
}
