//! The commands of the binary `control-plane`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::{Parser, Subcommand};
use secrecy::{ExposeSecret, SecretString};
use shared::{
    ids::{JobId, TenantId},
    wire::session::Network,
};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

use crate::{
    app,
    audit::{
        self,
        command::{Against, recorded, verified},
    },
    auth::{self, Purpose},
    config::{Config, LogConfig, Values},
    db::Db,
    error::{Kind, database_error_kind},
    jobs::{self, JobKind, dead, redrive},
    keys,
    master_key::MasterKey,
    objects::Objects,
    operators::{self, NewOperator},
    plans::command::PlansCommand,
    redis::{Redis, subscriber},
    seed,
    server::{self, ControlPlane},
    state::App,
};

/// How long a health check may take.
const HEALTHCHECK_DEADLINE: Duration = Duration::from_secs(5);

/// Switchboard's control plane.
#[derive(Debug, Parser)]
#[command(name = "control-plane", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
enum Command {
    /// Serve the API (the default). Settings: docs/configuration.md.
    Serve,
    /// Apply the migrations that are missing, and stop.
    Migrate,
    /// Have access tokens signed with a new key from now on. Tokens of the old key are accepted until they end; running replicas
    /// follow at once with Redis, else within 30 seconds.
    RotateKeys {
        /// The old key is in wrong hands: refuse its tokens. Refresh tokens go on working.
        #[arg(long)]
        compromised: bool,
    },
    /// Make an operator of the installation. Prints the password, if it makes one.
    CreateOperator {
        /// The e-mail address to log in with.
        email: String,
        /// What to call them.
        #[arg(long, default_value = "Operator")]
        name: String,
        /// Read the password from the first line of standard input, instead of making one.
        #[arg(long)]
        password_stdin: bool,
        /// If there is one with this address: give them this name and password, and end all their logins.
        #[arg(long)]
        replace: bool,
    },
    /// Remove an operator and end their logins.
    RemoveOperator {
        /// The e-mail address.
        email: String,
    },
    /// Switch an operator's two-step login off and end their logins: their device and their recovery codes are lost.
    ResetOperatorSecondFactor {
        /// The e-mail address.
        email: String,
    },
    /// Make a tenant to try things with: a person, and an API key for the simulator. Prints how to log in.
    Seed,
    /// Print a new API key, for the setting API_KEY.
    NewApiKey {
        /// For the simulator instead of WhatsApp.
        #[arg(long)]
        sandbox: bool,
    },
    /// Look at jobs that were given up, try them again, or call off ones that wait.
    #[command(subcommand)]
    Jobs(JobsCommand),
    /// Define plans and say who has which.
    #[command(subcommand)]
    Plans(PlansCommand),
    /// Walk the audit log and tell which rows were changed, inserted or removed; ends with 1 if any were.
    VerifyAudit {
        /// Of this tenant only.
        #[arg(long)]
        tenant: Option<TenantId>,
        /// Compare with the heads of this file, instead of those in the object store.
        #[arg(long)]
        heads: Option<PathBuf>,
        /// Compare with the heads of so many days, of those in the object store.
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(0..=3650), conflicts_with = "heads")]
        days: u32,
    },
    /// Print the OpenAPI document.
    Openapi,
    /// Print docs/errors.md.
    ErrorsDoc,
    /// Print docs/roles.md.
    RolesDoc,
    /// Ask the process that serves on LISTEN or PORT whether it is ready; ends with 0 if so.
    Healthcheck,
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
enum JobsCommand {
    /// List jobs that were given up, the newest first.
    Dead {
        /// Of this kind only.
        #[arg(long, value_parser = kind_of_job)]
        kind: Option<JobKind>,
        /// How many at most.
        #[arg(long, default_value_t = 50)]
        limit: u64,
    },
    /// Make a job that was given up ready again, with all its attempts, and what it is about undone; or say why not.
    Redrive {
        /// Its id.
        id: Option<JobId>,
        /// All of this kind, up to 1,000, the oldest first.
        #[arg(long, value_parser = kind_of_job, conflicts_with = "id")]
        all: Option<JobKind>,
    },
    /// Call off a job that waits.
    Cancel {
        /// Its id.
        id: JobId,
    },
}

fn kind_of_job(name: &str) -> Result<JobKind, String> {
    let names: Vec<_> = JobKind::ALL.iter().map(|kind| kind.as_str()).collect();
    JobKind::named(name).ok_or_else(|| format!("one of {}", names.join(", ")))
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// With a sentence for the operator, which holds no secret.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.command.unwrap_or(Command::Serve) {
            Command::Serve => serve(&Config::values()?).await,
            Command::Migrate => migrate(&Config::values()?).await,
            Command::RotateKeys { compromised } => rotate_keys(&Config::values()?, compromised).await,
            Command::Jobs(command) => jobs_command(&Config::values()?, command).await,
            Command::Plans(command) => plans(&Config::values()?, command).await,
            Command::CreateOperator { email, name, password_stdin, replace } => {
                create_operator(&Config::values()?, email, name, password_stdin, replace).await
            }
            Command::RemoveOperator { email } => remove_operator(&Config::values()?, email).await,
            Command::ResetOperatorSecondFactor { email } => reset_second_factor(&Config::values()?, email).await,
            Command::Seed => seed(&Config::values()?).await,
            Command::NewApiKey { sandbox } => {
                let network = if sandbox { Network::Sandbox } else { Network::Whatsapp };
                println!("{}", keys::new_key(network).expose_secret());
                Ok(())
            }
            Command::VerifyAudit { tenant, heads, days } => verify_audit(&Config::values()?, tenant, heads, days).await,
            Command::Openapi => {
                print!("{}", openapi_document()?);
                Ok(())
            }
            Command::ErrorsDoc => {
                print!("{}", errors_document());
                Ok(())
            }
            Command::RolesDoc => {
                print!("{}", auth::permissions::document());
                Ok(())
            }
            Command::Healthcheck => healthcheck(&Config::values()?).await,
        }
    }
}

async fn serve(values: &Values) -> anyhow::Result<()> {
    let log = LogConfig::read(values)?;
    let _written_at_the_end = shared::telemetry::init(&log)?;
    #[cfg(feature = "failpoints")]
    let _armed = crate::crash::arm();
    let asked_to_stop = shared::signals::asked_to_stop()?;
    // Listeners with a certificate read it again at SIGHUP. Where there is none it does nothing, and ends nothing.
    let _not_ended_by_it = signal(SignalKind::hangup())?;
    let control_plane = ControlPlane::start(Config::read(values)?).await?;
    asked_to_stop.await;
    tracing::info!("stopping");
    control_plane.shutdown().await;
    Ok(())
}

async fn migrate(values: &Values) -> anyhow::Result<()> {
    let db = server::connect(&Config::read(values)?).await?;
    db.migrate().await?;
    db.close().await;
    Ok(())
}

/// What a command works on that needs no whole application: a database of this version, and the key that it was made with. What is
/// written under another key can't be read again, and in the audit log it looks forged.
struct Opened {
    config: Config,
    db: Db,
    master_key: MasterKey,
    log: audit::Log,
}

async fn opened(values: &Values) -> anyhow::Result<Opened> {
    let config = Config::read(values)?;
    let db = server::connect(&config).await?;
    db.is_migrated().await?;
    let master_key = server::master_key(&config)?;
    master_key.bind(db.autocommit()).await?;
    let log = audit::Log::new(&master_key);
    Ok(Opened { config, db, master_key, log })
}

async fn rotate_keys(values: &Values, compromised: bool) -> anyhow::Result<()> {
    let Opened { config, db, master_key, log } = opened(values).await?;
    let rotate = async { Ok(auth::rotate(&db, &master_key, Purpose::AccessTokens, compromised).await?) };
    let kid = recorded(&log, &db, "rotate_keys", rotate).await?;
    println!("{kid}");
    if let Some(redis) = Redis::connect(&config.redis, &master_key).await?
        && redis.publish(subscriber::SIGNING_KEYS, &kid).await.is_err()
    {
        eprintln!("Redis is away: running replicas follow within 30 seconds");
    }
    db.close().await;
    Ok(())
}

async fn create_operator(
    values: &Values,
    email: String,
    name: String,
    password_stdin: bool,
    replace: bool,
) -> anyhow::Result<()> {
    let (password, made) = if password_stdin {
        let mut line = Zeroizing::new(String::new());
        std::io::stdin().read_line(&mut line).context("no password on standard input")?;
        (SecretString::from(line.trim_end_matches(['\r', '\n'])), false)
    } else {
        (auth::opaque_token(""), true)
    };
    let app = server::open(Config::read(values)?).await?;
    let new = NewOperator { email, name, password: password.clone(), replace };
    let id = recorded(&app.audit, &app.db, "create_operator", async {
        let id = operators::create(&app, new).await?;
        audit::about(id.as_str());
        Ok(id)
    })
    .await?;
    println!("{id}");
    if made {
        println!("password: {}", password.expose_secret());
    }
    app.db.clone().close().await;
    Ok(())
}

async fn remove_operator(values: &Values, email: String) -> anyhow::Result<()> {
    let app = server::open(Config::read(values)?).await?;
    recorded(&app.audit, &app.db, "remove_operator", async {
        let id = operators::remove(&app, email).await?;
        audit::about(id.as_str());
        Ok(())
    })
    .await?;
    app.db.clone().close().await;
    Ok(())
}

async fn reset_second_factor(values: &Values, email: String) -> anyhow::Result<()> {
    let app = server::open(Config::read(values)?).await?;
    let reset = async { Ok(operators::reset_second_factor(&app, email).await?) };
    let was_on = recorded(&app.audit, &app.db, "reset_operator_second_factor", reset).await?;
    println!("{}", if was_on { "two-step login is off" } else { "two-step login was off" });
    app.db.clone().close().await;
    Ok(())
}

async fn seed(values: &Values) -> anyhow::Result<()> {
    let app = server::open(Config::read(values)?).await?;
    match recorded(&app.audit, &app.db, "seed", seed::plant(&app)).await? {
        Some(planted) => println!(
            "log in as  {}\npassword   {}\nAPI key    {}",
            seed::EMAIL,
            planted.password.expose_secret(),
            planted.api_key.expose_secret()
        ),
        None => println!("{} is here already", seed::EMAIL),
    }
    app.db.clone().close().await;
    Ok(())
}

async fn jobs_command(values: &Values, command: JobsCommand) -> anyhow::Result<()> {
    let Opened { config, db, log, .. } = opened(values).await?;
    let said_no = |error| anyhow::anyhow!("the database said no ({})", database_error_kind(&error));
    match command {
        JobsCommand::Dead { kind, limit } => {
            for job in dead::list(&db, kind, None, limit).await.map_err(said_no)? {
                println!(
                    "{}\t{}\t{}\t{}\t{} attempts\t{}\t{}",
                    job.id,
                    job.finished_at,
                    job.kind,
                    job.tenant_id,
                    job.attempts,
                    job.subject,
                    job.why.unwrap_or_default()
                );
            }
        }
        JobsCommand::Redrive { id: Some(id), .. } => {
            let app = server::open(config).await?;
            let redrive = async {
                audit::about(id.as_str());
                Ok(redrive::redrive(&app, &app.handlers, &id).await?)
            };
            recorded(&log, &db, "redrive_job", redrive).await?;
            ring(&app, &JobKind::ALL).await?;
            app.db.clone().close().await;
        }
        JobsCommand::Redrive { id: None, all } => {
            let kind = all.context("say which job, or --all of a kind")?;
            let app = server::open(config).await?;
            let redrive = async { redrive::redrive_all(&app, &app.handlers, kind).await.map_err(said_no) };
            let done = recorded(&log, &db, "redrive_jobs", redrive).await?;
            println!("{} ready again, {} refused", done.revived, done.refused.values().sum::<u64>());
            for (why, jobs) in done.refused {
                println!("{jobs}\t{why}");
            }
            ring(&app, &[kind, JobKind::DeliverWebhook]).await?;
            app.db.clone().close().await;
        }
        JobsCommand::Cancel { id } => {
            let cancel = async {
                let waited = dead::cancel(db.autocommit(), &id).await?;
                anyhow::ensure!(waited, "no job with this id waits; one that runs can't be called off");
                audit::about(id.as_str());
                Ok(())
            };
            recorded(&log, &db, "cancel_job", cancel).await?;
        }
    }
    db.close().await;
    Ok(())
}

/// Has running replicas look for jobs at once. Those that don't hear find them by polling.
async fn ring(app: &App, kinds: &[JobKind]) -> anyhow::Result<()> {
    for kind in kinds {
        jobs::ring(&app.db, app.redis.as_deref(), *kind)
            .await
            .map_err(|error| anyhow::anyhow!("the database said no ({})", database_error_kind(&error)))?;
    }
    Ok(())
}

async fn plans(values: &Values, command: PlansCommand) -> anyhow::Result<()> {
    let Opened { db, log, .. } = opened(values).await?;
    let said = match command.changes() {
        None => command.run(&db).await?,
        Some((operation, tenant)) => {
            recorded(&log, &db, operation, async {
                if let Some(tenant) = &tenant {
                    audit::about(tenant.as_str());
                }
                command.run(&db).await
            })
            .await?
        }
    };
    print!("{said}");
    db.close().await;
    Ok(())
}

async fn verify_audit(
    values: &Values,
    tenant: Option<TenantId>,
    heads: Option<PathBuf>,
    days: u32,
) -> anyhow::Result<()> {
    let Opened { config, db, log, .. } = opened(values).await?;
    let objects = Objects::new(&config.objects)?;
    let against = heads.as_deref().map_or(Against::Store(&objects, days), Against::File);
    let (said, is_well) = verified(&log, &db, tenant.as_ref(), against).await?;
    print!("{said}");
    db.close().await;
    anyhow::ensure!(is_well, "the audit log is not as it was written");
    Ok(())
}

async fn healthcheck(values: &Values) -> anyhow::Result<()> {
    let http = Config::read(values)?.http;
    let mut address: SocketAddr = http.listen;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    if http.tls_client_ca.is_some() {
        // Only clients with a certificate get an answer, and this isn't one: what can be seen is that somebody listens.
        let connected = tokio::time::timeout(HEALTHCHECK_DEADLINE, tokio::net::TcpStream::connect(address)).await;
        return connected.ok().and_then(Result::ok).map(drop).context("nobody listens on LISTEN");
    }
    let scheme = if http.tls_cert.is_some() { "https" } else { "http" };
    // The certificate is for the name that callers use; this asks the own machine by its number.
    let client = reqwest::Client::builder()
        .timeout(HEALTHCHECK_DEADLINE)
        .tls_danger_accept_invalid_certs(true)
        .no_proxy()
        .build()?;
    let answer = client.get(format!("{scheme}://{address}/readyz")).send().await.context("nobody answers on LISTEN")?;
    anyhow::ensure!(answer.status().is_success(), "not ready: {}", answer.status());
    Ok(())
}

/// The OpenAPI document as it is checked in.
///
/// # Errors
/// If it has no JSON form, which is a defect.
pub fn openapi_document() -> anyhow::Result<String> {
    Ok(app::document().to_pretty_json()? + "\n")
}

/// `docs/errors.md`, from the registry of problem types.
#[must_use]
pub fn errors_document() -> String {
    let mut text = String::from(
        "<!-- Made by `control-plane errors-doc` from the registry in control-plane/src/error.rs. Don't edit. -->\n\n\
         # Errors\n\n\
         Every answer that isn't a success is an [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) problem document, \
         `application/problem+json`:\n\n\
         ```json\n{\n  \"type\": \"/problems/validation\",\n  \"title\": \"One or more fields are not valid\",\n  \
         \"status\": 422,\n  \"request_id\": \"0198c1a2-7a51-7c3e-9d7e-5d3f1f0a4b11\",\n  \"errors\": [\n    \
         {\"pointer\": \"/name\", \"code\": \"length\", \"detail\": \"its length must be from 1 to 100\"}\n  ]\n}\n```\n\n\
         `type` is stable: programs tell errors apart by it. `title` is the same for every occurrence, `detail` says what \
         happened this time. `errors` lists every field that was refused, by JSON pointer into the body, or by the \
         parameter's name. `request_id` is also the answer's `X-Request-Id`: tell it to whoever operates the \
         installation.\n\n\
         Another tenant's thing is answered exactly as one that doesn't exist.\n",
    );
    let mut status = 0;
    for kind in Kind::ALL {
        if kind.status() != status {
            status = kind.status();
            text.push_str(&format!("\n## {status}\n"));
        }
        text.push_str(&format!(
            "\n### `{}`\n\n*{}.*{}\n",
            kind.uri(),
            kind.title(),
            kind.explanation().replace('\n', " ")
        ));
    }
    text
}
