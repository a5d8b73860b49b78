//! The first form of the store: leases, fences, WhatsApp state, outbox, journal.

use sea_orm_migration::prelude::*;

/// See the module.
#[derive(Debug)]
pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m20251121_000001_store"
    }
}

#[derive(DeriveIden)]
enum StoreMeta {
    Table,
    Name,
    Value,
}

#[derive(DeriveIden)]
enum WorkerLease {
    Table,
    WorkerId,
    Incarnation,
    Until,
    RenewedAt,
}

#[derive(DeriveIden)]
enum Fence {
    Table,
    SessionId,
    Generation,
    WorkerId,
    Incarnation,
    Released,
    WantedGeneration,
    Epoch,
    NextSeq,
}

#[derive(DeriveIden)]
enum WaState {
    Table,
    SessionId,
    Kind,
    Key,
    GroupHash,
    MemberHash,
    Stamp,
    Stamp2,
    Flag,
    Sealed,
}

#[derive(DeriveIden)]
enum Outbox {
    Table,
    SessionId,
    Epoch,
    Seq,
    Sealed,
    CreatedAt,
}

#[derive(DeriveIden)]
enum Journal {
    Table,
    SessionId,
    WaId,
    MessageId,
    ChatHash,
    State,
    Error,
    Tries,
    OpenedAt,
    AckedAt,
}

#[derive(DeriveIden)]
enum ShipLease {
    Table,
    SessionId,
    WorkerId,
    Until,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in tables() {
            manager.create_table(table).await?;
        }
        for index in indexes() {
            manager.create_index(index).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in tables() {
            if let Some(name) = table.get_table_name() {
                manager.drop_table(Table::drop().table(name.clone()).to_owned()).await?;
            }
        }
        Ok(())
    }
}

fn tables() -> Vec<TableCreateStatement> {
    vec![
        Table::create()
            .table(StoreMeta::Table)
            .col(ColumnDef::new(StoreMeta::Name).text().not_null().primary_key())
            .col(ColumnDef::new(StoreMeta::Value).text().not_null())
            .to_owned(),
        Table::create()
            .table(WorkerLease::Table)
            .col(ColumnDef::new(WorkerLease::WorkerId).text().not_null().primary_key())
            .col(ColumnDef::new(WorkerLease::Incarnation).text().not_null())
            .col(ColumnDef::new(WorkerLease::Until).big_integer().not_null())
            .col(ColumnDef::new(WorkerLease::RenewedAt).big_integer().not_null())
            .to_owned(),
        Table::create()
            .table(Fence::Table)
            .col(ColumnDef::new(Fence::SessionId).text().not_null().primary_key())
            .col(ColumnDef::new(Fence::Generation).big_integer().not_null())
            .col(ColumnDef::new(Fence::WorkerId).text().not_null())
            .col(ColumnDef::new(Fence::Incarnation).text().not_null())
            .col(ColumnDef::new(Fence::Released).boolean().not_null())
            .col(ColumnDef::new(Fence::WantedGeneration).big_integer())
            .col(ColumnDef::new(Fence::Epoch).big_integer().not_null())
            .col(ColumnDef::new(Fence::NextSeq).big_integer().not_null())
            .to_owned(),
        Table::create()
            .table(WaState::Table)
            .col(ColumnDef::new(WaState::SessionId).text().not_null())
            .col(ColumnDef::new(WaState::Kind).small_integer().not_null())
            .col(ColumnDef::new(WaState::Key).binary().not_null())
            .col(ColumnDef::new(WaState::GroupHash).binary())
            .col(ColumnDef::new(WaState::MemberHash).binary())
            .col(ColumnDef::new(WaState::Stamp).big_integer())
            .col(ColumnDef::new(WaState::Stamp2).big_integer())
            .col(ColumnDef::new(WaState::Flag).boolean())
            .col(ColumnDef::new(WaState::Sealed).binary().not_null())
            .primary_key(Index::create().col(WaState::SessionId).col(WaState::Kind).col(WaState::Key))
            .to_owned(),
        Table::create()
            .table(Outbox::Table)
            .col(ColumnDef::new(Outbox::SessionId).text().not_null())
            .col(ColumnDef::new(Outbox::Epoch).big_integer().not_null())
            .col(ColumnDef::new(Outbox::Seq).big_integer().not_null())
            .col(ColumnDef::new(Outbox::Sealed).binary().not_null())
            .col(ColumnDef::new(Outbox::CreatedAt).big_integer().not_null())
            .primary_key(Index::create().col(Outbox::SessionId).col(Outbox::Epoch).col(Outbox::Seq))
            .to_owned(),
        Table::create()
            .table(Journal::Table)
            .col(ColumnDef::new(Journal::SessionId).text().not_null())
            .col(ColumnDef::new(Journal::WaId).text().not_null())
            .col(ColumnDef::new(Journal::MessageId).text().not_null())
            .col(ColumnDef::new(Journal::ChatHash).binary().not_null())
            .col(ColumnDef::new(Journal::State).small_integer().not_null())
            .col(ColumnDef::new(Journal::Error).integer())
            .col(ColumnDef::new(Journal::Tries).big_integer().not_null())
            .col(ColumnDef::new(Journal::OpenedAt).big_integer().not_null())
            .col(ColumnDef::new(Journal::AckedAt).big_integer())
            .primary_key(Index::create().col(Journal::SessionId).col(Journal::WaId))
            .to_owned(),
        Table::create()
            .table(ShipLease::Table)
            .col(ColumnDef::new(ShipLease::SessionId).text().not_null().primary_key())
            .col(ColumnDef::new(ShipLease::WorkerId).text().not_null())
            .col(ColumnDef::new(ShipLease::Until).big_integer().not_null())
            .to_owned(),
    ]
}

fn indexes() -> Vec<IndexCreateStatement> {
    vec![
        Index::create()
            .name("fence_wanted")
            .table(Fence::Table)
            .col(Fence::WorkerId)
            .and_where(Expr::col(Fence::WantedGeneration).is_not_null())
            .to_owned(),
        Index::create()
            .name("wa_state_group")
            .table(WaState::Table)
            .col(WaState::SessionId)
            .col(WaState::Kind)
            .col(WaState::GroupHash)
            .and_where(Expr::col(WaState::GroupHash).is_not_null())
            .to_owned(),
        Index::create()
            .name("wa_state_stamp")
            .table(WaState::Table)
            .col(WaState::SessionId)
            .col(WaState::Kind)
            .col(WaState::Stamp)
            .and_where(Expr::col(WaState::Stamp).is_not_null())
            .to_owned(),
        Index::create()
            .name("journal_acked")
            .table(Journal::Table)
            .col(Journal::AckedAt)
            .and_where(Expr::col(Journal::AckedAt).is_not_null())
            .to_owned(),
    ]
}
