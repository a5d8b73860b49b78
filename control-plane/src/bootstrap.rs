//! The tenant of `API_KEY`: an account for small installations, made from settings.
//!
//! With `API_KEY` set, a tenant named `default` is made at the first start, without people; the key is stored as any other,
//! hashed, and may do everything that keys may. `WEBHOOK_URL` is its endpoint for all events, signed with `WEBHOOK_SECRET` or, without it,
//! with a secret that is made, known to nobody, until the operator asks for one with the key (`POST /api/v1/webhooks/{id}/rotate-secret`).
//! Each start makes what isn't there and changes what was set anew: another `API_KEY` takes the place of the one before, which is refused
//! from then on. Settings that are taken away leave things as they are: a secret too, so that restarts don't change one that was asked for.

use anyhow::Context;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, Statement};
use secrecy::ExposeSecret;
use shared::{ids::TenantId, time::Timestamp, wire::session::Network};

use crate::{
    audit,
    auth::TenantScope,
    error::{ApiError, ApiResult, database_error_kind},
    jobs::schedule::installation,
    keys,
    state::App,
    tenants, webhooks,
};

const NAME: &str = "default";

/// Does what the settings say. Replicas that start at once agree on one tenant.
///
/// # Errors
/// With a sentence that holds no secret.
pub async fn establish(app: &App) -> anyhow::Result<()> {
    if app.config.bootstrap.api_key.is_none() {
        return Ok(());
    }
    in_one_transaction(app).await.map_err(told).context("API_KEY: the tenant could not be made")
}

fn told(error: ApiError) -> anyhow::Error {
    match error {
        ApiError::Refused(refusal) => anyhow::anyhow!("{}", refusal.kind().title()),
        ApiError::Database(error) => anyhow::anyhow!("the database said no ({})", database_error_kind(&error)),
        ApiError::Defect(doing) => anyhow::anyhow!(doing),
    }
}

async fn in_one_transaction(app: &App) -> ApiResult<()> {
    let config = &app.config.bootstrap;
    let tx = app.db.write().await?;
    let scope = TenantScope::of_row(tenant(app, &tx).await?);
    if let Some(key) = &config.api_key {
        keys::service::ensure(app, &tx, &scope, key).await?;
    }
    if let Some(url) = &config.webhook_url {
        // The key sees the endpoint: one of the sandbox sees those of the sandbox.
        let of_key = config.api_key.as_ref().and_then(|key| keys::token::network(key.expose_secret()));
        let scope = match of_key {
            Some(Network::Sandbox) => scope.clone().of_network(Network::Sandbox),
            Some(Network::Whatsapp) | None => scope.clone(),
        };
        webhooks::service::ensure(app, &tx, &scope, url, config.webhook_secret.as_ref()).await?;
    }
    tx.commit().await?;
    // Another key may have taken the place of one that others have found.
    keys::forget(app, scope.id()).await;
    Ok(())
}

async fn tenant(app: &App, tx: &DatabaseTransaction) -> ApiResult<TenantId> {
    let engine = tx.get_database_backend();
    // The row of the installation is what replicas that start at once wait for.
    let lock = if engine == DbBackend::Postgres { " FOR UPDATE" } else { "" };
    let query = format!("SELECT default_tenant_id FROM installation WHERE id = 1{lock}");
    let row = tx.query_one_raw(Statement::from_string(engine, query)).await?;
    let known: Option<TenantId> = row.map(|row| row.try_get("", "default_tenant_id")).transpose()?.flatten();
    if let Some(id) = known {
        return Ok(id);
    }
    let tenant = tenants::service::create_unowned(app, tx, NAME, Timestamp::now()).await?;
    audit::system(&app.audit, tx, &installation(), "create_tenant", ("tenant", tenant.id.as_str())).await?;
    tx.execute_raw(Statement::from_sql_and_values(
        engine,
        "UPDATE installation SET default_tenant_id = $1 WHERE id = 1",
        [tenant.id.clone().into()],
    ))
    .await?;
    Ok(tenant.id)
}
