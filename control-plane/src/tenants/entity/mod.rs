//! Tables of tenants and their people.

pub(crate) mod export;
pub(crate) mod invitation;
pub(crate) mod member;
pub(crate) mod ownership_offer;
pub(crate) mod tenant;
