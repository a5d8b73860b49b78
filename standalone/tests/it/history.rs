//! What must hold of a history, however rough the way was.

use std::collections::{BTreeMap, BTreeSet};

use crate::stack::{PATIENCE, Stack, Tenant, received_texts, until};

/// Waits until WhatsApp has nothing left for the session, then checks that each expected text is in history exactly
/// once and at the webhook receiver at least once.
pub async fn assert_complete(stack: &Stack, tenant: &Tenant, expected: &BTreeSet<String>) {
    until("WhatsApp's queue is empty", PATIENCE * 2, async || {
        (stack.network.unacknowledged(&tenant.phone).await.unwrap() == 0).then_some(())
    })
    .await;
    until("every message is in history", PATIENCE * 2, async || {
        (tenant.texts("inbound").await.iter().collect::<BTreeSet<_>>().len() >= expected.len()).then_some(())
    })
    .await;
    let mut counts = BTreeMap::<String, usize>::new();
    for text in tenant.texts("inbound").await {
        *counts.entry(text).or_default() += 1;
    }
    let missing: Vec<_> = expected.iter().filter(|text| !counts.contains_key(*text)).collect();
    assert!(missing.is_empty(), "{} messages missing in history, such as {:?}", missing.len(), missing[0]);
    let repeated: Vec<_> = counts.iter().filter(|(_, count)| **count != 1).collect();
    assert!(repeated.is_empty(), "{} messages twice in history, such as {:?}", repeated.len(), repeated[0]);
    until("every message is at the webhook receiver", PATIENCE * 2, async || {
        let got: BTreeSet<_> = received_texts(&stack.receiver.events()).into_iter().collect();
        expected.is_subset(&got).then_some(())
    })
    .await;
}
