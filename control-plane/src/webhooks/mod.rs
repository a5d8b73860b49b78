//! Webhook endpoints and the deliveries to them.

/// The lane of one delivery: see [`SLOTS`].
#[must_use]
pub fn lane(webhook: &shared::ids::WebhookId, event: &shared::ids::EventId) -> String {
    format!("webhook:{webhook}:{}", crc32fast::hash(event.as_str().as_bytes()) % SLOTS)
}

/// How many deliveries of one endpoint run at once: a lane is serial, and an endpoint has this many.
pub const SLOTS: u32 = 8;
