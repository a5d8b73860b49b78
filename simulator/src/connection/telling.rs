//! What a client tells the server about itself: presence, typing, and `<ib>`.
//!
//! Shapes from whatsapp-rust 0.7.0 (`features/presence.rs`, `features/profile.rs`, `features/chatstate.rs`,
//! `unified_session.rs`) and Baileys 7.0.0-rc14 (`Socket/chats.js`, `Socket/socket.js`). Nothing of it is answered or passed on;
//! what is malformed ends the connection, as everywhere.

use wacore_binary::{Jid, NodeRef};

use crate::wire::{EndReason, children, required};

/// Takes a `<presence>`; gives the name that it tells, if it does.
///
/// Without `type` it is an availability (RFC 6121), or only tells the name.
pub(super) fn presence(stanza: &NodeRef<'_>) -> Result<Option<String>, EndReason> {
    match stanza.get_attr("type").map(|kind| kind.as_str()).as_deref() {
        None | Some("available" | "unavailable") => {}
        Some("subscribe" | "unsubscribe") => drop(recipient(stanza)?),
        Some(_) => return Err(EndReason::MalformedStanza("type")),
    }
    Ok(stanza.get_attr("name").map(|name| name.as_str().into_owned()))
}

/// Takes a `<chatstate>`: to whom, and exactly one state.
pub(super) fn chatstate(stanza: &NodeRef<'_>) -> Result<(), EndReason> {
    recipient(stanza)?;
    match children(stanza) {
        [state] if state.tag == "composing" => match state.get_attr("media") {
            Some(media) if *media != "audio" => Err(EndReason::MalformedStanza("media")),
            _ => Ok(()),
        },
        [state] if state.tag == "paused" => Ok(()),
        _ => Err(EndReason::MalformedStanza("chatstate")),
    }
}

/// What an `<ib>` of a client says.
#[derive(Default)]
pub(super) struct Info {
    /// How many more stanzas of the backlog it asks for.
    pub(super) batch: Option<usize>,
}

/// Takes an `<ib>`.
pub(super) fn info(stanza: &NodeRef<'_>) -> Result<Info, EndReason> {
    let mut info = Info::default();
    if children(stanza).is_empty() {
        return Err(EndReason::MalformedStanza("ib"));
    }
    for child in children(stanza) {
        match &*child.tag {
            "offline_batch" => {
                let count = required(child, "count")?.parse().map_err(|_| EndReason::MalformedStanza("count"))?;
                info.batch = Some(count);
            }
            "unified_session" => drop(required(child, "id")?),
            _ => return Err(EndReason::MalformedStanza("ib")),
        }
    }
    Ok(info)
}

fn recipient(stanza: &NodeRef<'_>) -> Result<Jid, EndReason> {
    stanza.get_attr("to").and_then(|to| to.to_jid()).ok_or(EndReason::MalformedStanza("to"))
}
