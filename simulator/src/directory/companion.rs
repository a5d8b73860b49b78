//! A linked device as the server knows it.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::KeyBundle;
use crate::connection::Command;
use crate::faults::DeviceFaults;
use crate::routing::Mailbox;

/// A companion device: what it proved when it paired, its public keys and what waits for it.
pub(crate) struct Companion {
    /// The device id, from 1.
    pub(crate) device: u16,
    /// Its index in the account's key index list.
    pub(crate) key_index: u32,
    /// The Noise static key it was paired with: its login credential.
    pub(crate) noise_public: [u8; 32],
    /// Its identity and pre-keys.
    pub(crate) keys: KeyBundle,
    /// The signed device identity it returned in `pair-device-sign`; goes with every bundle.
    pub(crate) device_identity: Vec<u8>,
    /// What waits for it, in order.
    pub(crate) mailbox: Mailbox,
    /// What is made to go wrong for it.
    pub(crate) faults: DeviceFaults,
    /// The phone has given it the app state key.
    pub(crate) app_state_key_shared: bool,
    /// Its connection, if it is logged in.
    pub(crate) link: Option<Link>,
}

/// The way to a companion's connection.
#[derive(Clone)]
pub(crate) struct Link {
    /// The connection's number.
    pub(crate) connection: u64,
    /// Wakes the connection to look at the mailbox.
    pub(crate) wake: Arc<Notify>,
    /// Orders for the connection.
    pub(crate) commands: mpsc::Sender<Command>,
}

impl Companion {
    /// Tells the connection that the mailbox has something to deliver.
    pub(crate) fn wake(&self) {
        if let Some(link) = &self.link {
            link.wake.notify_one();
        }
    }
}
