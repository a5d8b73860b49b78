//! Pages of lists: newest first, by an opaque cursor.
//!
//! Ids sort by time, so a list is ordered by id and the cursor is the last id of the page before. A row that is added
//! while somebody pages doesn't move the rest.

use std::{fmt::Display, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use shared::problem::FieldError;
use utoipa::{IntoParams, ToSchema};
use validator::Validate;

use crate::error::{Kind, Refusal};

const DEFAULT_LIMIT: u64 = 20;

/// `?limit=&cursor=`, taken with [`ValidQuery`](super::ValidQuery).
#[derive(Debug, Clone, Default, Deserialize, Validate, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// How many to answer at most.
    #[validate(range(min = 1, max = 100))]
    #[param(minimum = 1, maximum = 100, default = 20, example = 20)]
    limit: Option<u64>,
    /// `next_cursor` of the page before. Absent: the newest.
    #[validate(length(max = 200))]
    #[param(max_length = 200)]
    cursor: Option<String>,
}

impl PageQuery {
    /// The largest page, from a cursor on.
    pub(crate) const fn largest(cursor: Option<String>) -> Self {
        Self { limit: Some(100), cursor }
    }

    /// How many rows to answer, 1 to 100.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit.unwrap_or(DEFAULT_LIMIT)
    }

    /// How many rows to ask the database for: one more, which tells whether there is a next page.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.limit() + 1
    }

    /// The id before which (`id < …`, newest first) this page begins.
    ///
    /// # Errors
    /// 400 `bad-request` if the cursor isn't one of ours for this kind of list.
    pub fn before<T: FromStr>(&self) -> Result<Option<T>, Refusal> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        URL_SAFE_NO_PAD
            .decode(cursor)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| text.parse().ok())
            .map(Some)
            .ok_or_else(|| {
                Kind::BadRequest.because("a query parameter can't be read").with_errors(vec![FieldError {
                    pointer: "cursor".into(),
                    code: "cursor".into(),
                    detail: "must be the next_cursor of a page of this list".into(),
                }])
            })
    }

    /// Makes the answer from up to [`rows`](Self::rows) rows.
    #[must_use]
    pub fn page<R, D>(&self, mut rows: Vec<R>, id: impl Fn(&R) -> &dyn Display, dto: impl Fn(R) -> D) -> Page<D> {
        let limit = usize::try_from(self.limit()).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows.last().filter(|_| more).map(|row| URL_SAFE_NO_PAD.encode(id(row).to_string()));
        Page { data: rows.into_iter().map(dto).collect(), next_cursor }
    }
}

/// One page of a list.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The newest first.
    pub data: Vec<T>,
    /// To be given as `cursor` for the next page; null on the last.
    pub next_cursor: Option<String>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::ids::{KeyId, SessionId};

    use super::*;

    proptest! {
        #[test]
        fn paging_visits_every_row_once(count in 0usize..60, limit in 1u64..=25) {
            let mut ids: Vec<KeyId> = (0..count).map(|_| KeyId::new()).collect();
            ids.sort_unstable();
            ids.reverse();
            let mut seen = Vec::new();
            let mut cursor = None;
            for _ in 0..=count {
                let query = PageQuery { limit: Some(limit), cursor };
                let before = query.before::<KeyId>().unwrap();
                let rows = ids.iter().filter(|id| before.as_ref().is_none_or(|b| *id < b));
                let rows = rows.take(usize::try_from(query.rows()).unwrap()).cloned().collect();
                let page = query.page(rows, |id: &KeyId| id, |id| id);
                prop_assert!(page.data.len() <= usize::try_from(limit).unwrap());
                seen.extend(page.data);
                cursor = page.next_cursor;
                if cursor.is_none() {
                    break;
                }
            }
            prop_assert_eq!(seen, ids);
        }
    }

    #[test]
    fn a_cursor_of_another_list_is_refused() {
        let query = PageQuery { limit: None, cursor: Some(URL_SAFE_NO_PAD.encode(KeyId::new().to_string())) };
        assert!(query.before::<SessionId>().is_err());
        assert!(query.before::<KeyId>().is_ok());
        assert!(PageQuery { limit: None, cursor: Some("%".into()) }.before::<KeyId>().is_err());
    }
}
