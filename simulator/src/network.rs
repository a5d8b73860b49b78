//! The whole: every account, connection and open reference, and the Rust API over them.
//!
//! Maps are sharded; an account has its own locks (see [`crate::directory`]). [`Network`] is a handle: clones share.

mod api;
mod breaking;
mod orders;
mod views;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use dashmap::DashMap;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wacore_binary::{Jid, Server};
use wacore_libsignal::protocol::CurveError;

use crate::connection::{Command, ConnectionRecord, Goodbye, stream_error_removed};
use crate::directory::{Account, DeviceChange, Link, announce};
use crate::faults::{Decision, Direction, Plan};
use crate::pairing::OpenReference;
use crate::pairing::code::OpenCode;
use crate::phone::{InboxItem, process_inbox};
use crate::routing::MAILBOX_LIMIT;
use crate::wire::{CertificateAuthority, EndReason, ReplayGuard};
use crate::{Config, lock, login};

pub use orders::{AcceptedQuery, NewPhone, PasskeyScan, PhoneSettings, ReactionOrder, TextOrder};
pub use views::{CompanionView, ConnectionView, EndedView, Health, PasskeyResult, PhoneView, ScanResult};

/// How many ended connections are remembered.
const REMEMBERED_ENDS: usize = 20_000;
/// How many different unsimulated namespaces are counted.
const COUNTED_NAMESPACES: usize = 200;

/// Why the network refused an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// No phone has that number.
    #[error("unknown phone")]
    UnknownPhone,
    /// A phone number is 5 to 15 digits.
    #[error("a phone number is 5 to 15 digits, without plus or spaces")]
    InvalidPhone,
    /// No connection shows that QR (any more), or it was scanned already.
    #[error("unknown QR")]
    UnknownQr,
    /// The QR's time was up.
    #[error("the QR has expired")]
    ExpiredQr,
    /// The text is not a QR of a client, or its keys are not those of the client that shows it.
    #[error("malformed QR")]
    MalformedQr,
    /// No client waits for a code of this phone.
    #[error("no client waits for this phone's code")]
    UnknownCode,
    /// The code's time or its tries are used up.
    #[error("the code has expired")]
    ExpiredCode,
    /// Not eight characters of a code's alphabet.
    #[error("malformed code")]
    MalformedCode,
    /// Not the code that the client shows.
    #[error("wrong code")]
    WrongCode,
    /// The companion refused the pairing or went away.
    #[error("the companion did not complete the pairing")]
    PairingFailed,
    /// The companion did not answer in time.
    #[error("the companion did not answer in time")]
    PairingTimeout,
    /// No such device is linked.
    #[error("unknown device")]
    UnknownDevice,
    /// A recipient's mailbox is full.
    #[error("a recipient's mailbox is full")]
    MailboxFull,
    /// The device has no connection to break.
    #[error("the device is not connected")]
    NotConnected,
    /// The order itself is wrong.
    #[error("{0}")]
    Invalid(&'static str),
    /// A fault of the simulator.
    #[error("internal: {0}")]
    Internal(&'static str),
}

/// A handle on the network; clones share it.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    authority: CertificateAuthority,
    replay_guard: Mutex<ReplayGuard>,
    accounts: DashMap<String, Arc<Account>>,
    by_lid: DashMap<String, Arc<Account>>,
    references: DashMap<String, OpenReference>,
    codes: DashMap<String, OpenCode>,
    connections: DashMap<u64, Arc<ConnectionRecord>>,
    ended: Mutex<VecDeque<EndedView>>,
    unimplemented: DashMap<String, u64>,
    plan: RwLock<Option<Arc<Plan>>>,
    next_connection: AtomicU64,
    next_alias: AtomicU64,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A message id as WhatsApp Web makes them: `3EB0` and random hexadecimal digits.
pub(crate) fn message_id() -> String {
    let mut id = String::from("3EB0");
    for byte in rand::random::<[u8; 9]>() {
        id.push_str(&format!("{byte:02X}"));
    }
    id
}

impl Network {
    pub(crate) fn new(config: Config) -> Result<Self, CurveError> {
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                authority: CertificateAuthority::generate(crate::unix_seconds())?,
                replay_guard: Mutex::default(),
                accounts: DashMap::new(),
                by_lid: DashMap::new(),
                references: DashMap::new(),
                codes: DashMap::new(),
                connections: DashMap::new(),
                ended: Mutex::default(),
                unimplemented: DashMap::new(),
                plan: RwLock::default(),
                next_connection: AtomicU64::new(1),
                next_alias: AtomicU64::new(1),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.inner.config
    }

    pub(crate) fn authority(&self) -> &CertificateAuthority {
        &self.inner.authority
    }

    pub(crate) fn replay_guard(&self) -> &Mutex<ReplayGuard> {
        &self.inner.replay_guard
    }

    pub(crate) fn references(&self) -> &DashMap<String, OpenReference> {
        &self.inner.references
    }

    /// Codes that wait to be typed, by phone number.
    pub(crate) fn codes(&self) -> &DashMap<String, OpenCode> {
        &self.inner.codes
    }

    /// Runs a task that [`Network::stopped`] waits for.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.inner.tasks.spawn(task);
    }

    pub(crate) fn stop(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
    }

    pub(crate) async fn stopping(&self) {
        self.inner.stop.cancelled().await;
    }

    pub(crate) async fn stopped(&self) {
        self.inner.tasks.wait().await;
    }

    /// The account with this phone number.
    pub(crate) fn account(&self, phone: &str) -> Option<Arc<Account>> {
        self.inner.accounts.get(phone).map(|account| Arc::clone(&account))
    }

    /// The account an address belongs to, by phone number or LID.
    pub(crate) fn resolve(&self, jid: &Jid) -> Option<Arc<Account>> {
        let map = if jid.server.is_lid_family() { &self.inner.by_lid } else { &self.inner.accounts };
        map.get(jid.user.as_str()).map(|account| Arc::clone(&account))
    }

    /// Hands an item to a phone. Senders of messages have been refused before a full inbox comes to this; a receipt is lost.
    pub(crate) fn put_in_inbox(&self, account: &Arc<Account>, item: InboxItem) {
        {
            let mut state = account.state();
            if state.inbox.len() >= MAILBOX_LIMIT && matches!(item, InboxItem::Receipt(_)) {
                tracing::warn!("a full inbox took no receipt");
                return;
            }
            state.inbox.push_back(item);
        }
        self.work_off_inbox(account);
    }

    /// Makes sure that someone works off what waits for a phone, unless it is switched off.
    pub(crate) fn work_off_inbox(&self, account: &Arc<Account>) {
        let idle = {
            let mut state = account.state();
            let due = !state.offline && !state.inbox.is_empty();
            due && !std::mem::replace(&mut state.inbox_busy, true)
        };
        if idle {
            self.spawn(process_inbox(self.clone(), Arc::clone(account)));
        }
    }

    /// Makes a device unknown; its connection, if any, is the caller's to end.
    pub(crate) fn forget_device(&self, account: &Arc<Account>, device: u16) -> Result<Option<Link>, NetworkError> {
        let removed = account
            .change_companions(|companions| companions.remove(&device))
            .map_err(|_| NetworkError::Internal("signing the key index list"))?;
        let companion = removed.ok_or(NetworkError::UnknownDevice)?;
        announce(account, device, DeviceChange::Removed);
        Ok(companion.link)
    }

    /// Ends the connection of a device that was unlinked.
    pub(crate) fn end_removed(&self, link: &Link) {
        login::end(
            &link.commands,
            Command::End {
                stanza: Some(Box::new(stream_error_removed())),
                reason: EndReason::DeviceRemoved,
                goodbye: Goodbye::AfterClient,
            },
        );
    }

    /// The seeded plan that is in force.
    pub(crate) fn plan(&self) -> Option<Arc<Plan>> {
        self.inner.plan.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_plan(&self, plan: Option<Plan>) {
        *self.inner.plan.write().unwrap_or_else(PoisonError::into_inner) = plan.map(Arc::new);
    }

    /// What the plan wants done to a device's next stanza.
    pub(crate) fn throw(&self, account: &Account, device: u16, direction: Direction) -> Decision {
        let Some(plan) = self.plan() else { return Decision::Pass };
        let name = account.jid(Server::Pn, device).to_string();
        let mut state = account.state();
        match state.companions.get_mut(&device) {
            Some(companion) => plan.decide(&mut companion.faults.dice, &name, direction),
            None => Decision::Pass,
        }
    }

    pub(crate) fn open_connection(&self) -> Arc<ConnectionRecord> {
        let id = self.inner.next_connection.fetch_add(1, Ordering::Relaxed);
        let record = Arc::new(ConnectionRecord::new(id));
        self.inner.connections.insert(id, Arc::clone(&record));
        record
    }

    pub(crate) fn close_connection(&self, record: &ConnectionRecord, reason: EndReason) {
        self.inner.connections.remove(&record.id);
        let shown = record.shown();
        let mut ended = lock(&self.inner.ended);
        ended.push_back(EndedView {
            id: record.id,
            jid: shown.jid,
            pattern: shown.pattern.map(str::to_owned),
            since: record.since,
            ended: crate::unix_millis(),
            reason: reason.to_string(),
        });
        if ended.len() > REMEMBERED_ENDS {
            ended.pop_front();
        }
    }

    pub(crate) fn count_unimplemented(&self, namespace: &str) {
        if self.inner.unimplemented.contains_key(namespace) || self.inner.unimplemented.len() < COUNTED_NAMESPACES {
            *self.inner.unimplemented.entry(namespace.to_owned()).or_default() += 1;
        }
    }
}
