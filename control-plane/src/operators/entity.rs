//! Tables of operators.

/// Table `operators`.
pub mod operator {
    use sea_orm::entity::prelude::*;
    use shared::{ids::OperatorId, time::Timestamp};

    /// An operator. Extracting one is the authorisation.
    #[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "operators")]
    pub struct Model {
        /// Who.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: OperatorId,
        /// In lower case.
        #[sea_orm(unique)]
        pub email: String,
        /// What to call them.
        pub name: String,
        /// argon2id, as a PHC string.
        pub password_hash: String,
        /// When they were made.
        pub created_at: Timestamp,
    }

    impl std::fmt::Debug for Model {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Operator").field("id", &self.id).finish_non_exhaustive()
        }
    }

    /// None.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Table `operator_logins`.
pub mod login {
    use sea_orm::entity::prelude::*;
    use shared::{ids::OperatorId, time::Timestamp};

    /// A login of an operator.
    #[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "operator_logins")]
    pub struct Model {
        /// The keyed hash of its token.
        #[sea_orm(primary_key, auto_increment = false)]
        pub token_hash: Vec<u8>,
        /// Whose.
        pub operator_id: OperatorId,
        /// When it began.
        pub created_at: Timestamp,
        /// When it ends by itself.
        pub expires_at: Timestamp,
    }

    impl std::fmt::Debug for Model {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("OperatorLogin").field("operator_id", &self.operator_id).finish_non_exhaustive()
        }
    }

    /// None.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}
