//! Login: who a finished handshake belongs to.
//!
//! The `ClientPayload` inside the handshake either registers a new companion (`device_pairing_data`) or names an account
//! and a device (wacore 0.7.0 `store/device.rs`). The credential is the Noise static key, which the handshake has proven:
//! it must be the one that the phone scanned. A device logs in once at a time; a newer login replaces the older one.

use std::sync::Arc;

use tokio::sync::mpsc;
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Jid, Node, Server};
use waproto::buffa::Message as _;
use waproto::whatsapp::ClientPayload;
use waproto::whatsapp::client_payload::DevicePairingRegistrationData;

use crate::connection::{Command, Goodbye, stream_error_replaced};
use crate::directory::{Account, KeyBundle, Link, SignedKey};
use crate::network::Network;
use crate::wire::{EndReason, Session};

/// What a client wants, as its payload says.
pub(crate) enum Identity {
    /// To be paired; these will be its keys.
    Unpaired(Box<KeyBundle>),
    /// To log in as this device.
    Device { account: Arc<Account>, device: u16 },
    /// To log in as a device that isn't linked, or isn't this one: calls for a `<failure>`.
    Stranger(Jid),
}

/// Reads the payload and checks the credential.
pub(crate) fn identify(network: &Network, session: &Session) -> Result<Identity, EndReason> {
    let payload = ClientPayload::decode_from_slice(&session.payload).map_err(|_| EndReason::MalformedPayload)?;
    if let Some(registration) = payload.device_pairing_data.as_option() {
        return registration_keys(registration).map(|keys| Identity::Unpaired(Box::new(keys)));
    }
    let username = payload.username.ok_or(EndReason::MalformedPayload)?;
    let device = payload.device.and_then(|device| u16::try_from(device).ok()).ok_or(EndReason::MalformedPayload)?;
    let username = username.to_string();
    let paired = network.account(&username).filter(|account| {
        let state = account.state();
        state.companions.get(&device).is_some_and(|companion| companion.noise_public == session.client_static)
    });
    Ok(match paired {
        Some(account) => Identity::Device { account, device },
        None => Identity::Stranger(Jid::pn_device(username, device)),
    })
}

fn registration_keys(data: &DevicePairingRegistrationData) -> Result<KeyBundle, EndReason> {
    fn fixed<const N: usize>(field: Option<&Vec<u8>>) -> Result<[u8; N], EndReason> {
        field.and_then(|bytes| bytes.as_slice().try_into().ok()).ok_or(EndReason::MalformedPayload)
    }
    if fixed::<1>(data.e_keytype.as_ref())? != [5] {
        return Err(EndReason::MalformedPayload);
    }
    let [a, b, c] = fixed::<3>(data.e_skey_id.as_ref())?;
    let signed = SignedKey {
        id: u32::from_be_bytes([0, a, b, c]),
        public: fixed(data.e_skey_val.as_ref())?,
        signature: fixed(data.e_skey_sig.as_ref())?,
    };
    let registration_id = u32::from_be_bytes(fixed(data.e_regid.as_ref())?);
    KeyBundle::new(registration_id, fixed(data.e_ident.as_ref())?, signed).ok_or(EndReason::MalformedPayload)
}

/// The refusal that the control API has ordered for this login.
pub(crate) fn refusal(account: &Account, device: u16) -> Option<Node> {
    account.state().companions.get_mut(&device)?.faults.refuse_login()
}

/// Makes this connection the device's only one.
pub(crate) fn take_over(account: &Account, device: u16, link: Link) -> Result<(), EndReason> {
    let mut state = account.state();
    let companion = state.companions.get_mut(&device).ok_or(EndReason::LoginRefused)?;
    if let Some(older) = companion.link.replace(link) {
        end(
            &older.commands,
            Command::End {
                stanza: Some(Box::new(stream_error_replaced())),
                reason: EndReason::Replaced,
                goodbye: Goodbye::AfterClient,
            },
        );
    }
    Ok(())
}

/// Orders a connection to end; one whose order book is full is ending already.
pub(crate) fn end(commands: &mpsc::Sender<Command>, command: Command) {
    if commands.try_send(command).is_err() {
        tracing::debug!("a connection was ending already");
    }
}

/// The stanza that opens a logged-in stream.
pub(crate) fn success(account: &Account, device: u16) -> Node {
    let push_name = account.state().push_name.clone();
    NodeBuilder::new("success")
        .attr("t", crate::unix_seconds().to_string())
        .attr("props", "1")
        .attr("abprops", "1")
        .attr("location", "sim")
        .attr("lid", account.jid(Server::Lid, device))
        .attr("display_name", push_name)
        .build()
}

/// The stanza that refuses a login: 401, not (or no longer) linked.
pub(crate) fn failure() -> Node {
    NodeBuilder::new("failure").attr("reason", "401").attr("location", "sim").build()
}
