//! Tries without a word, by age: the journal forgets those of long ago as well.

use sea_orm_migration::prelude::*;

/// See the module.
#[derive(Debug)]
pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m20261121_000002_open_tries"
    }
}

#[derive(DeriveIden)]
enum Journal {
    Table,
    AckedAt,
    OpenedAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let open = Index::create()
            .name("journal_open")
            .table(Journal::Table)
            .col(Journal::OpenedAt)
            .and_where(Expr::col(Journal::AckedAt).is_null())
            .to_owned();
        manager.create_index(open).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_index(Index::drop().name("journal_open").table(Journal::Table).to_owned()).await
    }
}
