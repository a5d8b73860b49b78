//! A client below the library: it says whatever it is told to.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;
use whatsapp_rust::NodeBuilder;
use whatsapp_rust::buffa::MessageField;
use whatsapp_rust::wacore::framing::FrameDecoder;
use whatsapp_rust::wacore::handshake::XxHandshakeState;
use whatsapp_rust::wacore::libsignal::protocol::KeyPair;
use whatsapp_rust::wacore::noise::NoiseCipher;
use whatsapp_rust::wacore_binary::consts::WA_CONN_HEADER;
use whatsapp_rust::wacore_binary::{Node, OwnedNodeRef};
use whatsapp_rust::waproto::whatsapp::ClientPayload;
use whatsapp_rust::waproto::whatsapp::client_payload::DevicePairingRegistrationData;

/// A client that says whatever it is told to, over a handshake of its own.
pub struct Raw {
    socket: tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>,
    /// One WebSocket message may hold several frames.
    frames: FrameDecoder,
    send: NoiseCipher,
    receive: NoiseCipher,
    sent: u32,
    received: u32,
}

impl Raw {
    /// Logs in as a device; it may be refused.
    pub async fn log_in(url: &str, keys: KeyPair, phone: &str, device: u32) -> Self {
        let payload = ClientPayload {
            username: Some(phone.parse().expect("digits")),
            device: Some(device),
            ..Default::default()
        };
        Self::connect(url, keys, &payload).await
    }

    /// Comes as a device that wants to be linked.
    pub async fn register(url: &str) -> Self {
        let (identity, signed) = (KeyPair::generate(&mut rand::rng()), KeyPair::generate(&mut rand::rng()));
        let key = signed.public_key.serialize();
        let signature = identity.private_key.calculate_signature(&key, &mut rand::rng()).expect("sign");
        let registration = DevicePairingRegistrationData {
            e_regid: Some(vec![0, 0, 0, 1]),
            e_keytype: Some(vec![5]),
            e_ident: Some(identity.public_key.public_key_bytes().to_vec()),
            e_skey_id: Some(vec![0, 0, 1]),
            e_skey_val: Some(signed.public_key.public_key_bytes().to_vec()),
            e_skey_sig: Some(signature.to_vec()),
            ..Default::default()
        };
        let payload = ClientPayload { device_pairing_data: MessageField::some(registration), ..Default::default() };
        let mut raw = Self::connect(url, KeyPair::generate(&mut rand::rng()), &payload).await;
        assert_eq!(raw.hear().await.tag, "iq", "the references");
        raw
    }

    async fn connect(url: &str, keys: KeyPair, payload: &ClientPayload) -> Self {
        let payload = whatsapp_rust::waproto::codec::client_payload_to_vec(payload);
        let mut noise = XxHandshakeState::new(keys, payload, &WA_CONN_HEADER).expect("noise");
        let (mut socket, _) = tokio_tungstenite::connect_async(url).await.expect("connect");
        let hello = [WA_CONN_HEADER.to_vec(), framed(&noise.build_client_hello().expect("hello"))].concat();
        socket.send(Message::Binary(hello.into())).await.expect("send");
        let answer = socket.next().await.expect("an answer").expect("read").into_data();
        let finish = noise.read_server_hello_and_build_client_finish(&answer[3..]).expect("server hello");
        socket.send(Message::Binary(framed(&finish).into())).await.expect("send");
        let outcome = noise.finish().expect("finish");
        Self {
            socket,
            frames: FrameDecoder::new(),
            send: outcome.write_cipher,
            receive: outcome.read_cipher,
            sent: 0,
            received: 0,
        }
    }

    pub async fn say(&mut self, plain: &[u8]) {
        let sealed = self.send.encrypt_with_counter(self.sent, plain).expect("seal");
        self.sent += 1;
        self.socket.send(Message::Binary(framed(&sealed).into())).await.expect("send");
    }

    pub async fn say_stanza(&mut self, stanza: &Node) {
        self.say(&whatsapp_rust::wacore_binary::marshal(stanza).expect("marshal")).await;
    }

    pub async fn ask(&mut self, namespace: &str, kind: &str, content: impl IntoIterator<Item = Node>) -> Node {
        let id = format!("raw-{}", self.sent);
        let query = NodeBuilder::new("iq").attr("id", id.as_str()).attr("type", kind).attr("xmlns", namespace);
        self.say_stanza(&query.children(content).build()).await;
        let answer = self.hear().await;
        assert_eq!(answer.attrs.get("id").map(ToString::to_string), Some(id));
        answer
    }

    pub async fn count(&mut self) -> usize {
        let answer = self.ask("encrypt", "get", [NodeBuilder::new("count").build()]).await;
        let count = answer.get_optional_child("count").expect("count");
        count.attrs.get("value").expect("value").to_string().parse().expect("a number")
    }

    pub async fn bundle(&mut self, jid: &str) -> Node {
        let user = NodeBuilder::new("user").attr("jid", jid).build();
        let answer = self.ask("encrypt", "get", [NodeBuilder::new("key").children([user]).build()]).await;
        answer.get_optional_child_by_tag(&["list", "user"]).expect("user").clone()
    }

    pub async fn hear(&mut self) -> Node {
        let mut frame = loop {
            match self.frames.decode_frame() {
                Some(frame) => break frame,
                None => self.frames.feed(&self.socket.next().await.expect("a message").expect("read").into_data()),
            }
        };
        self.receive.decrypt_in_place_with_counter(self.received, &mut frame).expect("open");
        self.received += 1;
        OwnedNodeRef::new(frame[1..].to_vec()).expect("stanza").to_owned_node()
    }

    /// The next stanza of this kind; what comes before it is passed over.
    pub async fn hear_a(&mut self, tag: &str) -> Node {
        loop {
            let stanza = self.hear().await;
            if stanza.tag == tag {
                return stanza;
            }
        }
    }
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], payload].concat()
}

/// The bytes inside a node.
pub fn bytes(node: &Node) -> Vec<u8> {
    match &node.content {
        Some(whatsapp_rust::wacore_binary::NodeContent::Bytes(bytes)) => bytes.clone(),
        _ => Vec::new(),
    }
}
