//! Signal state: identities, sessions, prekeys, sender keys. Records are the library's own bytes.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use wacore::store::{error::Result as LibraryResult, traits::SignalStore};

use super::{
    FencedBackend, Result, StoreError,
    database::{column, placeholders},
    state::{KeyHash, Kind, Row},
    transaction::{CHUNK, FenceLock, bytes},
};

/// `user@server` and `user:device@server` are of one user.
fn user_of(address: &str) -> &str {
    address.split(['@', ':']).next().unwrap_or(address)
}

impl FencedBackend {
    fn address_row(&self, kind: Kind, address: &str, record: &[u8]) -> Result<Row> {
        let user = self.keys().group(kind, user_of(address).as_bytes());
        Ok(self.keys().row(kind, &[address.as_bytes()], record)?.group(user))
    }

    fn numbered_row(&self, kind: Kind, id: u32, record: &[u8]) -> Result<Row> {
        Ok(self.keys().row(kind, &[&id.to_be_bytes()], record)?.stamp(i64::from(id)))
    }

    fn prekey_hash(&self, id: u32) -> KeyHash {
        self.keys().hash(Kind::Prekey, &[&id.to_be_bytes()])
    }

    async fn has_address_of(&self, kind: Kind, user: &str) -> Result<bool> {
        let group = self.keys().group(kind, user.as_bytes());
        Ok(!self.rows(kind, "kind", "AND group_hash = $3 LIMIT 1", [bytes(&group)]).await?.is_empty())
    }
}

#[async_trait]
impl SignalStore for FencedBackend {
    async fn put_identity(&self, address: &str, key: [u8; 32]) -> LibraryResult<()> {
        Ok(self.put_one(self.address_row(Kind::Identity, address, &key)).await?)
    }

    async fn put_identities_batch(&self, identities: &[(Arc<str>, [u8; 32])]) -> LibraryResult<()> {
        let rows = identities.iter().map(|(address, key)| self.address_row(Kind::Identity, address, key)).collect();
        Ok(self.put_many(rows).await?)
    }

    async fn load_identity(&self, address: &str) -> LibraryResult<Option<[u8; 32]>> {
        let value = self.value(Kind::Identity, &[address.as_bytes()]).await?;
        let key = value.map(|value| value.try_into().map_err(|_| StoreError::Encoding("identity key"))).transpose();
        Ok(key?)
    }

    async fn delete_identity(&self, address: &str) -> LibraryResult<()> {
        Ok(self.delete_one(Kind::Identity, &[address.as_bytes()]).await?)
    }

    async fn get_session(&self, address: &str) -> LibraryResult<Option<Bytes>> {
        Ok(self.value(Kind::Session, &[address.as_bytes()]).await?.map(Bytes::from))
    }

    async fn put_session(&self, address: &str, session: &[u8]) -> LibraryResult<()> {
        Ok(self.put_one(self.address_row(Kind::Session, address, session)).await?)
    }

    async fn put_sessions_batch(&self, sessions: &[(Arc<str>, Bytes)]) -> LibraryResult<()> {
        let rows = sessions.iter().map(|(address, record)| self.address_row(Kind::Session, address, record)).collect();
        Ok(self.put_many(rows).await?)
    }

    async fn delete_session(&self, address: &str) -> LibraryResult<()> {
        Ok(self.delete_one(Kind::Session, &[address.as_bytes()]).await?)
    }

    async fn has_session(&self, address: &str) -> LibraryResult<bool> {
        let key = self.keys().hash(Kind::Session, &[address.as_bytes()]);
        Ok(!self.rows(Kind::Session, "kind", "AND key = $3", [bytes(&key)]).await?.is_empty())
    }

    async fn has_signal_state_for_user(&self, user: &str) -> LibraryResult<bool> {
        Ok(self.has_address_of(Kind::Session, user).await? || self.has_address_of(Kind::Identity, user).await?)
    }

    async fn store_prekey(&self, id: u32, record: &[u8], uploaded: bool) -> LibraryResult<()> {
        Ok(self.put_one(self.numbered_row(Kind::Prekey, id, record).map(|row| row.flag(uploaded))).await?)
    }

    async fn store_prekeys_batch(&self, keys: &[(u32, Bytes)], uploaded: bool) -> LibraryResult<()> {
        let rows =
            keys.iter().map(|(id, record)| Ok(self.numbered_row(Kind::Prekey, *id, record)?.flag(uploaded))).collect();
        Ok(self.put_many(rows).await?)
    }

    async fn load_prekey(&self, id: u32) -> LibraryResult<Option<Bytes>> {
        Ok(self.value(Kind::Prekey, &[&id.to_be_bytes()]).await?.map(Bytes::from))
    }

    async fn load_prekeys_batch(&self, ids: &[u32]) -> LibraryResult<Vec<(u32, Bytes)>> {
        let hashes: Vec<KeyHash> = ids.iter().map(|id| self.prekey_hash(*id)).collect();
        let mut found: HashMap<KeyHash, Vec<u8>> = self.values(Kind::Prekey, &hashes).await?.into_iter().collect();
        Ok(ids.iter().zip(&hashes).filter_map(|(id, hash)| Some((*id, Bytes::from(found.remove(hash)?)))).collect())
    }

    async fn mark_prekeys_uploaded(&self, ids: &[u32]) -> LibraryResult<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let marked = self.write("mark prekeys", async {
            let tx = self.begin(FenceLock::Alone).await?;
            for ids in ids.chunks(CHUNK) {
                let sql = format!(
                    "UPDATE wa_state SET flag = TRUE WHERE session_id = $1 AND kind = $2 AND key IN ({})",
                    placeholders(3, ids.len())
                );
                let values = [tx.session(), Kind::Prekey.code().into()]
                    .into_iter()
                    .chain(ids.iter().map(|id| bytes(&self.prekey_hash(*id))));
                tx.execute("mark prekeys", sql, values).await?;
            }
            self.commit(tx).await
        });
        Ok(marked.await?)
    }

    async fn remove_prekey(&self, id: u32) -> LibraryResult<()> {
        Ok(self.delete_one(Kind::Prekey, &[&id.to_be_bytes()]).await?)
    }

    async fn get_max_prekey_id(&self) -> LibraryResult<u32> {
        let rows = self.rows(Kind::Prekey, "MAX(stamp) AS newest", "", []).await?;
        let newest = rows.first().map(|row| column::<Option<i64>>(row, "newest")).transpose()?.flatten();
        Ok(u32::try_from(newest.unwrap_or(0)).map_err(|_| StoreError::Encoding("prekey number"))?)
    }

    async fn store_signed_prekey(&self, id: u32, record: &[u8]) -> LibraryResult<()> {
        Ok(self.put_one(self.numbered_row(Kind::SignedPrekey, id, record)).await?)
    }

    async fn load_signed_prekey(&self, id: u32) -> LibraryResult<Option<Vec<u8>>> {
        Ok(self.value(Kind::SignedPrekey, &[&id.to_be_bytes()]).await?)
    }

    async fn load_all_signed_prekeys(&self) -> LibraryResult<Vec<(u32, Vec<u8>)>> {
        let rows = self.rows(Kind::SignedPrekey, "key, stamp, sealed", "ORDER BY stamp", []).await?;
        let all: Result<_> = rows
            .iter()
            .map(|row| {
                let id = u32::try_from(column::<i64>(row, "stamp")?).map_err(|_| StoreError::Encoding("prekey number"));
                Ok((id?, self.opened(Kind::SignedPrekey, row)?.1))
            })
            .collect();
        Ok(all?)
    }

    async fn remove_signed_prekey(&self, id: u32) -> LibraryResult<()> {
        Ok(self.delete_one(Kind::SignedPrekey, &[&id.to_be_bytes()]).await?)
    }

    async fn put_sender_key(&self, address: &str, record: &[u8]) -> LibraryResult<()> {
        Ok(self.put_one(self.keys().row(Kind::SenderKey, &[address.as_bytes()], record)).await?)
    }

    async fn put_sender_keys_batch(&self, sender_keys: &[(Arc<str>, Bytes)]) -> LibraryResult<()> {
        let rows = sender_keys
            .iter()
            .map(|(address, record)| self.keys().row(Kind::SenderKey, &[address.as_bytes()], record))
            .collect();
        Ok(self.put_many(rows).await?)
    }

    async fn get_sender_key(&self, address: &str) -> LibraryResult<Option<Vec<u8>>> {
        Ok(self.value(Kind::SenderKey, &[address.as_bytes()]).await?)
    }

    async fn delete_sender_key(&self, address: &str) -> LibraryResult<()> {
        Ok(self.delete_one(Kind::SenderKey, &[address.as_bytes()]).await?)
    }
}
