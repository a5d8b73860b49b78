//! Small readers and builders for stanzas, strict about what must be there.

use std::borrow::Cow;

use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Jid, Node, NodeRef, Server};

use super::EndReason;

/// `s.whatsapp.net`, the server's own address.
pub(crate) fn server_jid() -> Jid {
    Jid::new("", Server::Pn)
}

/// A non-empty attribute, or the reason to end the connection.
pub(crate) fn required<'a>(node: &'a NodeRef<'_>, name: &'static str) -> Result<Cow<'a, str>, EndReason> {
    match node.get_attr(name) {
        Some(value) if !value.as_str().is_empty() => Ok(value.as_str()),
        _ => Err(EndReason::MalformedStanza(name)),
    }
}

/// The bytes inside a child, exactly `length` of them.
pub(crate) fn child_bytes<'a>(
    node: &'a NodeRef<'_>,
    child: &'static str,
    length: usize,
) -> Result<&'a [u8], EndReason> {
    node.get_optional_child(child)
        .and_then(|found| found.content_bytes())
        .filter(|bytes| bytes.len() == length)
        .ok_or(EndReason::MalformedStanza(child))
}

/// A node's children, none if it has none.
pub(crate) fn children<'a, 'n>(node: &'a NodeRef<'n>) -> &'a [NodeRef<'n>] {
    node.children().unwrap_or_default()
}

/// `<iq type=result>` for a request's id.
pub(crate) fn iq_result(id: &str, content: impl IntoIterator<Item = Node>) -> Node {
    let mut content = content.into_iter().peekable();
    let iq = NodeBuilder::new("iq").attr("from", server_jid()).attr("id", id).attr("type", "result");
    if content.peek().is_some() { iq.children(content).build() } else { iq.build() }
}

/// `<iq type=error>` with one `<error>`.
pub(crate) fn iq_error(id: &str, code: u16, text: &str) -> Node {
    NodeBuilder::new("iq")
        .attr("from", server_jid())
        .attr("id", id)
        .attr("type", "error")
        .children([NodeBuilder::new("error").attr("code", code).attr("text", text).build()])
        .build()
}
