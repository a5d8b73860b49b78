//! What became of what was sent: as WhatsApp, the phones and the worker's journal have it.

use std::collections::{BTreeMap, BTreeSet};

use crate::stack::{Stack, Tenant};

/// Without repeats, in the order in which they came first.
pub fn first_of_each<T: Ord + Clone>(all: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut seen = BTreeSet::new();
    all.into_iter().filter(|one| seen.insert(one.clone())).collect()
}

/// What WhatsApp accepted of a session: the ids in the order in which they came first, and when each came.
pub async fn accepted(stack: &Stack, tenant: &Tenant) -> (Vec<String>, BTreeMap<String, Vec<i64>>) {
    let mut times = BTreeMap::<String, Vec<i64>>::new();
    let mut order = Vec::new();
    let entries = stack.network.accepted_of(&format!("{}:1@s.whatsapp.net", tenant.phone)).await.unwrap();
    for entry in entries.iter().filter(|entry| entry["category"].is_null()) {
        let id = entry["id"].as_str().unwrap().to_owned();
        times.entry(id.clone()).or_default().push(entry["at"].as_i64().unwrap());
        order.push(id);
    }
    (first_of_each(order), times)
}

/// What a session's send journal says of each id: how many tries it opened, those taken back aside, and when WhatsApp's word
/// was recorded. By the journal, not the message: that one also counts hand-overs of which nothing was sent, and a receipt
/// that comes late may say that it was sent before a try that it didn't stop.
pub async fn journal(stack: &Stack, session: &str) -> BTreeMap<String, (usize, Option<i64>)> {
    let query = format!(
        "SELECT wa_id || ' ' || CAST(tries AS TEXT) || ' ' || COALESCE(CAST(acked_at AS TEXT), '') FROM journal \
         WHERE session_id = '{session}'"
    );
    let rows = stack.query_store(&query).await;
    rows.iter()
        .map(|row| {
            let fields: Vec<&str> = row.split(' ').collect();
            (fields[0].to_owned(), (fields[1].parse().unwrap(), fields[2].parse().ok()))
        })
        .collect()
}

/// None of the times at which WhatsApp accepted an id is after that of its recorded acknowledgement.
pub fn assert_none_after(times: &[i64], acknowledged: Option<i64>) {
    // WhatsApp tells the time in seconds.
    let late = acknowledged.map_or(0, |acknowledged| times.iter().filter(|at| **at > acknowledged + 1_999).count());
    assert_eq!(late, 0, "an id was sent again after its acknowledgement had been recorded");
}
