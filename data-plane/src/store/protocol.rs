//! Protocol state: sender-key distribution, LID mappings, device lists, tokens, sent messages, and the inbound messages
//! that the durability hook has not committed yet.

use async_trait::async_trait;
use wacore::{
    store::{
        error::Result as LibraryResult,
        traits::{
            DeviceListRecord, LidPnMappingEntry, PendingInboundKey, PendingInboundRow, ProtocolStore, TcTokenEntry,
        },
    },
    time::now_secs,
};

use super::{
    FencedBackend, Result, StoreError,
    database::{column, placeholders},
    state::{KeyHash, Kind, Row},
    transaction::{CHUNK, FenceLock, bytes},
    value::{from_json, text, to_json},
};

impl FencedBackend {
    fn lid_row(&self, entry: &LidPnMappingEntry) -> Result<Row> {
        let phone = self.keys().group(Kind::LidMapping, entry.phone_number.as_bytes());
        let value = to_json("LID mapping", entry)?;
        let row = self.keys().row(Kind::LidMapping, &[entry.lid.as_bytes()], &value)?;
        Ok(row.group(phone).stamp(entry.updated_at))
    }

    fn device_list_row(&self, record: &DeviceListRecord) -> Result<Row> {
        self.keys().row(Kind::DeviceList, &[record.user.as_bytes()], &to_json("device list", record)?)
    }

    fn token_row(&self, jid: &str, entry: &TcTokenEntry) -> Result<Row> {
        let value = to_json("token", &(jid, entry))?;
        let row = self.keys().row(Kind::TcToken, &[jid.as_bytes()], &value)?;
        let received = (!entry.token.is_empty()).then_some(entry.token_timestamp);
        Ok(row.stamp(received).stamp2(entry.sender_timestamp))
    }

    /// Changes a contact's token row, alone: two writers own a half of it each, and neither may drop the other's.
    async fn change_token(
        &self,
        jid: &str,
        change: impl FnOnce(Option<TcTokenEntry>) -> Option<TcTokenEntry> + Send,
    ) -> Result<()> {
        let key = self.keys().hash(Kind::TcToken, &[jid.as_bytes()]);
        self.write("change a token", async {
            let tx = self.begin(FenceLock::Alone).await?;
            let present = match tx.get(Kind::TcToken, &key).await? {
                Some(sealed) => {
                    let value = self.keys().open(Kind::TcToken, &key, &sealed)?;
                    Some(from_json::<(String, TcTokenEntry)>("token", value)?.1)
                }
                None => None,
            };
            if let Some(entry) = change(present) {
                tx.put(vec![self.token_row(jid, &entry)?]).await?;
            }
            self.commit(tx).await
        })
        .await
    }

    fn pending_row(&self, row: &PendingInboundRow<'_>) -> Result<Row> {
        let parts = [row.chat.as_bytes(), row.sender.as_bytes(), row.id.as_bytes()];
        Ok(self.keys().row(Kind::PendingInbound, &parts, row.message)?.stamp(now_secs()))
    }

    async fn delete_older(&self, kind: Kind, cutoff: i64) -> Result<u32> {
        let gone = self.delete_where(kind, "stamp < $3", [cutoff.into()]).await?;
        Ok(u32::try_from(gone).unwrap_or(u32::MAX))
    }
}

#[async_trait]
impl ProtocolStore for FencedBackend {
    async fn get_sender_key_devices(&self, group_jid: &str) -> LibraryResult<Vec<(String, bool)>> {
        let group = self.keys().group(Kind::SenderKeyDevice, group_jid.as_bytes());
        let rows = self.rows(Kind::SenderKeyDevice, "key, sealed", "AND group_hash = $3", [bytes(&group)]).await?;
        let devices: Result<_> = rows
            .iter()
            .map(|row| {
                let (_, mut value) = self.opened(Kind::SenderKeyDevice, row)?;
                let has_key = value.pop().ok_or(StoreError::Encoding("sender-key device"))? == 1;
                Ok((text("sender-key device", value)?, has_key))
            })
            .collect();
        Ok(devices?)
    }

    async fn set_sender_key_status(&self, group_jid: &str, entries: &[(&str, bool)]) -> LibraryResult<()> {
        let kind = Kind::SenderKeyDevice;
        let group = self.keys().group(kind, group_jid.as_bytes());
        let rows = entries
            .iter()
            .map(|(device, has_key)| {
                let value = [device.as_bytes(), &[u8::from(*has_key)]].concat();
                let row = self.keys().row(kind, &[group_jid.as_bytes(), device.as_bytes()], &value)?;
                Ok(row.group(group).member(self.keys().member(kind, device.as_bytes())))
            })
            .collect();
        Ok(self.put_many(rows).await?)
    }

    async fn clear_sender_key_devices(&self, group_jid: &str) -> LibraryResult<()> {
        let group = self.keys().group(Kind::SenderKeyDevice, group_jid.as_bytes());
        self.delete_where(Kind::SenderKeyDevice, "group_hash = $3", [bytes(&group)]).await?;
        Ok(())
    }

    async fn delete_sender_key_device_rows(&self, device_jids: &[&str]) -> LibraryResult<()> {
        for devices in device_jids.chunks(CHUNK) {
            let hash = |jid: &&str| bytes(&self.keys().member(Kind::SenderKeyDevice, jid.as_bytes()));
            let members: Vec<sea_orm::Value> = devices.iter().map(hash).collect();
            let condition = format!("member_hash IN ({})", placeholders(3, devices.len()));
            self.delete_where(Kind::SenderKeyDevice, &condition, members).await?;
        }
        Ok(())
    }

    async fn clear_all_sender_key_devices(&self) -> LibraryResult<()> {
        self.delete_where(Kind::SenderKeyDevice, "TRUE", []).await?;
        Ok(())
    }

    async fn get_lid_mapping(&self, lid: &str) -> LibraryResult<Option<LidPnMappingEntry>> {
        let value = self.value(Kind::LidMapping, &[lid.as_bytes()]).await?;
        Ok(value.map(|value| from_json("LID mapping", value)).transpose()?)
    }

    async fn get_pn_mapping(&self, phone: &str) -> LibraryResult<Option<LidPnMappingEntry>> {
        let group = self.keys().group(Kind::LidMapping, phone.as_bytes());
        let newest = "AND group_hash = $3 ORDER BY stamp DESC LIMIT 1";
        let rows = self.rows(Kind::LidMapping, "key, sealed", newest, [bytes(&group)]).await?;
        let entry: Result<_> =
            rows.first().map(|row| from_json("LID mapping", self.opened(Kind::LidMapping, row)?.1)).transpose();
        Ok(entry?)
    }

    async fn put_lid_mapping(&self, entry: &LidPnMappingEntry) -> LibraryResult<()> {
        Ok(self.put_one(self.lid_row(entry)).await?)
    }

    async fn put_lid_mappings(&self, entries: &[LidPnMappingEntry]) -> LibraryResult<()> {
        Ok(self.put_many(entries.iter().map(|entry| self.lid_row(entry)).collect()).await?)
    }

    async fn get_all_lid_mappings(&self) -> LibraryResult<Vec<LidPnMappingEntry>> {
        let rows = self.rows(Kind::LidMapping, "key, sealed", "", []).await?;
        let all: Result<_> =
            rows.iter().map(|row| from_json("LID mapping", self.opened(Kind::LidMapping, row)?.1)).collect();
        Ok(all?)
    }

    async fn save_base_key(&self, address: &str, message_id: &str, base_key: &[u8]) -> LibraryResult<()> {
        let parts = [address.as_bytes(), message_id.as_bytes()];
        Ok(self.put_one(self.keys().row(Kind::BaseKey, &parts, base_key)).await?)
    }

    async fn has_same_base_key(&self, address: &str, message_id: &str, current_base_key: &[u8]) -> LibraryResult<bool> {
        let stored = self.value(Kind::BaseKey, &[address.as_bytes(), message_id.as_bytes()]).await?;
        Ok(stored.is_some_and(|stored| stored == current_base_key))
    }

    async fn delete_base_key(&self, address: &str, message_id: &str) -> LibraryResult<()> {
        Ok(self.delete_one(Kind::BaseKey, &[address.as_bytes(), message_id.as_bytes()]).await?)
    }

    async fn update_device_list(&self, record: DeviceListRecord) -> LibraryResult<()> {
        Ok(self.put_one(self.device_list_row(&record)).await?)
    }

    async fn update_device_lists(&self, records: Vec<DeviceListRecord>) -> LibraryResult<()> {
        Ok(self.put_many(records.iter().map(|record| self.device_list_row(record)).collect()).await?)
    }

    async fn get_devices(&self, user: &str) -> LibraryResult<Option<DeviceListRecord>> {
        let value = self.value(Kind::DeviceList, &[user.as_bytes()]).await?;
        Ok(value.map(|value| from_json("device list", value)).transpose()?)
    }

    async fn delete_devices(&self, user: &str) -> LibraryResult<()> {
        Ok(self.delete_one(Kind::DeviceList, &[user.as_bytes()]).await?)
    }

    async fn get_group_metadata(&self, group_jid: &str) -> LibraryResult<Option<Vec<u8>>> {
        Ok(self.value(Kind::GroupMetadata, &[group_jid.as_bytes()]).await?)
    }

    async fn put_group_metadata(&self, group_jid: &str, blob: &[u8]) -> LibraryResult<()> {
        Ok(self.put_one(self.keys().row(Kind::GroupMetadata, &[group_jid.as_bytes()], blob)).await?)
    }

    async fn delete_group_metadata(&self, group_jid: &str) -> LibraryResult<()> {
        Ok(self.delete_one(Kind::GroupMetadata, &[group_jid.as_bytes()]).await?)
    }

    async fn get_tc_token(&self, jid: &str) -> LibraryResult<Option<TcTokenEntry>> {
        let value = self.value(Kind::TcToken, &[jid.as_bytes()]).await?;
        let pair = value.map(|value| from_json::<(String, TcTokenEntry)>("token", value)).transpose()?;
        Ok(pair.map(|(_, entry)| entry))
    }

    async fn put_tc_token(&self, jid: &str, entry: &TcTokenEntry) -> LibraryResult<()> {
        Ok(self.put_one(self.token_row(jid, entry)).await?)
    }

    async fn delete_tc_token(&self, jid: &str) -> LibraryResult<()> {
        Ok(self.delete_one(Kind::TcToken, &[jid.as_bytes()]).await?)
    }

    async fn get_all_tc_token_jids(&self) -> LibraryResult<Vec<String>> {
        let rows = self.rows(Kind::TcToken, "key, sealed", "", []).await?;
        let jids: Result<_> = rows
            .iter()
            .map(|row| Ok(from_json::<(String, TcTokenEntry)>("token", self.opened(Kind::TcToken, row)?.1)?.0))
            .collect();
        Ok(jids?)
    }

    async fn delete_expired_tc_tokens(&self, token_cutoff: i64, sender_cutoff: i64) -> LibraryResult<u32> {
        let both_stale = "(stamp IS NULL OR stamp < $3) AND (stamp2 IS NULL OR stamp2 < $4)";
        let gone = self.delete_where(Kind::TcToken, both_stale, [token_cutoff.into(), sender_cutoff.into()]).await?;
        Ok(u32::try_from(gone).unwrap_or(u32::MAX))
    }

    async fn touch_tc_token_sender_timestamp(&self, jid: &str, sender_timestamp: i64) -> LibraryResult<()> {
        let changed = self.change_token(jid, |present| {
            Some(match present {
                Some(entry) => TcTokenEntry {
                    sender_timestamp: Some(
                        entry.sender_timestamp.map_or(sender_timestamp, |known| known.max(sender_timestamp)),
                    ),
                    ..entry
                },
                None => TcTokenEntry {
                    token: Vec::new(),
                    token_timestamp: sender_timestamp,
                    sender_timestamp: Some(sender_timestamp),
                },
            })
        });
        Ok(changed.await?)
    }

    async fn store_received_tc_token(&self, jid: &str, token: &[u8], token_timestamp: i64) -> LibraryResult<()> {
        let changed = self.change_token(jid, |present| {
            // A fresher real token stays; a placeholder never blocks the first real one.
            if present.as_ref().is_some_and(|known| !known.token.is_empty() && token_timestamp < known.token_timestamp)
            {
                return None;
            }
            let sender_timestamp = present.and_then(|known| known.sender_timestamp);
            Some(TcTokenEntry { token: token.to_vec(), token_timestamp, sender_timestamp })
        });
        Ok(changed.await?)
    }

    async fn store_sent_message(&self, chat_jid: &str, message_id: &str, payload: &[u8]) -> LibraryResult<()> {
        let row = self.keys().row(Kind::SentMessage, &[chat_jid.as_bytes(), message_id.as_bytes()], payload);
        Ok(self.put_one(row.map(|row| row.stamp(now_secs()))).await?)
    }

    async fn take_sent_message(&self, chat_jid: &str, message_id: &str) -> LibraryResult<Option<Vec<u8>>> {
        let kind = Kind::SentMessage;
        let key = self.keys().hash(kind, &[chat_jid.as_bytes(), message_id.as_bytes()]);
        let taken = self.write("take a sent message", async {
            let tx = self.begin(FenceLock::Shared).await?;
            let rows = tx
                .rows(
                    "take a sent message",
                    "DELETE FROM wa_state WHERE session_id = $1 AND kind = $2 AND key = $3 RETURNING sealed",
                    [tx.session(), kind.code().into(), bytes(&key)],
                )
                .await?;
            self.commit(tx).await?;
            rows.first().map(|row| column::<Vec<u8>>(row, "sealed")).transpose()
        });
        let sealed = taken.await?;
        Ok(sealed.map(|sealed| self.keys().open(kind, &key, &sealed)).transpose()?)
    }

    async fn delete_expired_sent_messages(&self, cutoff_timestamp: i64) -> LibraryResult<u32> {
        Ok(self.delete_older(Kind::SentMessage, cutoff_timestamp).await?)
    }

    async fn store_pending_inbound(&self, chat: &str, sender: &str, id: &str, message: &[u8]) -> LibraryResult<()> {
        Ok(self.put_one(self.pending_row(&PendingInboundRow { chat, sender, id, message })).await?)
    }

    async fn get_pending_inbound(&self, chat: &str, sender: &str, id: &str) -> LibraryResult<Option<Vec<u8>>> {
        Ok(self.value(Kind::PendingInbound, &[chat.as_bytes(), sender.as_bytes(), id.as_bytes()]).await?)
    }

    async fn delete_pending_inbound(&self, chat: &str, sender: &str, id: &str) -> LibraryResult<()> {
        let parts = [chat.as_bytes(), sender.as_bytes(), id.as_bytes()];
        Ok(self.delete_one(Kind::PendingInbound, &parts).await?)
    }

    async fn delete_expired_pending_inbound(&self, cutoff_timestamp: i64) -> LibraryResult<u32> {
        Ok(self.delete_older(Kind::PendingInbound, cutoff_timestamp).await?)
    }

    async fn store_pending_inbound_batch(&self, rows: &[PendingInboundRow<'_>]) -> LibraryResult<()> {
        Ok(self.put_many(rows.iter().map(|row| self.pending_row(row)).collect()).await?)
    }

    async fn delete_pending_inbound_batch(&self, keys: &[PendingInboundKey<'_>]) -> LibraryResult<()> {
        let keys: Vec<KeyHash> = keys
            .iter()
            .map(|key| {
                let parts = [key.chat.as_bytes(), key.sender.as_bytes(), key.id.as_bytes()];
                self.keys().hash(Kind::PendingInbound, &parts)
            })
            .collect();
        Ok(self.delete_many(Kind::PendingInbound, &keys).await?)
    }
}
