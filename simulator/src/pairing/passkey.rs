//! Pairing an account that is protected by a passkey.
//!
//! The server asks the client for a WebAuthn assertion (`passkey_prologue_request`). With the assertion the client commits to an
//! ephemeral key (`passkey_prologue`); the phone answers with one of its own (`crsc_continuation`), the client reveals the
//! nonce of its commitment, and both show the same code. Once the owner has said so, the client seals its keys and the ADV
//! secret for the phone (`encrypted_pairing_request`), and from there on it is as after a scan. Of the assertion
//! it is checked that it answers what was asked (see [`super::assertion`]); one that doesn't is refused, and another may follow.
//! Formats from wacore 0.7.0 `shortcake.rs` and whatsapp-rust `passkey/flow.rs`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use wacore::libsignal::crypto::aes_256_gcm_decrypt;
use wacore::shortcake::ShortcakeUtils;
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Node, NodeRef};
use wacore_libsignal::protocol::{KeyPair, PublicKey};
use waproto::buffa::Message as _;
use waproto::whatsapp as wa;

use super::assertion::Asked;
use super::{Companionship, QrCode, link};
use crate::connection::Command;
use crate::directory::Account;
use crate::network::{Network, NetworkError};
use crate::wire::{EndReason, iq_error, iq_result, server_jid};

/// How long the owner of the passkey may take for a step.
const STEP_DEADLINE: Duration = Duration::from_secs(60);
/// How long the phone takes to answer and to sign. whatsapp-rust 0.7.0 notes that it has begun only once its prologue is
/// answered, and stores the ADV secret only once the sealed request is: at loopback speed the phone would overtake both.
const PHONE_PAUSE: Duration = Duration::from_millis(50);
/// The largest child of a step, in bytes.
const MAX_CHILD: usize = 64 << 10;

/// What the client says, step by step.
pub(crate) enum PasskeyStep {
    Prologue { assertion: String, payload: Vec<u8> },
    Nonce(Vec<u8>),
    Request(Vec<u8>),
}

/// An account's demand for its passkey, on its way to the client.
pub(crate) struct PasskeyOrder {
    pub(crate) stanza: Node,
    reference: String,
    asked: Asked,
    steps: mpsc::Sender<PasskeyStep>,
}

struct Demand {
    reference: String,
    asked: Asked,
    steps: mpsc::Sender<PasskeyStep>,
}

/// The demand that one unpaired connection is under.
#[derive(Default)]
pub(crate) struct Passkeys {
    order: Option<Demand>,
}

impl Passkeys {
    pub(crate) fn ask(&mut self, order: PasskeyOrder) -> Node {
        let PasskeyOrder { stanza, reference, asked, steps } = order;
        self.order = Some(Demand { reference, asked, steps });
        stanza
    }

    /// Answers a step of the client. `None`: the stanza is none.
    pub(crate) fn answer(&self, id: &str, stanza: &NodeRef<'_>) -> Result<Option<Node>, EndReason> {
        let bytes = |node: &NodeRef<'_>, child: &'static str| {
            node.get_optional_child(child)
                .and_then(|found| found.content_bytes())
                .filter(|bytes| (1..=MAX_CHILD).contains(&bytes.len()))
                .map(<[u8]>::to_vec)
                .ok_or(EndReason::MalformedStanza(child))
        };
        let refusal = || Ok(Some(iq_error(id, 400, "bad-request")));
        let step = if stanza.get_optional_child("ref").is_some() {
            let Some(demand) = &self.order else { return refusal() };
            return Ok(Some(iq_result(id, [NodeBuilder::new("ref").bytes(demand.reference.as_bytes()).build()])));
        } else if let Some(prologue) = stanza.get_optional_child("passkey_prologue") {
            let credential_id = bytes(prologue, "credential_id")?;
            let assertion = String::from_utf8(bytes(prologue, "webauthn_assertion")?)
                .map_err(|_| EndReason::MalformedStanza("webauthn_assertion"))?;
            let payload = bytes(prologue, "prologue_payload")?;
            if !self.order.as_ref().is_some_and(|demand| demand.asked.is_answered_by(&assertion, &credential_id)) {
                return refusal();
            }
            PasskeyStep::Prologue { assertion, payload }
        } else if stanza.get_optional_child("companion_nonce").is_some() {
            PasskeyStep::Nonce(bytes(stanza, "companion_nonce")?)
        } else if stanza.get_optional_child("encrypted_pairing_request").is_some() {
            PasskeyStep::Request(bytes(stanza, "encrypted_pairing_request")?)
        } else {
            return Ok(None);
        };
        let taken = self.order.as_ref().is_some_and(|demand| demand.steps.try_send(step).is_ok());
        if taken { Ok(Some(iq_result(id, []))) } else { refusal() }
    }
}

/// How an account with a passkey was linked.
pub(crate) struct Proven {
    pub(crate) device: u16,
    /// The code that the phone showed.
    pub(crate) code: String,
    /// The assertion that the client relayed.
    pub(crate) assertion: String,
}

/// The phone's side: scans a QR code, has the server ask for the passkey, and follows until the companion has counter-signed.
pub(crate) async fn demand(
    network: &Network,
    account: &Arc<Account>,
    qr: &str,
    request_options: &str,
) -> Result<Proven, NetworkError> {
    let scanned = QrCode::parse(qr)?;
    let asked = Asked::parse(request_options)
        .ok_or(NetworkError::Invalid("request_options is WebAuthn's request options, with a challenge"))?;
    let (_, open) = network.references().remove(scanned.reference).ok_or(NetworkError::UnknownQr)?;
    let (steps, mut said) = mpsc::channel(1);
    let reference = scanned.reference.to_owned();
    let options = NodeBuilder::new("passkey_request_options").bytes(request_options.as_bytes()).build();
    let stanza = notification("passkey_prologue_request", options);
    let order = PasskeyOrder { stanza, reference: reference.clone(), asked, steps };
    open.commands.try_send(Command::PasskeyAsked(Box::new(order))).map_err(|_| NetworkError::UnknownQr)?;

    let PasskeyStep::Prologue { assertion, payload } = next(&mut said).await? else {
        return Err(NetworkError::PairingFailed);
    };
    let (identity_bytes, commitment) = committed(&payload).ok_or(NetworkError::PairingFailed)?;
    let identity =
        wa::CompanionEphemeralIdentity::decode_from_slice(&identity_bytes).map_err(|_| NetworkError::PairingFailed)?;
    if identity.r#ref.as_deref() != Some(reference.as_str()) {
        return Err(NetworkError::PairingFailed);
    }
    let ephemeral = KeyPair::generate(&mut rand::rng());
    let nonce = rand::random::<[u8; 32]>();
    let ours = wa::PrimaryEphemeralIdentity {
        public_key: Some(ephemeral.public_key.public_key_bytes().to_vec()),
        nonce: Some(nonce.to_vec()),
    }
    .encode_to_vec();
    let ours = NodeBuilder::new("primary_ephemeral_identity").bytes(ours).build();
    let stanza = notification("crsc_continuation", ours);
    tokio::time::sleep(PHONE_PAUSE).await;
    open.commands.try_send(Command::Say(Box::new(stanza))).map_err(|_| NetworkError::PairingFailed)?;

    let PasskeyStep::Nonce(their_nonce) = next(&mut said).await? else {
        return Err(NetworkError::PairingFailed);
    };
    let their_nonce: [u8; 32] = their_nonce.try_into().map_err(|_| NetworkError::PairingFailed)?;
    if ShortcakeUtils::commitment_hash(&identity_bytes, &their_nonce)[..] != commitment[..] {
        return Err(NetworkError::PairingFailed);
    }
    let mut own_public = [0; 32];
    own_public.copy_from_slice(ephemeral.public_key.public_key_bytes());
    let code = ShortcakeUtils::derive_verification_code(&their_nonce, &own_public, &nonce);

    let PasskeyStep::Request(request) = next(&mut said).await? else {
        return Err(NetworkError::PairingFailed);
    };
    let request = open_request(&ephemeral, &identity, &reference, &request).ok_or(NetworkError::PairingFailed)?;
    let key32 = |bytes: Option<Vec<u8>>| -> Result<[u8; 32], NetworkError> {
        bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(NetworkError::PairingFailed)
    };
    let companion = Companionship {
        noise_public: key32(request.companion_public_key)?,
        identity: key32(request.companion_identity_key)?,
        adv_secret: key32(request.adv_secret)?,
    };
    if companion.noise_public != scanned.companion.noise_public || companion.identity != scanned.companion.identity {
        return Err(NetworkError::PairingFailed);
    }
    tokio::time::sleep(PHONE_PAUSE).await;
    let device = link(account, &companion, &open.commands).await?;
    Ok(Proven { device, code, assertion })
}

async fn next(said: &mut mpsc::Receiver<PasskeyStep>) -> Result<PasskeyStep, NetworkError> {
    match tokio::time::timeout(STEP_DEADLINE, said.recv()).await {
        Ok(Some(step)) => Ok(step),
        Ok(None) => Err(NetworkError::PairingFailed),
        Err(_) => Err(NetworkError::PairingTimeout),
    }
}

/// The identity that the client has committed to, as it encoded it, and the commitment.
fn committed(payload: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let payload = wa::ProloguePayload::decode_from_slice(payload).ok()?;
    let commitment = payload.commitment.into_option()?.hash?;
    Some((payload.companion_ephemeral_identity?, commitment))
}

fn open_request(
    ephemeral: &KeyPair,
    identity: &wa::CompanionEphemeralIdentity,
    reference: &str,
    request: &[u8],
) -> Option<wa::PairingRequest> {
    let theirs: [u8; 32] = identity.public_key.clone()?.try_into().ok()?;
    let theirs = PublicKey::from_djb_public_key_bytes(&theirs).ok()?;
    let shared = ephemeral.private_key.calculate_agreement(&theirs).ok()?;
    let shared: [u8; 32] = shared[..].try_into().ok()?;
    let key =
        ShortcakeUtils::derive_encryption_key_from_shared_secret(&shared, identity.device_type?, reference).ok()?;
    let sealed = wa::EncryptedPairingRequest::decode_from_slice(request).ok()?;
    let mut opened = Vec::new();
    aes_256_gcm_decrypt(&key, &sealed.iv?.try_into().ok()?, b"", &sealed.encrypted_payload?, &mut opened).ok()?;
    wa::PairingRequest::decode_from_slice(&opened).ok()
}

fn notification(kind: &'static str, content: Node) -> Node {
    NodeBuilder::new("notification")
        .attr("from", server_jid())
        .attr("type", kind)
        .attr("id", rand::random::<u32>().to_string())
        .attr("t", crate::unix_seconds().to_string())
        .children([content])
        .build()
}
