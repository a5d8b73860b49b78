//! Pairing by QR: references on one side, a phone that scans on the other, a signed device identity between them. By code:
//! see [`code`]. Past a passkey: see [`passkey`].
//!
//! The server gives an unpaired client six references; the client shows each as a QR text
//! `ref,noise key,identity key,ADV secret[,client type]`. The ADV secret never reaches the server, so a phone has to scan:
//! it signs the companion's identity key with the account's (XEdDSA over `06 00`, the device's details and the key), wraps
//! that with an HMAC under the ADV secret and hands it to the server for `pair-success`. The client checks it, counter-signs,
//! and answers `pair-device-sign`; the server checks that (`wacore::adv`) and keeps it for pre-key bundles. Then the stream
//! restarts with 515. Formats from wacore 0.7.0 `pair.rs`.

mod assertion;
pub(crate) mod code;
pub(crate) mod passkey;

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tokio::sync::{mpsc, oneshot};
use wacore::adv::{AdvValidation, validate_adv_with_identity_key};
use wacore::companion_reg::NATIVE_CAMERA_DEEP_LINK_PREFIX;
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Node, NodeRef, Server};
use waproto::buffa::Message as _;
use waproto::whatsapp::{ADVDeviceIdentity, ADVSignedDeviceIdentity, ADVSignedDeviceIdentityHMAC};

use crate::connection::Command;
use crate::directory::{Account, Companion, DeviceChange, KeyBundle, announce};
use crate::network::{Network, NetworkError};
use crate::routing::Mailbox;
use crate::wire::{EndReason, server_jid};

/// How many references an unpaired client is given.
const REFERENCES: usize = 6;
/// How long a scan waits for the companion's signature.
const SCAN_DEADLINE: Duration = Duration::from_secs(20);
/// What the account signs a companion's identity over (`WAWebAdvSignatureConstants`, in wacore 0.7.0 `adv.rs`).
const ACCOUNT_SIGNATURE_PREFIX: [u8; 2] = [6, 0];

/// An open reference and the connection that shows it.
pub(crate) struct OpenReference {
    noise_public: [u8; 32],
    identity: [u8; 32],
    expires: Instant,
    commands: mpsc::Sender<Command>,
}

/// A scan on its way to the companion.
pub(crate) struct ScanOrder {
    pub(crate) account: Arc<Account>,
    pub(crate) device: u16,
    /// Of the companion that was meant.
    noise_public: [u8; 32],
    /// The encoded `ADVSignedDeviceIdentityHMAC`.
    wrapped_identity: Vec<u8>,
    /// Told the outcome.
    pub(crate) done: oneshot::Sender<Result<(), NetworkError>>,
}

/// The references of one unpaired connection; they end with it.
pub(crate) struct References {
    network: Network,
    names: Vec<String>,
    /// When the last of them expires.
    pub(crate) expire: Instant,
}

impl References {
    /// Opens the references.
    pub(crate) fn open(
        network: &Network,
        noise_public: [u8; 32],
        identity: [u8; 32],
        commands: &mpsc::Sender<Command>,
    ) -> Self {
        let mut names = Vec::with_capacity(REFERENCES);
        let mut expires = Instant::now() + network.config().first_ref_ttl;
        for _ in 0..REFERENCES {
            let name = format!("2@{}", BASE64_STANDARD.encode(rand::random::<[u8; 48]>()));
            network
                .references()
                .insert(name.clone(), OpenReference { noise_public, identity, expires, commands: commands.clone() });
            names.push(name);
            expires += network.config().ref_ttl;
        }
        Self { network: network.clone(), names, expire: expires }
    }

    /// The `pair-device` request that hands them to the client.
    pub(crate) fn stanza(&self) -> Node {
        let refs = self.names.iter().map(|name| NodeBuilder::new("ref").bytes(name.as_bytes()).build());
        server_request("pair-device", NodeBuilder::new("pair-device").children(refs).build())
    }
}

impl Drop for References {
    fn drop(&mut self) {
        for name in &self.names {
            self.network.references().remove(name);
        }
    }
}

fn server_request(id: &str, content: Node) -> Node {
    NodeBuilder::new("iq")
        .attr("from", server_jid())
        .attr("type", "set")
        .attr("id", format!("{id}-{}", rand::random::<u32>()))
        .attr("xmlns", "md")
        .attr("t", crate::unix_seconds().to_string())
        .children([content])
        .build()
}

/// The phone's side: reads the QR text, signs, and waits until the companion has counter-signed. Returns its device id.
pub(crate) async fn scan(network: &Network, account: &Arc<Account>, qr: &str) -> Result<u16, NetworkError> {
    let code = QrCode::parse(qr)?;
    // A reference is good for one scan.
    let (_, open) = network.references().remove(code.reference).ok_or(NetworkError::UnknownQr)?;
    if open.expires < Instant::now() {
        return Err(NetworkError::ExpiredQr);
    }
    if open.noise_public != code.companion.noise_public || open.identity != code.companion.identity {
        return Err(NetworkError::MalformedQr);
    }
    link(account, &code.companion, &open.commands).await
}

/// What a phone knows of a companion that it is about to link.
struct Companionship {
    noise_public: [u8; 32],
    identity: [u8; 32],
    adv_secret: [u8; 32],
}

/// Signs the companion's identity and waits until it has counter-signed. Returns its device id.
async fn link(
    account: &Arc<Account>,
    companion: &Companionship,
    commands: &mpsc::Sender<Command>,
) -> Result<u16, NetworkError> {
    let device = account.reserve_device();
    let wrapped_identity = sign_companion(account, device, companion)
        .map_err(|_| NetworkError::Internal("signing the device identity"))?;
    let (done, outcome) = oneshot::channel();
    let noise_public = companion.noise_public;
    let order = ScanOrder { account: Arc::clone(account), device, noise_public, wrapped_identity, done };
    commands.try_send(Command::Scanned(Box::new(order))).map_err(|_| NetworkError::UnknownQr)?;
    match tokio::time::timeout(SCAN_DEADLINE, outcome).await {
        Ok(Ok(outcome)) => outcome.map(|()| device),
        Ok(Err(_)) => Err(NetworkError::PairingFailed),
        Err(_) => Err(NetworkError::PairingTimeout),
    }
}

struct QrCode<'a> {
    reference: &'a str,
    companion: Companionship,
}

impl<'a> QrCode<'a> {
    fn parse(text: &'a str) -> Result<Self, NetworkError> {
        let text = text.trim();
        let mut fields = text.strip_prefix(NATIVE_CAMERA_DEEP_LINK_PREFIX).unwrap_or(text).split(',');
        let reference = fields.next().filter(|reference| !reference.is_empty()).ok_or(NetworkError::MalformedQr)?;
        let mut key = || -> Result<[u8; 32], NetworkError> {
            let field = fields.next().ok_or(NetworkError::MalformedQr)?;
            BASE64_STANDARD.decode(field).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(NetworkError::MalformedQr)
        };
        let companion = Companionship { noise_public: key()?, identity: key()?, adv_secret: key()? };
        Ok(Self { reference, companion })
    }
}

fn sign_companion(account: &Account, device: u16, companion: &Companionship) -> anyhow::Result<Vec<u8>> {
    let details = ADVDeviceIdentity {
        raw_id: Some(account.raw_id),
        timestamp: Some(crate::unix_seconds()),
        key_index: Some(u32::from(device)),
        ..Default::default()
    }
    .encode_to_vec();
    let signature =
        account.primary.sign(&[ACCOUNT_SIGNATURE_PREFIX.as_slice(), &details, &companion.identity].concat())?;
    let identity = waproto::codec::adv_signed_device_identity_to_vec(&ADVSignedDeviceIdentity {
        details: Some(details),
        account_signature_key: Some(account.primary.identity_public().to_vec()),
        account_signature: Some(signature.to_vec()),
        device_signature: None,
    });
    let mut mac = Hmac::<Sha256>::new_from_slice(&companion.adv_secret)?;
    mac.update(&identity);
    let hmac = mac.finalize().into_bytes().to_vec();
    Ok(ADVSignedDeviceIdentityHMAC { details: Some(identity), hmac: Some(hmac), ..Default::default() }.encode_to_vec())
}

/// The `pair-success` request that takes a scan to the companion.
pub(crate) fn pair_success(order: &ScanOrder) -> Node {
    let account = &order.account;
    let content = NodeBuilder::new("pair-success")
        .children([
            NodeBuilder::new("device-identity").bytes(order.wrapped_identity.clone()).build(),
            NodeBuilder::new("device")
                .attr("jid", account.jid(Server::Pn, order.device))
                .attr("lid", account.jid(Server::Lid, order.device))
                .build(),
            NodeBuilder::new("platform").attr("name", "android").build(),
        ])
        .build();
    server_request("pair-success", content)
}

/// Checks the companion's answer and makes it a device of the account.
pub(crate) fn complete(
    order: &ScanOrder,
    noise_public: [u8; 32],
    keys: KeyBundle,
    answer: &NodeRef<'_>,
) -> Result<(), EndReason> {
    let signed = answer
        .get_optional_child("pair-device-sign")
        .and_then(|sign| sign.get_optional_child("device-identity"))
        .and_then(|identity| identity.content_bytes())
        .ok_or(EndReason::PairingFailed)?;
    if order.noise_public != noise_public {
        return Err(EndReason::PairingFailed);
    }
    let account: [u8; 32] = order.account.primary.identity_public().try_into().map_err(|_| EndReason::PairingFailed)?;
    let valid = validate_adv_with_identity_key(signed, &keys.identity, Some(&account));
    if valid != AdvValidation::Valid || !is_ours(order, signed) {
        return Err(EndReason::PairingFailed);
    }
    let companion = Companion {
        device: order.device,
        key_index: u32::from(order.device),
        noise_public,
        keys,
        device_identity: signed.to_vec(),
        mailbox: Mailbox::default(),
        faults: crate::faults::DeviceFaults::default(),
        app_state_key_shared: false,
        link: None,
    };
    order
        .account
        .change_companions(|companions| companions.insert(order.device, companion))
        .map_err(|_| EndReason::PairingFailed)?;
    announce(&order.account, order.device, DeviceChange::Added { key_index: u32::from(order.device) });
    Ok(())
}

/// A valid chain is not enough: it must be the one this phone signed. Some clients leave the account's key out when they
/// counter-sign, since the server has it.
fn is_ours(order: &ScanOrder, signed: &[u8]) -> bool {
    waproto::codec::adv_signed_device_identity_decode(signed).is_ok_and(|identity| {
        let key = identity.account_signature_key.as_deref().unwrap_or_default();
        key.is_empty() || key == order.account.primary.identity_public()
    })
}
