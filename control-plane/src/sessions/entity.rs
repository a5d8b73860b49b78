//! The table `sessions`.

use sea_orm::{
    DatabaseTransaction, DbBackend, QuerySelect, QueryTrait, entity::prelude::*, sea_query::SelectStatement,
};
use serde::{Deserialize, Serialize};
use shared::{
    ids::{Incarnation, SessionId, StoreId, TenantId, WorkerId},
    time::Timestamp,
    wire::session,
};
use utoipa::ToSchema;

use crate::auth::TenantScope;

/// One session: what it should be, where it runs, and what it was last seen to be.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "sessions")]
pub struct Model {
    /// Its id.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: SessionId,
    /// Who owns it.
    pub tenant_id: TenantId,
    /// What its owner calls it.
    pub name: String,
    /// Which WhatsApp it speaks to. Never changes.
    pub network: NetworkColumn,
    /// The session's data key, sealed with the master key; emptied when the session is deleted.
    pub sealed_data_key: Vec<u8>,
    /// Which outbox sequence its worker writes: rises whenever its state begins anew.
    pub epoch: i64,
    /// [`session::SessionSettings`] as JSON.
    pub settings: Settings,
    /// What its owner wants.
    pub desired: DesiredColumn,
    /// Rises when its owner asks for a restart.
    pub restart_seq: i64,
    /// Rises with every change that the worker must hear of.
    pub intent_seq: i64,
    /// The `intent_seq` that a worker has been told.
    pub acted_intent_seq: i64,
    /// The store that holds its WhatsApp state, once it was placed.
    pub store_id: Option<StoreId>,
    /// The worker that it is placed on.
    pub worker_id: Option<WorkerId>,
    /// The worker that it is to be moved to, by an operator's wish, while it is placed on another.
    pub move_to: Option<WorkerId>,
    /// Rises by one with each placement.
    pub generation: i64,
    /// When it was placed.
    pub placed_at: Option<Timestamp>,
    /// A stable word about the last placement or its end, such as `no_capacity`.
    pub placement_note: Option<String>,
    /// What its worker last said.
    pub observed: Option<ObservedColumn>,
    /// Under which generation.
    pub observed_generation: i64,
    /// In which run.
    pub observed_incarnation: Option<Incarnation>,
    /// Orders the reports of one run.
    pub observed_report_seq: i64,
    /// The `restart_seq` that the worker has acted on.
    pub observed_restart_seq: i64,
    /// When it said so.
    pub observed_at: Option<Timestamp>,
    /// Since when it is so.
    pub observed_since: Option<Timestamp>,
    /// When the last frame came from WhatsApp, as far as reported.
    pub last_frame_at: Option<Timestamp>,
    /// Rises with each QR code.
    pub qr_seq: Option<i64>,
    /// A [`session::Account`] as JSON, sealed with the session's key.
    pub sealed_account: Option<Vec<u8>>,
    /// The status that the newest `session.status` event told: a [`super::status::Status`] as JSON.
    pub published_status: super::status::Status,
    /// When the reconciler has to look at it.
    pub reconcile_at: Timestamp,
    /// Calls to its worker that failed in a row.
    pub reconcile_failures: i64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its owner last changed it.
    pub updated_at: Timestamp,
    /// When it was deleted. What is left is the row's id: late rows of its outbox are known by it.
    pub deleted_at: Option<Timestamp>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// [`session::Network`] as a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Text")]
pub enum NetworkColumn {
    /// The real one.
    #[sea_orm(string_value = "whatsapp")]
    Whatsapp,
    /// The simulator.
    #[sea_orm(string_value = "sandbox")]
    Sandbox,
}

impl From<session::Network> for NetworkColumn {
    fn from(network: session::Network) -> Self {
        match network {
            session::Network::Whatsapp => Self::Whatsapp,
            session::Network::Sandbox => Self::Sandbox,
        }
    }
}

impl From<NetworkColumn> for session::Network {
    fn from(network: NetworkColumn) -> Self {
        match network {
            NetworkColumn::Whatsapp => Self::Whatsapp,
            NetworkColumn::Sandbox => Self::Sandbox,
        }
    }
}

/// What a session's owner wants of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum, Serialize, Deserialize, ToSchema)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
#[schema(as = DesiredState)]
pub enum DesiredColumn {
    /// Hold no connection, keep the link.
    #[sea_orm(string_value = "stopped")]
    Stopped,
    /// Be connected.
    #[sea_orm(string_value = "running")]
    Running,
    /// Remove the link from the account.
    #[sea_orm(string_value = "logged_out")]
    LoggedOut,
    /// Remove the link, then the session.
    #[sea_orm(string_value = "deleted")]
    Deleted,
}

impl From<DesiredColumn> for session::Desired {
    fn from(desired: DesiredColumn) -> Self {
        match desired {
            DesiredColumn::Stopped => Self::Stopped,
            DesiredColumn::Running => Self::Running,
            DesiredColumn::LoggedOut => Self::LoggedOut,
            DesiredColumn::Deleted => Self::Deleted,
        }
    }
}

/// [`session::Observed`] as a column of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, DeriveValueType)]
#[sea_orm(value_type = "String", from_str = "crate::db::from_json", to_str = "crate::db::to_json")]
pub struct ObservedColumn(pub session::Observed);

/// [`session::SessionSettings`] as a column of JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, DeriveValueType)]
#[sea_orm(value_type = "String", from_str = "crate::db::from_json", to_str = "crate::db::to_json")]
pub struct Settings(pub session::SessionSettings);

impl Entity {
    /// A tenant's session, unless it was deleted or lies outside the scope.
    pub fn of_tenant(scope: &TenantScope, id: &SessionId) -> Select<Self> {
        Self::all_of_tenant(scope).filter(Column::Id.eq(id.clone()))
    }

    /// A tenant's sessions, without those that were deleted or lie outside the scope.
    pub fn all_of_tenant(scope: &TenantScope) -> Select<Self> {
        Self::find()
            .filter(Column::TenantId.eq(scope.id().clone()))
            .filter(Column::DeletedAt.is_null())
            .apply_if(scope.sessions(), |query, only| query.filter(Column::Id.is_in(only.iter().cloned())))
            .apply_if(scope.network(), |query, only| query.filter(Column::Network.eq(NetworkColumn::from(only))))
    }

    /// The ids of a tenant's sessions of one network, those that were deleted too: what is left of them is known by these.
    pub fn ids_of_network(scope: &TenantScope, network: session::Network) -> SelectStatement {
        Self::find()
            .select_only()
            .column(Column::Id)
            .filter(Column::TenantId.eq(scope.id().clone()))
            .filter(Column::Network.eq(NetworkColumn::from(network)))
            .into_query()
    }
}

/// Locks a session's row until the transaction ends, and reads it. Whatever changes a session, or messages of it,
/// begins with this: sessions before workers and messages, tenants last, so that no two transactions wait for each other.
///
/// # Errors
/// As the driver.
pub async fn lock(tx: &DatabaseTransaction, id: &SessionId) -> Result<Option<Model>, DbErr> {
    let select = Entity::find_by_id(id.clone());
    match tx.get_database_backend() {
        DbBackend::Postgres => select.lock_exclusive().one(tx).await,
        // One writer: BEGIN IMMEDIATE has locked everything.
        _ => select.one(tx).await,
    }
}
