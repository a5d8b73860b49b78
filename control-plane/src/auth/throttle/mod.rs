//! Limits on attempts to log in, sign up, reset a password and use tokens from mails: by address and by account.
//!
//! **Owns** the table `throttles`. It lies in the database, so that replicas count together, and under keyed hashes, so that
//! it names no address and no account. Every attempt is decided by one statement, which does what [`policy::Rate::admit`]
//! says; an attempt that will be refused is first found by a read, so that a flood doesn't take SQLite's writer.
//!
//! **Invariants.** An account that doesn't exist has a limit like one that does. A person who gets in has their
//! account's attempts forgiven, so that only failed ones count there; those of the address are not forgiven. Without the
//! database nobody is admitted.

mod policy;

use std::time::Duration;

use axum::http::{HeaderValue, header};
use policy::{Rate, Verdict};
use sea_orm::{ConnectionTrait, DbErr, Statement};
use shared::time::Timestamp;

use crate::{
    db::Db,
    error::{ApiResult, Kind},
    extract::ClientAddress,
    state::App,
    sweep,
};

/// How many rows one sweep forgets.
const PRUNE_BATCH: i64 = 1000;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What somebody tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// E-mail address and password.
    LogIn,
    /// A second factor.
    SecondFactor,
    /// A new account.
    SignUp,
    /// A mail with a link, to an address that anybody can give.
    MailRequest,
    /// An invitation, which is a mail to an address of somebody else.
    Invite,
    /// The same, for the tenant as a whole: the mail holds words of its choice.
    InviteByTenant,
    /// A token from a mail.
    MailToken,
    /// One's own password once more, while logged in.
    Confirm,
}

impl Attempt {
    const fn name(self) -> &'static str {
        match self {
            Self::LogIn => "log_in",
            Self::SecondFactor => "second_factor",
            Self::SignUp => "sign_up",
            Self::MailRequest => "mail_request",
            Self::Invite => "invite",
            Self::InviteByTenant => "invite_by_tenant",
            Self::MailToken => "mail_token",
            Self::Confirm => "confirm",
        }
    }

    /// For one address. Offices share one, so it is wider than an account's.
    const fn by_address(self) -> Rate {
        match self {
            Self::LogIn | Self::SecondFactor | Self::MailToken | Self::Confirm => Rate::new(30, seconds(6)),
            Self::SignUp | Self::MailRequest => Rate::new(10, seconds(60)),
            Self::Invite | Self::InviteByTenant => Rate::new(50, seconds(10)),
        }
    }

    /// For one account. A person's own attempts go on beside those of somebody who tries to shut them out, if slowly.
    const fn by_account(self) -> Rate {
        match self {
            Self::LogIn | Self::Confirm => Rate::new(10, seconds(30)),
            Self::SecondFactor => Rate::new(5, seconds(60)),
            Self::SignUp | Self::MailRequest | Self::Invite => Rate::new(3, seconds(600)),
            Self::InviteByTenant => Rate::new(20, seconds(300)),
            Self::MailToken => Rate::new(10, seconds(60)),
        }
    }
}

/// Counts an attempt. `account` is what names it: an address in its stored form, or a person's id.
///
/// # Errors
/// 429 with `Retry-After`, the same whether the account exists or not.
pub(crate) async fn admit(app: &App, attempt: Attempt, address: ClientAddress, account: Option<&str>) -> ApiResult<()> {
    if !app.config.auth.throttle {
        return Ok(());
    }
    let now = Timestamp::now();
    let host = address.host();
    let limits = [("address", Some(host.as_str()), attempt.by_address()), ("account", account, attempt.by_account())];
    for (by, who, rate) in limits {
        let Some(who) = who else { continue };
        if let Verdict::Refused(wait) = take(&app.db, &bucket(app, attempt, by, who), rate, now).await? {
            metrics::counter!("auth_throttled_total", "attempt" => attempt.name(), "by" => by).increment(1);
            let seconds = wait.as_millis().div_ceil(1000);
            return Err(Kind::RateLimited
                .because("too many attempts")
                .with_header(header::RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX)))
                .into());
        }
    }
    Ok(())
}

/// Forgets an account's attempts: the person got in.
pub(crate) async fn forgive(app: &App, attempt: Attempt, account: &str) -> Result<(), DbErr> {
    if !app.config.auth.throttle {
        return Ok(());
    }
    let bucket = bucket(app, attempt, "account", account);
    app.db
        .autocommit()
        .execute_raw(Statement::from_sql_and_values(
            app.db.engine(),
            "DELETE FROM throttles WHERE bucket = $1",
            [bucket.into()],
        ))
        .await
        .map(drop)
}

fn bucket(app: &App, attempt: Attempt, by: &str, who: &str) -> Vec<u8> {
    app.keyring.throttle_hash.of(&format!("{} {by} {who}", attempt.name()))
}

async fn take(db: &Db, bucket: &[u8], rate: Rate, now: Timestamp) -> Result<Verdict, DbErr> {
    let engine = db.engine();
    let stored = || async {
        let query = "SELECT tat FROM throttles WHERE bucket = $1";
        let row =
            db.read().query_one_raw(Statement::from_sql_and_values(engine, query, [bucket.to_vec().into()])).await?;
        row.map(|row| row.try_get::<Timestamp>("", "tat")).transpose()
    };
    if let refused @ Verdict::Refused(_) = rate.admit(stored().await?, now) {
        return Ok(refused);
    }
    let interval = i64::try_from(rate.interval.as_millis()).unwrap_or(i64::MAX);
    let taken = db
        .autocommit()
        .query_one_raw(Statement::from_sql_and_values(
            engine,
            "INSERT INTO throttles (bucket, tat) VALUES ($1, $2) ON CONFLICT (bucket) DO UPDATE \
             SET tat = CASE WHEN throttles.tat > $3 THEN throttles.tat ELSE $3 END + $4 WHERE throttles.tat <= $5 \
             RETURNING tat",
            [
                bucket.to_vec().into(),
                now.plus(rate.interval).into(),
                now.into(),
                interval.into(),
                now.plus(rate.tolerance()).into(),
            ],
        ))
        .await?;
    if let Some(row) = taken {
        return Ok(Verdict::Admitted(row.try_get("", "tat")?));
    }
    // Others took what was left between the two statements.
    Ok(match rate.admit(stored().await?, now) {
        refused @ Verdict::Refused(_) => refused,
        Verdict::Admitted(_) => Verdict::Refused(rate.interval),
    })
}

/// Forgets whoever hasn't tried for so long that nothing is held against them.
pub(super) async fn prune(app: &App) -> Result<u64, DbErr> {
    let statement =
        "DELETE FROM throttles WHERE bucket IN (SELECT bucket FROM throttles WHERE tat <= $1 LIMIT $2) AND tat <= $1";
    sweep::before(app, PRUNE_BATCH, statement, Timestamp::now()).await
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    #[tokio::test]
    async fn the_statement_decides_as_the_policy_does() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}?mode=rwc", dir.path().join("throttles.db").display());
        let db = Db::connect(&url, 2).await.unwrap();
        db.migrate().await.unwrap();
        let mut random = StdRng::seed_from_u64(7);
        for round in 0_u8..10 {
            let rate = Rate::new(random.random_range(1..8), Duration::from_millis(random.random_range(1..5000)));
            let (mut now, mut model) = (Timestamp::now(), None);
            let mut refused = 0;
            for _ in 0..60 {
                now = now.plus(Duration::from_millis(random.random_range(0..3000)));
                let expected = rate.admit(model, now);
                assert_eq!(take(&db, &[round], rate, now).await.unwrap(), expected, "{rate:?}");
                match expected {
                    Verdict::Admitted(tat) => model = Some(tat),
                    Verdict::Refused(_) => refused += 1,
                }
            }
            assert!(refused < 60);
        }
        db.close().await;
    }
}
