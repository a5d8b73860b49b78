//! Whether the log is as it was written.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DatabaseConnection, DbErr, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, Statement,
};
use shared::ids::TenantId;

use super::{
    entity::{self, Model, head},
    heads::Heads,
    log::Log,
    seal::{BEFORE_FIRST, link},
};
use crate::jobs::schedule::installation;

/// How many rows are read at once.
const BATCH: u64 = 1000;
/// How many findings are told; there may be more.
const MOST: usize = 1000;
/// The operation under which the installation's log says that a tenant is gone.
pub(crate) const TENANT_DELETED: &str = "tenant_deleted";

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// The row at a position says something else than when it was sealed.
    Changed(i64, String),
    /// A row was put there.
    Inserted(Option<i64>, String),
    /// The rows from one position to another are gone.
    Removed(i64, i64),
    /// The row at a position is another than the one whose link was copied to the object store.
    Replaced(i64),
    /// The end of the log is recorded elsewhere than it is.
    Head(i64),
    /// So many lines of exported heads weren't written by this installation.
    Heads(usize),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed(position, id) => write!(f, "the row at position {position} ({id}) was changed"),
            Self::Inserted(Some(position), id) => write!(f, "the row at position {position} ({id}) was inserted"),
            Self::Inserted(None, id) => write!(f, "a row that isn't sealed ({id}) was inserted or changed"),
            Self::Removed(from, to) if from == to => write!(f, "the row at position {from} was removed"),
            Self::Removed(from, to) => write!(f, "the rows at positions {from} to {to} were removed"),
            Self::Replaced(position) => write!(f, "the row at position {position} is not the one that was there"),
            Self::Head(position) => write!(f, "the recorded end, position {position}, was changed"),
            Self::Heads(lines) => write!(f, "{lines} lines of the exported heads were changed"),
        }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// How many logs were walked.
    pub logs: usize,
    /// How many rows.
    pub rows: u64,
    /// What is wrong, by log.
    pub wrong: Vec<(String, Wrong)>,
}

impl Report {
    fn add(&mut self, log: &str, wrong: Wrong) {
        if self.wrong.len() < MOST {
            self.wrong.push((log.to_owned(), wrong));
        }
    }
}

/// Walks one tenant's log, or all, and compares with heads that were copied earlier.
///
/// # Errors
/// As the driver.
pub async fn verify(
    db: &DatabaseConnection,
    keys: &Log,
    only: Option<&TenantId>,
    heads: &Heads,
) -> Result<Report, DbErr> {
    let mut report = Report::default();
    if heads.forged > 0 {
        report.add("", Wrong::Heads(heads.forged));
    }
    let gone = deleted(db).await?;
    let nothing = BTreeMap::new();
    for log in logs(db, only, heads).await? {
        report.logs += 1;
        // What was exported of a tenant that was deleted since isn't there any more, as its log isn't.
        let copied = if gone.contains(&log) { &nothing } else { heads.links.get(&log).unwrap_or(&nothing) };
        Walk::new(keys, &log, copied).run(db, &mut report).await?;
    }
    Ok(report)
}

async fn logs(db: &DatabaseConnection, only: Option<&TenantId>, heads: &Heads) -> Result<BTreeSet<String>, DbErr> {
    if let Some(only) = only {
        return Ok(BTreeSet::from([only.to_string()]));
    }
    let mut logs: BTreeSet<String> = heads.links.keys().cloned().collect();
    let here = "SELECT DISTINCT tenant_id FROM audit_log UNION SELECT tenant_id FROM audit_heads";
    for row in db.query_all_raw(Statement::from_string(db.get_database_backend(), here)).await? {
        logs.insert(row.try_get("", "tenant_id")?);
    }
    Ok(logs)
}

async fn deleted(db: &DatabaseConnection) -> Result<BTreeSet<String>, DbErr> {
    let ids: Vec<Option<String>> = entity::Entity::find()
        .select_only()
        .column(entity::Column::ResourceId)
        .filter(entity::Column::TenantId.eq(installation().as_str()))
        .filter(entity::Column::Operation.eq(TENANT_DELETED))
        .into_tuple()
        .all(db)
        .await?;
    Ok(ids.into_iter().flatten().collect())
}

/// Along one log.
struct Walk<'a> {
    keys: &'a Log,
    log: &'a str,
    copied: &'a BTreeMap<i64, Vec<u8>>,
    /// The last position that was seen, and its link.
    position: i64,
    last: Vec<u8>,
    /// How many rows were inserted so far: the later ones have moved on by so many.
    moved: i64,
    /// A row that doesn't fit, with the link before it: the next one tells whether it was changed or inserted.
    doubtful: Option<(Model, Vec<u8>)>,
}

impl<'a> Walk<'a> {
    fn new(keys: &'a Log, log: &'a str, copied: &'a BTreeMap<i64, Vec<u8>>) -> Self {
        Self { keys, log, copied, position: 0, last: BEFORE_FIRST.to_vec(), moved: 0, doubtful: None }
    }

    async fn run(mut self, db: &DatabaseConnection, report: &mut Report) -> Result<(), DbErr> {
        // Read before the rows: what is sealed meanwhile lies behind it.
        let head = head::Entity::find_by_id(self.log.to_owned()).one(db).await?;
        let mut links = BTreeMap::new();
        loop {
            let rows = entity::Entity::find()
                .filter(entity::Column::TenantId.eq(self.log))
                .filter(entity::Column::Position.gt(self.position))
                .order_by_asc(entity::Column::Position)
                .limit(BATCH)
                .all(db)
                .await?;
            if rows.is_empty() {
                break;
            }
            for row in rows {
                report.rows += 1;
                let position = row.position.unwrap_or_default();
                let is_known = self.copied.contains_key(&(position - self.moved))
                    || head.as_ref().is_some_and(|head| head.position == position - self.moved);
                if is_known && let Some(link) = &row.link {
                    links.insert(position, link.clone());
                }
                self.next(row, report);
            }
        }
        let head = head.filter(|head| head.position > 0);
        if head.is_none() && self.position > 0 {
            // The log may have begun meanwhile.
            let now = head::Entity::find_by_id(self.log.to_owned()).one(db).await?;
            if now.is_none_or(|head| head.position == 0) {
                report.add(self.log, Wrong::Head(0));
            }
        }
        let recorded = head.as_ref().map_or(0, |head| head.position);
        if let Some((row, _)) = self.doubtful.take() {
            // Behind the end there is nothing that could tell. What the sealer never got to was put there.
            let position = row.position.unwrap_or_default();
            let wrong = if position > recorded + self.moved {
                Wrong::Inserted(Some(position), row.id)
            } else {
                Wrong::Changed(position, row.id)
            };
            report.add(self.log, wrong);
        }
        self.end(head, &links, report);
        self.outside(db, report).await
    }

    fn fits(&self, row: &Model, before: &[u8], position: i64) -> bool {
        let holds = row.mac_with(&self.keys.row_key) == row.mac[..];
        let expected = link(&self.keys.link_key, self.log, position, before, &row.mac, holds);
        row.link.as_deref() == Some(&expected[..])
    }

    /// Whether it was found forged when it was sealed, and is as it was then.
    fn was_forged(&self, row: &Model, before: &[u8], position: i64) -> bool {
        let forged = link(&self.keys.link_key, self.log, position, before, &row.mac, false);
        row.link.as_deref() == Some(&forged[..])
    }

    fn next(&mut self, row: Model, report: &mut Report) {
        let position = row.position.unwrap_or_default();
        if let Some((doubtful, before)) = self.doubtful.take() {
            let at = doubtful.position.unwrap_or_default();
            if position == at + 1 && self.fits(&row, &before, position - self.moved - 1) {
                report.add(self.log, Wrong::Inserted(Some(at), doubtful.id));
                self.moved += 1;
                self.last = before;
            } else {
                report.add(self.log, Wrong::Changed(at, doubtful.id));
            }
        }
        if position > self.position + 1 {
            report.add(self.log, Wrong::Removed(self.position + 1, position - 1));
            // The link before it is gone, so its own can't be compared. What it says can.
            if row.mac_with(&self.keys.row_key) != row.mac[..] {
                report.add(self.log, Wrong::Changed(position, row.id.clone()));
            }
        } else if self.was_forged(&row, &self.last, position - self.moved) {
            report.add(self.log, Wrong::Inserted(Some(position), row.id.clone()));
        } else if !self.fits(&row, &self.last, position - self.moved) {
            self.doubtful = Some((row.clone(), self.last.clone()));
        }
        self.position = position;
        self.last = row.link.unwrap_or_default();
    }

    fn end(&self, head: Option<head::Model>, links: &BTreeMap<i64, Vec<u8>>, report: &mut Report) {
        let recorded = head.as_ref().map_or(0, |head| head.position);
        let copied = self.copied.last_key_value().map_or(0, |(position, _)| *position);
        let should_be = recorded.max(copied) + self.moved;
        if should_be > self.position {
            report.add(self.log, Wrong::Removed(self.position + 1, should_be));
        }
        if let Some(head) = head {
            let position = head.position + self.moved;
            if position <= self.position && links.get(&position) != Some(&head.link) {
                report.add(self.log, Wrong::Head(head.position));
            }
        }
        for (position, link) in self.copied {
            let position = position + self.moved;
            if position <= self.position && links.get(&position).is_some_and(|here| here != link) {
                report.add(self.log, Wrong::Replaced(position));
            }
        }
    }

    /// Those that the walk doesn't meet. Without a position: the sealer hasn't got to them yet. Before the first: it never puts any there.
    async fn outside(&self, db: &DatabaseConnection, report: &mut Report) -> Result<(), DbErr> {
        let mut after: Option<(String, String)> = None;
        loop {
            let mut rows = entity::Entity::find()
                .filter(entity::Column::TenantId.eq(self.log))
                .filter(Condition::any().add(entity::Column::Position.is_null()).add(entity::Column::Position.lte(0)));
            if let Some((id, phase)) = after {
                let of_same =
                    Condition::all().add(entity::Column::Id.eq(id.as_str())).add(entity::Column::Phase.gt(phase));
                rows = rows.filter(Condition::any().add(entity::Column::Id.gt(id.as_str())).add(of_same));
            }
            let rows =
                rows.order_by_asc(entity::Column::Id).order_by_asc(entity::Column::Phase).limit(BATCH).all(db).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some((last.id.clone(), last.phase.clone()));
            for row in rows {
                report.rows += 1;
                if row.position.is_some() || row.mac_with(&self.keys.row_key) != row.mac[..] {
                    report.add(self.log, Wrong::Inserted(row.position, row.id));
                }
            }
        }
    }
}
