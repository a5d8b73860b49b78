//! A tenant to try things with: a person with a password that is made and shown once, and an API key for the simulator.

use secrecy::SecretString;
use serde_json::json;

use crate::{
    auth::{self, SignUp, TenantScope},
    error::{ApiError, ApiResult, database_error_kind},
    keys,
    state::App,
};

/// The address that the person logs in with.
pub const EMAIL: &str = "demo@example.com";

/// What was made. Nobody can be told again.
pub struct Planted {
    /// The person's.
    pub password: SecretString,
    /// With all scopes, for the simulator.
    pub api_key: SecretString,
}

/// Makes it; nothing if it is there.
///
/// # Errors
/// If the database says no.
pub async fn plant(app: &App) -> anyhow::Result<Option<Planted>> {
    in_one_transaction(app).await.map_err(|error| match error {
        ApiError::Database(error) => anyhow::anyhow!("the database said no ({})", database_error_kind(&error)),
        ApiError::Refused(refusal) => anyhow::anyhow!("{}", refusal.kind().title()),
        ApiError::Defect(doing) => anyhow::anyhow!(doing),
    })
}

async fn in_one_transaction(app: &App) -> ApiResult<Option<Planted>> {
    let password = auth::opaque_token("");
    let person = SignUp {
        email: EMAIL.to_owned().into(),
        password: password.clone().into(),
        name: "Demo".into(),
        tenant_name: "Demo".into(),
    };
    let tx = app.db.write().await?;
    let Some((user, tenant)) = auth::establish(app, &tx, person).await? else { return Ok(None) };
    let wanted = json!({"name": "demo", "network": "sandbox", "scopes": auth::Scope::ALL});
    let wanted = serde_json::from_value(wanted).map_err(|_| ApiError::Defect("the demo's key can't be asked for"))?;
    let key = keys::service::create(app, &tx, &TenantScope::of_row(tenant.id), &user, wanted).await?;
    tx.commit().await?;
    Ok(Some(Planted { password, api_key: key.key }))
}
