//! The responder's side of `Noise_XX` and `Noise_IK` (25519, AES-GCM, SHA-256), as WhatsApp uses them.
//!
//! Token order follows the initiators in wacore-noise 0.7.0 (`handshake.rs`) and the Noise specification, revision 34.
//! XX: `-> e`, `<- e, ee, s, es, certificate`, `-> s, se, payload`. IK: the server's static key is a pre-message,
//! `-> e, es, s, ss, payload`, `<- e, ee, se, certificate`; the client's login rides in the very first message, which is
//! why a replayed hello has to be recognised: it would decrypt. [`ReplayGuard`] remembers client ephemerals for that. An IK
//! hello to a former key of the server is answered by XXfallback: the tokens of XX under another name, and the answer
//! carries the new static key.

use std::collections::{HashSet, VecDeque};

use wacore_binary::consts::{NOISE_PATTERN_IK, NOISE_PATTERN_XX, NOISE_PATTERN_XXFALLBACK, WA_CONN_HEADER};
use wacore_libsignal::protocol::KeyPair;
use wacore_noise::{NoiseCipher, NoiseHandshake};
use waproto::buffa::MessageField;
use waproto::whatsapp::HandshakeMessage;
use waproto::whatsapp::handshake_message::ServerHello;

use super::{CertificateAuthority, EndReason, certificates::ServerIdentity};

/// How many client ephemerals are remembered. A client makes a new one for each connection.
const REMEMBERED_HELLOS: usize = 200_000;

/// The hellos already answered, newest last.
#[derive(Default)]
pub(crate) struct ReplayGuard {
    seen: HashSet<[u8; 32]>,
    order: VecDeque<[u8; 32]>,
}

impl ReplayGuard {
    /// Whether this ephemeral is new; it is remembered from now on.
    pub(crate) fn admit(&mut self, ephemeral: [u8; 32]) -> bool {
        if !self.seen.insert(ephemeral) {
            return false;
        }
        self.order.push_back(ephemeral);
        if self.order.len() > REMEMBERED_HELLOS
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }
}

/// What a finished handshake yields: the two directions' ciphers, and who the client says it is.
pub(crate) struct Session {
    /// Opens what the client sends.
    pub(crate) receive: NoiseCipher,
    /// Seals what the client reads.
    pub(crate) send: NoiseCipher,
    /// The client's static key; possession is proven by the handshake.
    pub(crate) client_static: [u8; 32],
    /// The encoded `ClientPayload`.
    pub(crate) payload: Vec<u8>,
    /// `XX`, `IK` or `XXfallback`.
    pub(crate) pattern: &'static str,
}

/// A handshake after the client's hello: IK is complete, XX waits for the client's finish.
pub(crate) enum Handshake {
    /// Send the reply; the session stands.
    Complete { reply: Vec<u8>, session: Box<Session> },
    /// Send the reply, then feed the client's next frame to [`AwaitFinish::finish`].
    AwaitFinish { reply: Vec<u8>, pending: Box<AwaitFinish> },
}

/// An XX handshake between the server's hello and the client's finish.
pub(crate) struct AwaitFinish {
    noise: NoiseHandshake,
    ephemeral: KeyPair,
    pattern: &'static str,
}

/// Answers a client hello.
pub(crate) fn respond(
    frame: &[u8],
    authority: &CertificateAuthority,
    guard: &std::sync::Mutex<ReplayGuard>,
) -> Result<Handshake, EndReason> {
    let hello = waproto::codec::handshake_message_decode(frame)
        .map_err(|_| EndReason::MalformedHandshake)?
        .client_hello
        .into_option()
        .ok_or(EndReason::MalformedHandshake)?;
    let client_ephemeral = key32(hello.ephemeral.as_deref())?;
    if !crate::lock(guard).admit(client_ephemeral) {
        return Err(EndReason::ReplayedHandshake);
    }
    let identity = authority.identity();
    match (&hello.r#static, &hello.payload) {
        (Some(sealed_static), Some(sealed_payload)) => {
            match open_ik(&client_ephemeral, sealed_static, sealed_payload, identity.server_static()) {
                Ok(opened) => respond_ik(&client_ephemeral, opened, &identity),
                // A client that knows a former key of ours is led to the new one. Anything else is not from a client of ours.
                Err(reason) => {
                    let knows = |former| open_ik(&client_ephemeral, sealed_static, sealed_payload, former).is_ok();
                    if identity.former().iter().any(knows) {
                        respond_xx(&client_ephemeral, &identity, "XXfallback")
                    } else {
                        Err(reason)
                    }
                }
            }
        }
        (None, None) => respond_xx(&client_ephemeral, &identity, "XX"),
        _ => Err(EndReason::MalformedHandshake),
    }
}

/// Answers with XX, or with XXfallback: the same tokens under another name, after an IK hello that was of no use.
fn respond_xx(
    client_ephemeral: &[u8; 32],
    identity: &ServerIdentity,
    pattern: &'static str,
) -> Result<Handshake, EndReason> {
    let name = if pattern == "XX" { NOISE_PATTERN_XX } else { NOISE_PATTERN_XXFALLBACK };
    let mut noise = NoiseHandshake::new(name, &WA_CONN_HEADER).map_err(|_| EndReason::MalformedHandshake)?;
    let ephemeral = KeyPair::generate(&mut rand::rng());
    let server_static = identity.server_static();
    noise.authenticate(client_ephemeral);
    noise.authenticate(ephemeral.public_key.public_key_bytes());
    mix(&mut noise, &ephemeral, client_ephemeral)?;
    let sealed_static = seal(&mut noise, server_static.public_key.public_key_bytes())?;
    mix(&mut noise, server_static, client_ephemeral)?;
    let sealed_chain = seal(&mut noise, identity.chain())?;
    let reply = server_hello(&ephemeral, Some(sealed_static), sealed_chain);
    Ok(Handshake::AwaitFinish { reply, pending: Box::new(AwaitFinish { noise, ephemeral, pattern }) })
}

impl AwaitFinish {
    /// Reads the client's finish.
    pub(crate) fn finish(mut self, frame: &[u8]) -> Result<Session, EndReason> {
        let finish = waproto::codec::handshake_message_decode(frame)
            .map_err(|_| EndReason::MalformedHandshake)?
            .client_finish
            .into_option()
            .ok_or(EndReason::MalformedHandshake)?;
        let sealed_static = finish.r#static.ok_or(EndReason::MalformedHandshake)?;
        let sealed_payload = finish.payload.ok_or(EndReason::MalformedHandshake)?;
        let client_static = key32(Some(&open(&mut self.noise, &sealed_static)?))?;
        mix(&mut self.noise, &self.ephemeral, &client_static)?;
        let payload = open(&mut self.noise, &sealed_payload)?;
        session(self.noise, client_static, payload, self.pattern)
    }
}

/// An IK hello that one of our keys opened.
struct OpenedHello {
    noise: NoiseHandshake,
    client_static: [u8; 32],
    payload: Vec<u8>,
}

fn open_ik(
    client_ephemeral: &[u8; 32],
    sealed_static: &[u8],
    sealed_payload: &[u8],
    server_static: &KeyPair,
) -> Result<OpenedHello, EndReason> {
    let mut noise =
        NoiseHandshake::new(NOISE_PATTERN_IK, &WA_CONN_HEADER).map_err(|_| EndReason::MalformedHandshake)?;
    noise.authenticate(server_static.public_key.public_key_bytes());
    noise.authenticate(client_ephemeral);
    mix(&mut noise, server_static, client_ephemeral)?;
    let client_static = key32(Some(&open(&mut noise, sealed_static)?))?;
    mix(&mut noise, server_static, &client_static)?;
    let payload = open(&mut noise, sealed_payload)?;
    Ok(OpenedHello { noise, client_static, payload })
}

fn respond_ik(
    client_ephemeral: &[u8; 32],
    opened: OpenedHello,
    identity: &ServerIdentity,
) -> Result<Handshake, EndReason> {
    let OpenedHello { mut noise, client_static, payload } = opened;
    let ephemeral = KeyPair::generate(&mut rand::rng());
    noise.authenticate(ephemeral.public_key.public_key_bytes());
    mix(&mut noise, &ephemeral, client_ephemeral)?;
    mix(&mut noise, &ephemeral, &client_static)?;
    let sealed_chain = seal(&mut noise, identity.chain())?;
    let reply = server_hello(&ephemeral, None, sealed_chain);
    let session = session(noise, client_static, payload, "IK")?;
    Ok(Handshake::Complete { reply, session: Box::new(session) })
}

fn session(
    noise: NoiseHandshake,
    client_static: [u8; 32],
    payload: Vec<u8>,
    pattern: &'static str,
) -> Result<Session, EndReason> {
    let (receive, send) = noise.finish().map_err(|_| EndReason::HandshakeDecrypt)?;
    Ok(Session { receive, send, client_static, payload, pattern })
}

fn server_hello(ephemeral: &KeyPair, sealed_static: Option<Vec<u8>>, sealed_chain: Vec<u8>) -> Vec<u8> {
    waproto::codec::handshake_message_to_vec(&HandshakeMessage {
        server_hello: MessageField::some(ServerHello {
            ephemeral: Some(ephemeral.public_key.public_key_bytes().to_vec()),
            r#static: sealed_static,
            payload: Some(sealed_chain),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn mix(noise: &mut NoiseHandshake, ours: &KeyPair, theirs: &[u8; 32]) -> Result<(), EndReason> {
    noise.mix_shared_secret(ours.private_key.serialize(), theirs).map_err(|_| EndReason::MalformedHandshake)
}

fn seal(noise: &mut NoiseHandshake, plaintext: &[u8]) -> Result<Vec<u8>, EndReason> {
    noise.encrypt(plaintext).map_err(|_| EndReason::MalformedHandshake)
}

fn open(noise: &mut NoiseHandshake, ciphertext: &[u8]) -> Result<Vec<u8>, EndReason> {
    noise.decrypt(ciphertext).map_err(|_| EndReason::HandshakeDecrypt)
}

fn key32(bytes: Option<&[u8]>) -> Result<[u8; 32], EndReason> {
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(EndReason::MalformedHandshake)
}

#[cfg(all(test, feature = "sandbox"))]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use wacore_noise::{IkHandshakeState, IkServerHelloOutcome, XxHandshakeState};

    struct Client {
        send: NoiseCipher,
        receive: NoiseCipher,
    }

    fn authority() -> CertificateAuthority {
        CertificateAuthority::generate(crate::unix_seconds()).expect("chain")
    }

    fn altered(frame: &[u8], bit: Option<usize>) -> Vec<u8> {
        let mut frame = frame.to_vec();
        if let Some(bit) = bit {
            let bit = bit % (frame.len() * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        frame
    }

    /// Runs XX, altering one bit of the hello or the finish. `None`: one of the two sides gave up.
    fn run_xx(
        authority: &CertificateAuthority,
        hello_bit: Option<usize>,
        finish_bit: Option<usize>,
    ) -> Option<(Session, Client)> {
        let keys = KeyPair::generate(&mut rand::rng());
        let mut client = XxHandshakeState::new(keys, b"payload".to_vec(), &WA_CONN_HEADER).ok()?;
        let hello = altered(&client.build_client_hello().ok()?, hello_bit);
        let Handshake::AwaitFinish { reply, pending } = respond(&hello, authority, &Mutex::default()).ok()? else {
            return None;
        };
        let finish = client.read_server_hello_and_build_client_finish(&reply).ok()?;
        let session = pending.finish(&altered(&finish, finish_bit)).ok()?;
        let outcome = client.finish().ok()?;
        Some((session, Client { send: outcome.write_cipher, receive: outcome.read_cipher }))
    }

    /// Runs IK, altering one bit of the hello.
    fn run_ik(authority: &CertificateAuthority, hello_bit: Option<usize>) -> Option<(Session, Client)> {
        let keys = KeyPair::generate(&mut rand::rng());
        let server = authority.identity().server_static().public_key.public_key_bytes().try_into().ok()?;
        let mut client = IkHandshakeState::new(keys, server, b"payload".to_vec(), &WA_CONN_HEADER).ok()?;
        let hello = altered(&client.build_client_hello().ok()?, hello_bit);
        let Handshake::Complete { reply, session } = respond(&hello, authority, &Mutex::default()).ok()? else {
            return None;
        };
        let IkServerHelloOutcome::Continue(outcome) = client.read_server_hello(&reply).ok()? else {
            return None;
        };
        Some((*session, Client { send: outcome.write_cipher, receive: outcome.read_cipher }))
    }

    fn assert_joined((session, client): (Session, Client)) {
        assert_eq!(session.payload, b"payload");
        let mut up = client.send.encrypt_with_counter(0, b"up").expect("seal");
        session.receive.decrypt_in_place_with_counter(0, &mut up).expect("open");
        assert_eq!(up, b"up");
        let mut down = session.send.encrypt_with_counter(0, b"down").expect("seal");
        client.receive.decrypt_in_place_with_counter(0, &mut down).expect("open");
        assert_eq!(down, b"down");
    }

    #[test]
    fn both_patterns_join_with_the_librarys_initiators() {
        let authority = authority();
        assert_joined(run_xx(&authority, None, None).expect("XX"));
        assert_joined(run_ik(&authority, None).expect("IK"));
    }

    #[test]
    fn a_hello_is_answered_once() {
        let (authority, guard) = (authority(), Mutex::default());
        let server = authority.identity().server_static().public_key.public_key_bytes().try_into().expect("32 bytes");
        let keys = KeyPair::generate(&mut rand::rng());
        let mut client = IkHandshakeState::new(keys, server, b"payload".to_vec(), &WA_CONN_HEADER).expect("client");
        let hello = client.build_client_hello().expect("hello");
        assert!(respond(&hello, &authority, &guard).is_ok());
        assert!(matches!(respond(&hello, &authority, &guard), Err(EndReason::ReplayedHandshake)));
    }

    #[test]
    fn a_server_without_the_private_key_cannot_answer_ik() {
        let (real, impostor) = (authority(), authority());
        let server = real.identity().server_static().public_key.public_key_bytes().try_into().expect("32 bytes");
        let keys = KeyPair::generate(&mut rand::rng());
        let mut client = IkHandshakeState::new(keys, server, b"payload".to_vec(), &WA_CONN_HEADER).expect("client");
        let hello = client.build_client_hello().expect("hello");
        assert!(matches!(respond(&hello, &impostor, &Mutex::default()), Err(EndReason::HandshakeDecrypt)));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(40))]
        #[test]
        fn no_flipped_bit_survives_a_handshake(bit in 0usize..100_000) {
            let authority = authority();
            // A protobuf tag may turn into an unknown field; then the message lacks what it must have.
            proptest::prop_assert!(run_xx(&authority, Some(bit), None).is_none());
            proptest::prop_assert!(run_xx(&authority, None, Some(bit)).is_none());
            proptest::prop_assert!(run_ik(&authority, Some(bit)).is_none());
        }
    }
}
