//! App-state sync: keys, collection versions, mutation MACs.

use std::collections::HashMap;

use async_trait::async_trait;
use wacore::{
    appstate::{hash::HashState, processor::AppStateMutationMAC},
    store::{
        error::Result as LibraryResult,
        traits::{AppStateSyncKey, AppSyncStore},
    },
};

use super::{
    FencedBackend, Result,
    state::{KeyHash, Kind},
    transaction::bytes,
    value::{from_json, to_json},
};

#[async_trait]
impl AppSyncStore for FencedBackend {
    async fn get_sync_key(&self, key_id: &[u8]) -> LibraryResult<Option<AppStateSyncKey>> {
        let value = self.value(Kind::SyncKey, &[key_id]).await?;
        Ok(value.map(|value| from_json("sync key", value)).transpose()?)
    }

    async fn set_sync_key(&self, key_id: &[u8], key: AppStateSyncKey) -> LibraryResult<()> {
        let rows = || -> Result<_> {
            Ok(vec![
                self.keys().row(Kind::SyncKey, &[key_id], &to_json("sync key", &key)?)?,
                self.keys().row(Kind::LatestSyncKey, &[], key_id)?,
            ])
        };
        Ok(self.put_many(rows()).await?)
    }

    async fn get_version(&self, name: &str) -> LibraryResult<HashState> {
        let value = self.value(Kind::AppStateVersion, &[name.as_bytes()]).await?;
        Ok(value.map(|value| from_json("app-state version", value)).transpose()?.unwrap_or_default())
    }

    async fn set_version(&self, name: &str, state: HashState) -> LibraryResult<()> {
        let row = to_json("app-state version", &state)
            .and_then(|value| self.keys().row(Kind::AppStateVersion, &[name.as_bytes()], &value));
        Ok(self.put_one(row).await?)
    }

    async fn put_mutation_macs(
        &self,
        name: &str,
        _version: u64,
        mutations: &[AppStateMutationMAC],
    ) -> LibraryResult<()> {
        let collection = self.keys().group(Kind::MutationMac, name.as_bytes());
        let rows = mutations
            .iter()
            .map(|mac| {
                let row = self.keys().row(Kind::MutationMac, &[name.as_bytes(), &mac.index_mac], &mac.value_mac)?;
                Ok(row.group(collection))
            })
            .collect();
        Ok(self.put_many(rows).await?)
    }

    async fn get_mutation_mac(&self, name: &str, index_mac: &[u8]) -> LibraryResult<Option<Vec<u8>>> {
        Ok(self.value(Kind::MutationMac, &[name.as_bytes(), index_mac]).await?)
    }

    async fn get_mutation_macs(
        &self,
        name: &str,
        index_macs: &[[u8; 32]],
    ) -> LibraryResult<HashMap<[u8; 32], Vec<u8>>> {
        let by_hash: HashMap<KeyHash, [u8; 32]> = index_macs
            .iter()
            .map(|index| (self.keys().hash(Kind::MutationMac, &[name.as_bytes(), index]), *index))
            .collect();
        let hashes: Vec<KeyHash> = by_hash.keys().copied().collect();
        let found = self.values(Kind::MutationMac, &hashes).await?;
        Ok(found.into_iter().filter_map(|(hash, mac)| Some((*by_hash.get(&hash)?, mac))).collect())
    }

    async fn delete_mutation_macs(&self, name: &str, index_macs: &[Vec<u8>]) -> LibraryResult<()> {
        let keys: Vec<KeyHash> =
            index_macs.iter().map(|index| self.keys().hash(Kind::MutationMac, &[name.as_bytes(), index])).collect();
        Ok(self.delete_many(Kind::MutationMac, &keys).await?)
    }

    async fn clear_mutation_macs(&self, name: &str) -> LibraryResult<()> {
        let collection = self.keys().group(Kind::MutationMac, name.as_bytes());
        self.delete_where(Kind::MutationMac, "group_hash = $3", [bytes(&collection)]).await?;
        Ok(())
    }

    async fn get_latest_sync_key_id(&self) -> LibraryResult<Option<Vec<u8>>> {
        Ok(self.value(Kind::LatestSyncKey, &[]).await?)
    }
}
