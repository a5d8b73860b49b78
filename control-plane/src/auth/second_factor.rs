//! The second factor: time-based codes of a device (RFC 6238), and recovery codes for when it is lost.
//!
//! **Owns** the tables `second_factors`, `recovery_codes` and `login_challenges` of people, and those of operators, which are alike
//! ([`Holder`]).
//!
//! Switching it on takes two steps, so that nobody locks themselves out: [`enrol`] makes a secret, [`confirm`] takes a code
//! of it. From then on a right password leads to a challenge: an opaque token for five minutes and five tries.
//!
//! **Invariants.** The secret lies sealed, recovery codes lie as keyed hashes. A code is accepted once: the step that it
//! belongs to has to be later than the last one that was accepted, which one conditional update decides. A recovery code is
//! accepted once.

use std::time::Duration;

use rand::Rng;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement, TryGetable};
use secrecy::{ExposeSecret, SecretString};
use shared::{
    ids::{OperatorId, UserId},
    seal::Place,
    time::Timestamp,
};
use totp_rs::{Builder, Totp};

use super::{
    dto::{RecoveryCodes, SecondFactor, SecondFactorRequired, SecondFactorSecret},
    tokens,
};
use crate::{
    error::{ApiError, ApiResult, Kind},
    sessions::qr,
    state::App,
};

/// How long a challenge lives.
const CHALLENGE_TTL: Duration = Duration::from_secs(300);
/// How many codes may be tried at one challenge.
const CHALLENGE_TRIES: i64 = 5;
/// How many recovery codes a person gets.
const RECOVERY_CODES: usize = 10;
/// The characters of a recovery code: 10 of them, 50 bits. Without those that look alike.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ISSUER: &str = "Switchboard";

/// Somebody who can have a second factor.
pub(crate) trait Holder: Clone + Into<sea_orm::Value> + TryGetable {
    /// Where their factors lie.
    const FACTORS: &'static str;
    /// Where their recovery codes lie.
    const CODES: &'static str;
    /// Where their challenges lie.
    const CHALLENGES: &'static str;
    /// The column of their id in all three.
    const COLUMN: &'static str;

    /// Their id.
    fn id(&self) -> &str;
}

impl Holder for UserId {
    const FACTORS: &'static str = "second_factors";
    const CODES: &'static str = "recovery_codes";
    const CHALLENGES: &'static str = "login_challenges";
    const COLUMN: &'static str = "user_id";

    fn id(&self) -> &str {
        self.as_str()
    }
}

impl Holder for OperatorId {
    const FACTORS: &'static str = "operator_second_factors";
    const CODES: &'static str = "operator_recovery_codes";
    const CHALLENGES: &'static str = "operator_login_challenges";
    const COLUMN: &'static str = "operator_id";

    fn id(&self) -> &str {
        self.as_str()
    }
}

fn totp(secret: &[u8], account: &str) -> ApiResult<Totp> {
    Builder::new()
        .with_secret(secret.to_vec())
        .with_issuer(Some(ISSUER))
        .with_account_name(account)
        .build()
        .map_err(|_| ApiError::Defect("a second factor can't be made"))
}

fn place<H: Holder>(of: &H) -> Place<'_> {
    Place { owner: of.id(), table: H::FACTORS, row: "secret" }
}

struct Stored {
    secret: Vec<u8>,
    confirmed: bool,
}

async fn stored<H: Holder, C: ConnectionTrait>(app: &App, connection: &C, of: &H) -> ApiResult<Option<Stored>> {
    let query = format!("SELECT sealed_secret, confirmed_at FROM {} WHERE {} = $1", H::FACTORS, H::COLUMN);
    let statement = Statement::from_sql_and_values(connection.get_database_backend(), query, [of.clone().into()]);
    let Some(row) = connection.query_one_raw(statement).await? else { return Ok(None) };
    let (sealed, confirmed_at): (Vec<u8>, Option<i64>) =
        (row.try_get("", "sealed_secret")?, row.try_get("", "confirmed_at")?);
    Ok(Some(Stored { secret: app.master_key.open(&place(of), &sealed)?, confirmed: confirmed_at.is_some() }))
}

/// Whether logging in asks for a code.
pub(crate) async fn is_on<H: Holder, C: ConnectionTrait>(connection: &C, of: &H) -> Result<bool, DbErr> {
    let query = format!("SELECT 1 AS one FROM {} WHERE {} = $1 AND confirmed_at IS NOT NULL", H::FACTORS, H::COLUMN);
    let statement = Statement::from_sql_and_values(connection.get_database_backend(), query, [of.clone().into()]);
    Ok(connection.query_one_raw(statement).await?.is_some())
}

/// Whether it is on, and how many recovery codes are left.
pub(crate) async fn status<H: Holder, C: ConnectionTrait>(connection: &C, of: &H) -> ApiResult<SecondFactor> {
    let query = format!("SELECT COUNT(*) AS codes FROM {} WHERE {} = $1 AND used_at IS NULL", H::CODES, H::COLUMN);
    let statement = Statement::from_sql_and_values(connection.get_database_backend(), query, [of.clone().into()]);
    let row = connection.query_one_raw(statement).await?.ok_or(ApiError::Defect("a count has no row"))?;
    let left: i64 = row.try_get("", "codes")?;
    Ok(SecondFactor {
        enabled: is_on(connection, of).await?,
        recovery_codes_left: u32::try_from(left).unwrap_or(u32::MAX),
    })
}

/// Makes a secret that a device is to be given, in place of one that was not confirmed.
pub(crate) async fn enrol<H: Holder>(
    app: &App,
    tx: &DatabaseTransaction,
    of: &H,
    account: &str,
) -> ApiResult<SecondFactorSecret> {
    let mut secret = [0_u8; 20];
    rand::rng().fill_bytes(&mut secret);
    let done = tx
        .execute_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            format!(
                "INSERT INTO {table} ({column}, sealed_secret, created_at) VALUES ($1, $2, $3) \
                 ON CONFLICT ({column}) DO UPDATE SET sealed_secret = $2, created_at = $3, last_step = 0 \
                 WHERE {table}.confirmed_at IS NULL",
                table = H::FACTORS,
                column = H::COLUMN
            ),
            [of.clone().into(), app.master_key.seal(&place(of), &secret)?.into(), Timestamp::now().into()],
        ))
        .await?;
    if done.rows_affected() == 0 {
        return Err(Kind::Conflict.because("two-step login is on already: switch it off first").into());
    }
    let totp = totp(&secret, account)?;
    let url = totp.to_url().map_err(|_| ApiError::Defect("a second factor has no URL"))?;
    let picture = qr::svg(&url).ok_or(ApiError::Defect("a second factor's URL fits into no QR code"))?;
    Ok(SecondFactorSecret {
        secret: totp.secret().to_base32().into(),
        otpauth_url: url.into(),
        qr_svg: String::from_utf8(picture).map_err(|_| ApiError::Defect("a picture is not text"))?.into(),
    })
}

/// Switches it on with a code of the device, and makes recovery codes.
pub(crate) async fn confirm<H: Holder>(
    app: &App,
    tx: &DatabaseTransaction,
    of: &H,
    code: &SecretString,
) -> ApiResult<RecoveryCodes> {
    // The secret that the code is of is the one that is switched on, whoever asks for another at this moment.
    hold(tx, of).await?;
    let factor = stored(app, tx, of).await?.filter(|factor| !factor.confirmed);
    let Some(factor) = factor else {
        return Err(Kind::Conflict.because("there is nothing to confirm: ask for a secret first").into());
    };
    if !accepts_totp(tx, of, &factor, code.expose_secret()).await? {
        return Err(Kind::WrongCode.into());
    }
    tx.execute_raw(Statement::from_sql_and_values(
        tx.get_database_backend(),
        format!("UPDATE {} SET confirmed_at = $1 WHERE {} = $2", H::FACTORS, H::COLUMN),
        [Timestamp::now().into(), of.clone().into()],
    ))
    .await?;
    new_recovery_codes(app, tx, of).await
}

/// Makes recovery codes in place of the earlier ones, if it is on.
pub(crate) async fn renew_recovery_codes<H: Holder>(
    app: &App,
    tx: &DatabaseTransaction,
    of: &H,
) -> ApiResult<RecoveryCodes> {
    hold(tx, of).await?;
    if !is_on(tx, of).await? {
        return Err(Kind::Conflict.because("two-step login is off").into());
    }
    new_recovery_codes(app, tx, of).await
}

/// Takes the factor's row for the transaction: of two that change it, or its codes, the second sees what the first has done.
async fn hold<H: Holder>(tx: &DatabaseTransaction, of: &H) -> Result<(), DbErr> {
    if tx.get_database_backend() == DbBackend::Postgres {
        let query = format!("SELECT 1 AS one FROM {} WHERE {} = $1 FOR UPDATE", H::FACTORS, H::COLUMN);
        tx.query_one_raw(Statement::from_sql_and_values(DbBackend::Postgres, query, [of.clone().into()])).await?;
    }
    Ok(())
}

async fn new_recovery_codes<H: Holder>(app: &App, tx: &DatabaseTransaction, of: &H) -> ApiResult<RecoveryCodes> {
    let engine = tx.get_database_backend();
    let earlier = format!("DELETE FROM {} WHERE {} = $1", H::CODES, H::COLUMN);
    tx.execute_raw(Statement::from_sql_and_values(engine, earlier, [of.clone().into()])).await?;
    let mut codes = Vec::with_capacity(RECOVERY_CODES);
    for _ in 0..RECOVERY_CODES {
        let code = recovery_code();
        let insert = format!("INSERT INTO {} (code_hash, {}) VALUES ($1, $2)", H::CODES, H::COLUMN);
        let hash = recovery_hash(app, of, &code);
        tx.execute_raw(Statement::from_sql_and_values(engine, insert, [hash.into(), of.clone().into()])).await?;
        let (head, tail) = code.split_at(5);
        codes.push(format!("{head}-{tail}").into());
    }
    Ok(RecoveryCodes { recovery_codes: codes })
}

fn recovery_code() -> String {
    let mut bytes = [0_u8; 10];
    rand::rng().fill_bytes(&mut bytes);
    bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect()
}

fn recovery_hash<H: Holder>(app: &App, of: &H, code: &str) -> Vec<u8> {
    app.keyring.second_factor_hash.of(&format!("recovery {} {code}", of.id()))
}

/// Switches it off, and forgets its codes.
pub(crate) async fn disable<H: Holder>(tx: &DatabaseTransaction, of: &H) -> Result<(), DbErr> {
    for table in [H::CODES, H::CHALLENGES, H::FACTORS] {
        tx.execute_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            format!("DELETE FROM {table} WHERE {} = $1", H::COLUMN),
            [of.clone().into()],
        ))
        .await?;
    }
    Ok(())
}

/// Whether a code is the device's or a recovery code, and wasn't used before. It is used up with that.
pub(crate) async fn accepts<H: Holder>(
    app: &App,
    tx: &DatabaseTransaction,
    of: &H,
    code: &SecretString,
) -> ApiResult<bool> {
    let Some(factor) = stored(app, tx, of).await?.filter(|factor| factor.confirmed) else { return Ok(false) };
    if accepts_totp(tx, of, &factor, code.expose_secret()).await? {
        return Ok(true);
    }
    let code: String = code
        .expose_secret()
        .chars()
        .filter(|character| !matches!(character, ' ' | '-'))
        .map(|character| character.to_ascii_lowercase())
        .collect();
    let used = tx
        .execute_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            format!(
                "UPDATE {} SET used_at = $1 WHERE code_hash = $2 AND {} = $3 AND used_at IS NULL",
                H::CODES,
                H::COLUMN
            ),
            [Timestamp::now().into(), recovery_hash(app, of, &code).into(), of.clone().into()],
        ))
        .await?;
    Ok(used.rows_affected() == 1)
}

async fn accepts_totp<H: Holder>(tx: &DatabaseTransaction, of: &H, factor: &Stored, code: &str) -> ApiResult<bool> {
    let code: String = code.chars().filter(|character| *character != ' ').collect();
    let now = u64::try_from(Timestamp::now().as_millis() / 1000).unwrap_or(0);
    let Some(step) = totp(&factor.secret, ISSUER)?.check(&code, now) else { return Ok(false) };
    let used = tx
        .execute_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            format!("UPDATE {} SET last_step = $1 WHERE {} = $2 AND last_step < $1", H::FACTORS, H::COLUMN),
            [i64::try_from(step).unwrap_or(i64::MAX).into(), of.clone().into()],
        ))
        .await?;
    Ok(used.rows_affected() == 1)
}

/// Asks whoever knew the password for a code.
pub(crate) async fn challenge<H: Holder>(
    app: &App,
    tx: &DatabaseTransaction,
    of: &H,
) -> ApiResult<SecondFactorRequired> {
    let token = tokens::opaque("sbc_");
    tx.execute_raw(Statement::from_sql_and_values(
        tx.get_database_backend(),
        format!("INSERT INTO {} (token_hash, {}, expires_at) VALUES ($1, $2, $3)", H::CHALLENGES, H::COLUMN),
        [challenge_hash(app, &token).into(), of.clone().into(), Timestamp::now().plus(CHALLENGE_TTL).into()],
    ))
    .await?;
    Ok(SecondFactorRequired { mfa_required: true, challenge_token: token, expires_in: CHALLENGE_TTL.as_secs() })
}

fn challenge_hash(app: &App, token: &SecretString) -> Vec<u8> {
    app.keyring.second_factor_hash.of(&format!("challenge {}", token.expose_secret()))
}

/// Whom a challenge is for, if it goes on.
pub(crate) async fn challenged<H: Holder>(app: &App, token: &SecretString) -> ApiResult<Option<H>> {
    let statement = Statement::from_sql_and_values(
        app.db.engine(),
        format!("SELECT {} FROM {} WHERE token_hash = $1 AND expires_at > $2 AND tries < $3", H::COLUMN, H::CHALLENGES),
        [challenge_hash(app, token).into(), Timestamp::now().into(), CHALLENGE_TRIES.into()],
    );
    let row = app.db.read().query_one_raw(statement).await?;
    Ok(row.map(|row| row.try_get("", H::COLUMN)).transpose()?)
}

/// Counts a try at a challenge; no, if there is none left.
pub(crate) async fn count_try<H: Holder>(
    app: &App,
    tx: &DatabaseTransaction,
    token: &SecretString,
) -> Result<bool, DbErr> {
    let done = tx
        .execute_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            format!(
                "UPDATE {} SET tries = tries + 1 WHERE token_hash = $1 AND expires_at > $2 AND tries < $3",
                H::CHALLENGES
            ),
            [challenge_hash(app, token).into(), Timestamp::now().into(), CHALLENGE_TRIES.into()],
        ))
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Ends a person's challenges: one of them was met, or their password is another.
pub(crate) async fn end_challenges<H: Holder>(tx: &DatabaseTransaction, of: &H) -> Result<(), DbErr> {
    let statement = format!("DELETE FROM {} WHERE {} = $1", H::CHALLENGES, H::COLUMN);
    tx.execute_raw(Statement::from_sql_and_values(tx.get_database_backend(), statement, [of.clone().into()]))
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6238, appendix B: SHA-1, in six digits.
    #[test]
    fn codes_are_those_of_the_standard() {
        let totp = totp(b"12345678901234567890", "ada@example.com").unwrap();
        for (time, code) in [(59, "287082"), (1_111_111_109, "081804"), (2_000_000_000, "279037")] {
            assert_eq!(totp.check(code, time), Some(time / 30));
            assert_eq!(totp.check(code, time + 30), Some(time / 30), "a slow typist");
            assert_eq!(totp.check(code, time + 90), None);
        }
        assert!(totp.to_url().unwrap().starts_with("otpauth://totp/Switchboard:"));
    }

    #[test]
    fn recovery_codes_are_ten_characters_and_none_is_made_twice() {
        let codes: std::collections::HashSet<_> = (0..1000).map(|_| recovery_code()).collect();
        assert_eq!(codes.len(), 1000);
        assert!(codes.iter().all(|code| code.len() == 10 && code.bytes().all(|byte| ALPHABET.contains(&byte))));
    }
}
