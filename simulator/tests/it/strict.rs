//! Strict mode: what no client may say ends its connection, with a reason, and has no effect; what it may only ask as somebody
//! else is refused and counted.

use simulator::PhoneSettings;
use whatsapp_rust::NodeBuilder;
use whatsapp_rust::wacore::libsignal::protocol::KeyPair;
use whatsapp_rust::wacore_binary::Node;

use crate::client::{World, until};
use crate::raw::{Raw, bytes};

/// A linked device that says whatever it is told to, in a world of its own.
struct Linked {
    world: World,
    phone: String,
    keys: KeyPair,
    jid: String,
}

impl Linked {
    async fn new() -> Self {
        let world = World::new().await;
        let phone = world.phone().await;
        let (device, running, jid) = world.pair(&phone).await;
        world.drained(&jid).await;
        running.stop().await;
        let keys = device.noise_keys().await;
        Self { world, phone, keys, jid }
    }

    async fn log_in(&self) -> Raw {
        let mut raw = Raw::log_in(&self.world.simulator.ws_url(), self.keys.clone(), &self.phone, 1).await;
        assert_eq!(raw.hear().await.tag, "success");
        raw
    }

    /// Says a stanza in a new connection, which must end because of it.
    async fn ends(&self, stanza: &Node, reason: &str) {
        let before = self.world.network.ended(None).await.len();
        let mut raw = self.log_in().await;
        raw.say_stanza(stanza).await;
        self.ended_since(before, reason).await;
    }

    async fn ended_since(&self, before: usize, reason: &str) {
        let reason = format!("malformed stanza: {reason}");
        until(&reason, async || {
            let ended = self.world.network.ended(None).await;
            ended[before..]
                .iter()
                .any(|ended| ended.reason == reason && ended.jid.as_deref() == Some(self.jid.as_str()))
                .then_some(())
        })
        .await;
    }
}

fn stanza(tag: &'static str, attributes: &[(&'static str, &str)], content: Vec<Node>) -> Node {
    let mut node = NodeBuilder::new(tag);
    for (name, value) in attributes {
        node = node.attr(name, *value);
    }
    if content.is_empty() { node.build() } else { node.children(content).build() }
}

fn empty(tag: &'static str, attributes: &[(&'static str, &str)]) -> Node {
    stanza(tag, attributes, Vec::new())
}

fn attribute(node: &Node, name: &str) -> Option<String> {
    node.attrs.get(name).map(ToString::to_string)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_proper_stanza_ends_the_connection() {
    let linked = Linked::new().await;
    let to = ("to", "19990001111@s.whatsapp.net");
    let cases = [
        (empty("nonsense", &[]), "tag"),
        (empty("iq", &[("type", "get")]), "id"),
        (empty("iq", &[("id", "1"), ("type", "get")]), "xmlns"),
        (empty("iq", &[("id", "1"), ("type", "do"), ("xmlns", "w:p")]), "type"),
        (empty("message", &[("id", "1")]), "type"),
        (empty("receipt", &[("id", "1")]), "to"),
        (empty("receipt", &[("id", "1"), to, ("type", "seen")]), "type"),
        (empty("ack", &[("id", "1"), to]), "class"),
        (empty("ack", &[("id", "1"), to, ("class", "letter")]), "class"),
        (empty("ack", &[("id", "1"), ("class", "message")]), "to"),
        (empty("presence", &[("type", "dancing")]), "type"),
        (empty("presence", &[("type", "subscribe")]), "to"),
        (stanza("chatstate", &[], vec![empty("composing", &[])]), "to"),
        (empty("chatstate", &[to]), "chatstate"),
        (stanza("chatstate", &[to], vec![empty("dancing", &[])]), "chatstate"),
        (stanza("chatstate", &[to], vec![empty("composing", &[]), empty("paused", &[])]), "chatstate"),
        (stanza("chatstate", &[to], vec![empty("composing", &[("media", "smell")])]), "media"),
        (empty("ib", &[]), "ib"),
        (stanza("ib", &[], vec![empty("nonsense", &[])]), "ib"),
        (stanza("ib", &[], vec![empty("offline_batch", &[("count", "all")])]), "count"),
        (stanza("ib", &[], vec![empty("unified_session", &[])]), "id"),
    ];
    for (stanza, reason) in cases {
        linked.ends(&stanza, reason).await;
    }
    let mut raw = linked.log_in().await;
    raw.say(&[0, 0xff, 0xff, 0xff]).await;
    linked.world.ended("frame is not a stanza").await;

    // What clients do say is heard, and the connection goes on.
    let mut raw = linked.log_in().await;
    for proper in [
        empty("presence", &[("type", "available"), ("name", "Me")]),
        empty("presence", &[("name", "Me")]),
        empty("presence", &[("type", "subscribe"), to]),
        stanza("chatstate", &[to], vec![empty("composing", &[("media", "audio")])]),
        stanza("chatstate", &[to], vec![empty("paused", &[])]),
        stanza("ib", &[], vec![empty("unified_session", &[("id", "1")])]),
        stanza("ib", &[], vec![empty("offline_batch", &[("count", "100")])]),
    ] {
        raw.say_stanza(&proper).await;
    }
    assert_eq!(attribute(&raw.ask("w:p", "get", []).await, "type").as_deref(), Some("result"));
    linked.world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_proof_or_version_or_with_a_device_twice_reaches_nobody() {
    let linked = Linked::new().await;
    let world = &linked.world;
    let (other, stranger) = (world.phone().await, world.phone().await);
    let settings = PhoneSettings { ignore_retries: Some(true), ..PhoneSettings::default() };
    world.network.configure(&other, settings).await.expect("configure");
    let (_, strangers_client, strangers_jid) = world.pair(&stranger).await;
    strangers_client.stop().await;
    let mut raw = linked.log_in().await;
    let proof = async |raw: &mut Raw, jid: &str| {
        bytes(raw.bundle(jid).await.get_optional_child("device-identity").expect("a device identity"))
    };
    let (own_proof, foreign_proof) = (proof(&mut raw, &linked.jid).await, proof(&mut raw, &strangers_jid).await);

    let to = format!("{other}@s.whatsapp.net");
    let enc = |attributes: &[(&'static str, &str)]| {
        let mut node = NodeBuilder::new("enc");
        for (name, value) in attributes {
            node = node.attr(name, *value);
        }
        node.bytes(vec![3; 64]).build()
    };
    let msg = || enc(&[("v", "2"), ("type", "msg")]);
    let pkmsg = || enc(&[("v", "2"), ("type", "pkmsg")]);
    let identity = |bytes: &[u8]| NodeBuilder::new("device-identity").bytes(bytes.to_vec()).build();
    let message =
        |id: &str, content: Vec<Node>| stanza("message", &[("id", id), ("type", "text"), ("to", &to)], content);
    let part = |content: Node| stanza("to", &[("jid", &to)], vec![content]);
    let parts = |parts: Vec<Node>| stanza("participants", &[], parts);

    let cases = [
        (vec![], "enc"),
        (vec![enc(&[("type", "msg")])], "v"),
        (vec![enc(&[("type", "msg"), ("v", "1")])], "v"),
        (vec![enc(&[("type", "plain"), ("v", "2")])], "enc"),
        (vec![parts(vec![part(enc(&[("type", "msg")]))])], "v"),
        (vec![parts(vec![part(msg()), part(msg())])], "participants"),
        (vec![pkmsg()], "device-identity"),
        (vec![parts(vec![part(pkmsg())])], "device-identity"),
        (vec![parts(vec![part(pkmsg())]), identity(&foreign_proof)], "device-identity"),
        (vec![parts(vec![part(pkmsg())]), identity(b"nonsense")], "device-identity"),
    ];
    for (content, reason) in cases {
        linked.ends(&message("X", content), reason).await;
    }
    assert_eq!(world.network.accepted_summary().await.total, 0);

    // The same, whole, are taken; whether they can be opened is the recipient's affair.
    let mut raw = linked.log_in().await;
    let whole = [
        vec![msg()],
        vec![parts(vec![part(msg())])],
        vec![pkmsg(), identity(&own_proof)],
        vec![parts(vec![part(pkmsg())]), identity(&own_proof)],
    ];
    let total = whole.len();
    for (number, content) in whole.into_iter().enumerate() {
        raw.say_stanza(&message(&number.to_string(), content)).await;
        assert_eq!(attribute(&raw.hear_a("ack").await, "error"), None, "{number}");
    }
    assert_eq!(world.network.accepted_summary().await.total, total as u64);
    // One to nobody is refused, as WhatsApp does.
    let to_nobody = empty("message", &[("id", "N"), ("type", "text"), ("to", "19990001111@s.whatsapp.net")]);
    raw.say_stanza(&to_nobody).await;
    assert_eq!(attribute(&raw.hear_a("ack").await, "error").as_deref(), Some("404"));
    linked.world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_of_an_unknown_kind_releases_nothing() {
    let linked = Linked::new().await;
    let other = linked.world.phone().await;
    let id = linked.world.write(&other, &linked.phone, "kept").await;
    let receipt = |kind| {
        let to = format!("{other}@s.whatsapp.net");
        empty("receipt", &[("id", &id), ("to", &to), ("type", kind)])
    };
    let left = async || linked.world.network.unacknowledged(&linked.jid).await.expect("count");
    let active = async || {
        let mut raw = linked.log_in().await;
        raw.ask("passive", "set", [NodeBuilder::new("active").build()]).await;
        assert_eq!(attribute(&raw.hear_a("message").await, "id").as_ref(), Some(&id));
        raw
    };
    let (mut raw, before) = (active().await, linked.world.network.ended(None).await.len());
    raw.say_stanza(&receipt("seen")).await;
    linked.ended_since(before, "type").await;
    assert_eq!(left().await, 1, "the message was released");
    for (kind, expected) in [("enc_rekey_retry", 1), ("server-error", 1), ("read", 1), ("inactive", 0)] {
        let mut raw = active().await;
        raw.say_stanza(&receipt(kind)).await;
        raw.hear_a("ack").await;
        assert_eq!(left().await, expected, "{kind}");
    }
    linked.world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_an_identity_may_only_link_itself() {
    let world = World::new().await;
    let url = world.simulator.ws_url();
    let cases = [
        (empty("message", &[("id", "1"), ("type", "text"), ("to", "19990001111@s.whatsapp.net")]), "tag"),
        (empty("receipt", &[("id", "1"), ("to", "19990001111@s.whatsapp.net")]), "tag"),
        (empty("iq", &[("type", "get"), ("xmlns", "w:p")]), "id"),
        (empty("iq", &[("id", "1"), ("type", "get")]), "xmlns"),
        (empty("iq", &[("id", "1"), ("type", "do"), ("xmlns", "w:p")]), "type"),
        (empty("iq", &[("id", "1"), ("xmlns", "w:p")]), "type"),
        (empty("ack", &[("class", "notification")]), "id"),
        (empty("ack", &[("id", "1"), ("class", "message")]), "class"),
        (empty("presence", &[("type", "dancing")]), "type"),
        (empty("ib", &[]), "ib"),
        (stanza("ib", &[], vec![empty("offline_batch", &[("count", "5")])]), "ib"),
    ];
    for (stanza, reason) in cases {
        let before = world.network.ended(None).await.len();
        let mut raw = Raw::register(&url).await;
        raw.say_stanza(&stanza).await;
        let reason = format!("malformed stanza: {reason}");
        until(&reason, async || {
            world.network.ended(None).await[before..].iter().any(|ended| ended.reason == reason).then_some(())
        })
        .await;
    }
    let mut raw = Raw::register(&url).await;
    for namespace in ["encrypt", "usync", "w:sync:app:state", "passive", "md"] {
        let answer = raw.ask(namespace, "get", []).await;
        let code = answer.get_optional_child("error").and_then(|error| attribute(error, "code"));
        assert_eq!(code.as_deref(), Some("501"), "{namespace}");
        assert_eq!(world.network.health().await.unimplemented.get(namespace), Some(&1));
    }
    for proper in [
        empty("presence", &[("name", "Me")]),
        empty("ack", &[("id", "1"), ("class", "notification"), ("to", "s.whatsapp.net")]),
        stanza("ib", &[], vec![empty("unified_session", &[("id", "1")])]),
    ] {
        raw.say_stanza(&proper).await;
    }
    assert_eq!(attribute(&raw.ask("w:p", "get", []).await, "type").as_deref(), Some("result"));
    world.simulator.shutdown().await;
}
