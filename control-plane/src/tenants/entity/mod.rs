//! Tables of tenants and their people.

pub(crate) mod member;
pub(crate) mod tenant;
