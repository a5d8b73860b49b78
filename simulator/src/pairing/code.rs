//! Pairing by code: the client shows eight characters, and somebody types them into a phone.
//!
//! The code never reaches the server. The client wraps an ephemeral key with it (PBKDF2, AES-CTR) and leaves that with the
//! server under the phone's number (`companion_hello`). The phone on which the code is typed unwraps it, wraps an ephemeral
//! key of its own (`primary_hello`), and the client answers with a bundle sealed by the two (`companion_finish`): its
//! identity key, the phone's, and a random value. Both derive the ADV secret from that, and from there on it is as after a
//! scan. With a wrong code the unwrapped key is another, and the bundle doesn't open. Formats from wacore 0.7.0 `pair_code.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use wacore::crypto::hkdf_sha256_into;
use wacore::libsignal::crypto::aes_256_gcm_decrypt;
use wacore::pair_code::PairCodeUtils;
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Node, NodeRef};
use wacore_libsignal::protocol::{KeyPair, PublicKey};

use super::{Companionship, SCAN_DEADLINE, link};
use crate::connection::Command;
use crate::directory::Account;
use crate::network::{Network, NetworkError};
use crate::wire::{EndReason, child_bytes, iq_error, iq_result, required, server_jid};

/// Salt, IV and the encrypted ephemeral key.
const WRAPPED_KEY: usize = 80;
/// Salt (32), nonce (12), three keys (96) and the tag (16).
const WRAPPED_BUNDLE: usize = 156;
/// How long a code is good for (WhatsApp Web shows it for three minutes).
const CODE_TTL: Duration = Duration::from_secs(180);
/// How often a client answers for one code; wacore 0.7.0 gives up after three.
const TRIES: u32 = 3;

/// A client that waits for somebody to type its code.
pub(crate) struct OpenCode {
    connection: u64,
    reference: Vec<u8>,
    wrapped: [u8; WRAPPED_KEY],
    noise_public: [u8; 32],
    expires: Instant,
    tries: u32,
    commands: mpsc::Sender<Command>,
}

/// A phone's `primary_hello`, and where the answer to it goes.
pub(crate) struct HelloOrder {
    pub(crate) stanza: Node,
    pub(crate) answer: oneshot::Sender<CompanionFinish>,
}

/// A client's answer to `primary_hello`.
pub(crate) struct CompanionFinish {
    bundle: [u8; WRAPPED_BUNDLE],
    identity: [u8; 32],
}

/// The code of one unpaired connection; it ends with it.
pub(crate) struct Codes {
    network: Network,
    connection: u64,
    noise_public: [u8; 32],
    commands: mpsc::Sender<Command>,
    phone: Option<String>,
    /// Who waits for `companion_finish`.
    pub(crate) answer: Option<oneshot::Sender<CompanionFinish>>,
}

impl Codes {
    pub(crate) fn new(
        network: &Network,
        connection: u64,
        noise_public: [u8; 32],
        commands: mpsc::Sender<Command>,
    ) -> Self {
        Self { network: network.clone(), connection, noise_public, commands, phone: None, answer: None }
    }

    /// Answers a `link_code_companion_reg` request.
    pub(crate) fn answer(&mut self, id: &str, registration: &NodeRef<'_>) -> Result<Node, EndReason> {
        let jid = registration.get_attr("jid").and_then(|jid| jid.to_jid()).ok_or(EndReason::MalformedStanza("jid"))?;
        match &*required(registration, "stage")? {
            "companion_hello" => self.hello(id, jid.user.as_str(), registration),
            "companion_finish" => self.finish(id, registration),
            _ => Err(EndReason::MalformedStanza("stage")),
        }
    }

    fn hello(&mut self, id: &str, phone: &str, registration: &NodeRef<'_>) -> Result<Node, EndReason> {
        let mut wrapped = [0; WRAPPED_KEY];
        let name = "link_code_pairing_wrapped_companion_ephemeral_pub";
        wrapped.copy_from_slice(child_bytes(registration, name, WRAPPED_KEY)?);
        if child_bytes(registration, "companion_server_auth_key_pub", 32)? != self.noise_public {
            return Err(EndReason::MalformedStanza("companion_server_auth_key_pub"));
        }
        for name in ["companion_platform_id", "companion_platform_display", "link_code_pairing_nonce"] {
            // Text or bytes, as the client likes.
            let filled = registration.get_optional_child(name).is_some_and(|child| {
                child.content_bytes().is_some_and(|bytes| !bytes.is_empty())
                    || child.content_str().is_some_and(|text| !text.is_empty())
            });
            if !filled {
                return Err(EndReason::MalformedStanza(name));
            }
        }
        let Some(account) = self.network.account(phone) else {
            return Ok(iq_error(id, 400, "bad-request"));
        };
        self.withdraw();
        let reference = rand::random::<[u8; 24]>().to_vec();
        let open = OpenCode {
            connection: self.connection,
            reference: reference.clone(),
            wrapped,
            noise_public: self.noise_public,
            expires: Instant::now() + CODE_TTL,
            tries: 0,
            commands: self.commands.clone(),
        };
        self.network.codes().insert(account.phone.clone(), open);
        self.phone = Some(account.phone.clone());
        let reference = NodeBuilder::new("link_code_pairing_ref").bytes(reference).build();
        let content =
            NodeBuilder::new("link_code_companion_reg").attr("stage", "companion_hello").children([reference]);
        Ok(iq_result(id, [content.build()]))
    }

    fn finish(&mut self, id: &str, registration: &NodeRef<'_>) -> Result<Node, EndReason> {
        let mut finish = CompanionFinish { bundle: [0; WRAPPED_BUNDLE], identity: [0; 32] };
        let name = "link_code_pairing_wrapped_key_bundle";
        finish.bundle.copy_from_slice(child_bytes(registration, name, WRAPPED_BUNDLE)?);
        finish.identity.copy_from_slice(child_bytes(registration, "companion_identity_public", 32)?);
        let reference =
            registration.get_optional_child("link_code_pairing_ref").and_then(|child| child.content_bytes());
        let known = self
            .phone
            .as_ref()
            .and_then(|phone| self.network.codes().get(phone))
            .is_some_and(|open| Some(open.reference.as_slice()) == reference);
        let taken = known && self.answer.take().is_some_and(|answer| answer.send(finish).is_ok());
        Ok(if taken { iq_result(id, []) } else { iq_error(id, 400, "bad-request") })
    }

    fn withdraw(&mut self) {
        if let Some(phone) = self.phone.take() {
            // A later client of the same phone may have taken the place.
            self.network.codes().remove_if(&phone, |_, open| open.connection == self.connection);
        }
    }
}

impl Drop for Codes {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// The phone's side: somebody types the code. Waits until the companion has counter-signed. Returns its device id.
pub(crate) async fn enter(network: &Network, account: &Arc<Account>, code: &str) -> Result<u16, NetworkError> {
    let code: String = code.chars().filter(|character| *character != '-').collect::<String>().to_uppercase();
    if !PairCodeUtils::validate_code(&code) {
        return Err(NetworkError::MalformedCode);
    }
    let (wrapped, reference, noise_public, commands) = {
        let mut open = network.codes().get_mut(&account.phone).ok_or(NetworkError::UnknownCode)?;
        if open.expires < Instant::now() {
            return Err(NetworkError::ExpiredCode);
        }
        open.tries += 1;
        if open.tries > TRIES {
            return Err(NetworkError::ExpiredCode);
        }
        (open.wrapped, open.reference.clone(), open.noise_public, open.commands.clone())
    };
    let ephemeral = KeyPair::generate(&mut rand::rng());
    let mut ephemeral_public = [0; 32];
    ephemeral_public.copy_from_slice(ephemeral.public_key.public_key_bytes());
    // 131,072 rounds, twice: not on a thread that serves connections.
    let (companion_ephemeral, wrapped_ours) = tokio::task::spawn_blocking(move || {
        let theirs = PairCodeUtils::decrypt_primary_ephemeral_pub(&wrapped, &code);
        (theirs, PairCodeUtils::encrypt_ephemeral_pub(&ephemeral_public, &code))
    })
    .await
    .map_err(|_| NetworkError::Internal("unwrapping a key"))?;
    let companion_ephemeral = companion_ephemeral.map_err(|_| NetworkError::MalformedCode)?;

    let (answer, finish) = oneshot::channel();
    let stanza = primary_hello(&wrapped_ours, account.primary.identity_public(), &reference);
    let order = HelloOrder { stanza, answer };
    commands.try_send(Command::CodeEntered(Box::new(order))).map_err(|_| NetworkError::UnknownCode)?;
    let finish = match tokio::time::timeout(SCAN_DEADLINE, finish).await {
        Ok(Ok(finish)) => finish,
        Ok(Err(_)) => return Err(NetworkError::PairingFailed),
        Err(_) => return Err(NetworkError::PairingTimeout),
    };
    let adv_secret = open_bundle(account, &ephemeral, &companion_ephemeral, &finish).ok_or(NetworkError::WrongCode)?;
    link(account, &Companionship { noise_public, identity: finish.identity, adv_secret }, &commands).await
}

fn primary_hello(wrapped: &[u8], identity: &[u8], reference: &[u8]) -> Node {
    let child = |name: &'static str, bytes: &[u8]| NodeBuilder::new(name).bytes(bytes).build();
    let content = NodeBuilder::new("link_code_companion_reg")
        .attr("stage", "primary_hello")
        .children([
            child("link_code_pairing_wrapped_primary_ephemeral_pub", wrapped),
            child("primary_identity_pub", identity),
            child("link_code_pairing_ref", reference),
        ])
        .build();
    NodeBuilder::new("notification")
        .attr("from", server_jid())
        .attr("type", "link_code_companion_reg")
        .attr("id", rand::random::<u32>().to_string())
        .attr("t", crate::unix_seconds().to_string())
        .children([content])
        .build()
}

/// Opens the client's bundle and gives the ADV secret. `None`: the code was wrong, or the bundle isn't what it should be.
fn open_bundle(
    account: &Account,
    ephemeral: &KeyPair,
    companion_ephemeral: &[u8; 32],
    finish: &CompanionFinish,
) -> Option<[u8; 32]> {
    let theirs = PublicKey::from_djb_public_key_bytes(companion_ephemeral).ok()?;
    let ephemeral_shared = ephemeral.private_key.calculate_agreement(&theirs).ok()?;
    let (salt, rest) = finish.bundle.split_at(32);
    let (nonce, sealed) = rest.split_at(12);
    let mut key = [0; 32];
    let info = b"link_code_pairing_key_bundle_encryption_key";
    hkdf_sha256_into(&ephemeral_shared, Some(salt), info, &mut key).ok()?;
    let mut bundle = Vec::with_capacity(96);
    aes_256_gcm_decrypt(&key, nonce.try_into().ok()?, b"", sealed, &mut bundle).ok()?;
    let (companion_identity, rest) = bundle.split_at_checked(32)?;
    let (own_identity, random) = rest.split_at_checked(32)?;
    if companion_identity != finish.identity || own_identity != account.primary.identity_public() {
        return None;
    }
    let companion_identity = PublicKey::from_djb_public_key_bytes(companion_identity).ok()?;
    let identity_shared = account.primary.agree(&companion_identity).ok()?;
    let mut adv_secret = [0; 32];
    let shared = [&ephemeral_shared[..], &identity_shared[..], random].concat();
    hkdf_sha256_into(&shared, None, b"adv_secret", &mut adv_secret).ok()?;
    Some(adv_secret)
}
