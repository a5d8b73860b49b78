//! The linked device's identity, and the secrets of messages.

use std::sync::Arc;

use async_trait::async_trait;
use wacore::{
    stats::StorageResourceReport,
    store::{
        Device,
        device::DEVICE_PROPS,
        error::Result as LibraryResult,
        traits::{DeviceStore, MsgSecretEntry, MsgSecretStore, merge_msg_secret_expiry, merge_msg_secret_message_ts},
    },
};

use super::{
    FencedBackend, Result,
    database::column,
    state::{KeyHash, Kind},
    transaction::{FenceLock, bytes},
    value::{from_json, to_json},
};

/// A handle is of one session, and a session is one device.
const DEVICE_ID: i32 = 1;

/// Joins the moments of a message secret with those stored: an expiry never comes nearer (0 is never), a known parent
/// time is never forgotten. The same as [`merge_msg_secret_expiry`] and [`merge_msg_secret_message_ts`].
const JOIN_SECRET_STAMPS: &str = "\
    stamp = CASE WHEN wa_state.stamp = 0 OR excluded.stamp = 0 THEN 0 \
            WHEN wa_state.stamp > excluded.stamp THEN wa_state.stamp ELSE excluded.stamp END, \
    stamp2 = CASE WHEN wa_state.stamp2 > excluded.stamp2 THEN wa_state.stamp2 ELSE excluded.stamp2 END";

#[async_trait]
impl DeviceStore for FencedBackend {
    async fn save(&self, device: &Device) -> LibraryResult<()> {
        let row = to_json("device", device).and_then(|value| self.keys().row(Kind::Device, &[], &value));
        Ok(self.put_one(row).await?)
    }

    async fn load(&self) -> LibraryResult<Option<Device>> {
        let Some(value) = self.value(Kind::Device, &[]).await? else { return Ok(None) };
        let mut device: Device = from_json("device", value)?;
        // Not part of the stored form; an empty one would name no operating system when it pairs.
        device.device_props = Arc::new(DEVICE_PROPS.clone());
        Ok(Some(device))
    }

    async fn exists(&self) -> LibraryResult<bool> {
        Ok(!self.rows(Kind::Device, "kind", "", []).await?.is_empty())
    }

    async fn create(&self) -> LibraryResult<i32> {
        let key = self.keys().hash(Kind::Device, &[]);
        let created = self.write("create a device", async {
            let tx = self.begin(FenceLock::Alone).await?;
            if tx.get(Kind::Device, &key).await?.is_none() {
                let value = to_json("device", &Device::new())?;
                tx.put(vec![self.keys().row(Kind::Device, &[], &value)?]).await?;
            }
            self.commit(tx).await
        });
        created.await?;
        Ok(DEVICE_ID)
    }

    async fn resource_report(&self) -> StorageResourceReport {
        // The connections are the store's, shared by every session.
        StorageResourceReport { memory_bytes: Some(0), ..StorageResourceReport::default() }
    }
}

#[async_trait]
impl MsgSecretStore for FencedBackend {
    async fn put_msg_secrets(&self, entries: Vec<MsgSecretEntry>) -> LibraryResult<usize> {
        let kind = Kind::MessageSecret;
        let count = entries.len();
        let mut joined: std::collections::HashMap<KeyHash, MsgSecretEntry> = std::collections::HashMap::new();
        for entry in entries {
            let parts = [entry.chat.as_bytes(), entry.sender.as_bytes(), entry.msg_id.as_bytes()];
            joined
                .entry(self.keys().hash(kind, &parts))
                .and_modify(|known| {
                    known.secret = entry.secret;
                    known.expires_at = merge_msg_secret_expiry(known.expires_at, entry.expires_at);
                    known.message_ts = merge_msg_secret_message_ts(known.message_ts, entry.message_ts);
                })
                .or_insert(entry);
        }
        if joined.is_empty() {
            return Ok(0);
        }
        let stored = self.write("write message secrets", async {
            let rows: Result<Vec<_>> = joined
                .values()
                .map(|entry| {
                    let parts = [entry.chat.as_bytes(), entry.sender.as_bytes(), entry.msg_id.as_bytes()];
                    let row = self.keys().row(kind, &parts, &entry.secret)?;
                    Ok(row.stamp(entry.expires_at).stamp2(entry.message_ts))
                })
                .collect();
            let tx = self.begin(FenceLock::Alone).await?;
            tx.put_with(rows?, JOIN_SECRET_STAMPS).await?;
            self.commit(tx).await
        });
        stored.await?;
        Ok(count)
    }

    async fn get_msg_secret(&self, chat: &str, sender: &str, msg_id: &str) -> LibraryResult<Option<Vec<u8>>> {
        Ok(self.get_msg_secret_with_ts(chat, sender, msg_id).await?.map(|(secret, _)| secret))
    }

    async fn get_msg_secret_with_ts(
        &self,
        chat: &str,
        sender: &str,
        msg_id: &str,
    ) -> LibraryResult<Option<(Vec<u8>, i64)>> {
        let kind = Kind::MessageSecret;
        let key = self.keys().hash(kind, &[chat.as_bytes(), sender.as_bytes(), msg_id.as_bytes()]);
        let rows = self.rows(kind, "stamp2, sealed", "AND key = $3", [bytes(&key)]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let secret = self.keys().open(kind, &key, &column::<Vec<u8>>(row, "sealed")?)?;
        Ok(Some((secret, column(row, "stamp2")?)))
    }

    async fn delete_expired_msg_secrets(&self, cutoff_timestamp: i64) -> LibraryResult<u32> {
        let expired = "stamp <> 0 AND stamp <= $3";
        let gone = self.delete_where(Kind::MessageSecret, expired, [cutoff_timestamp.into()]).await?;
        Ok(u32::try_from(gone).unwrap_or(u32::MAX))
    }
}
