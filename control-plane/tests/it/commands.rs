//! The commands of the program, as an operator runs them.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use sea_orm::{ConnectionTrait, Database};
use secrecy::ExposeSecret;
use shared::{ids::JobId, seal::DataKey};
use tempfile::TempDir;

use crate::{
    fleet::until,
    harness::{Answer, Engine, PATIENCE, TestApp},
    redis_server::RedisServer,
};

struct Shell {
    folder: TempDir,
    master_key: String,
}

impl Shell {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), master_key: DataKey::generate().to_base64() }
    }

    fn command(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_control-plane"));
        let database = format!("sqlite://{}?mode=rwc", self.folder.path().join("a.db").display());
        command
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL", database)
            .env("MASTER_KEY", &self.master_key)
            .env("LISTEN", "127.0.0.1:0")
            .env("INTERNAL_LISTEN", "127.0.0.1:0")
            .env("WORKER_JOIN_TOKEN", "sixteen-or-more-characters")
            .envs(settings.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str], settings: &[(&str, &str)], input: &str) -> Output {
        let mut child = self.command(arguments, settings).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() >= deadline {
                child.kill().unwrap();
                panic!("{arguments:?} with {settings:?} goes on: {:?}", child.wait_with_output());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn prints(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, &[], input);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn operators_are_made_replaced_and_removed() {
    let shell = Shell::new();
    shell.prints(&["migrate"], "");
    let made = shell.prints(&["create-operator", "grace@example.com", "--name", "Grace"], "");
    assert!(made.starts_with("opr_") && made.contains("password: "), "{made}");
    let again = shell.run(&["create-operator", "grace@example.com"], &[], "");
    let told = String::from_utf8(again.stderr).unwrap();
    assert!(!again.status.success() && told.contains("--replace"), "{told}");
    let replaced = shell
        .prints(&["create-operator", "grace@example.com", "--replace", "--password-stdin"], "correct horse battery\n");
    assert_eq!(
        replaced.lines().collect::<Vec<_>>(),
        [made.lines().next().unwrap()],
        "no password of one's own is shown"
    );
    assert!(shell.prints(&["reset-operator-second-factor", "grace@example.com"], "").contains("was off"));
    assert!(!shell.run(&["reset-operator-second-factor", "nobody@example.com"], &[], "").status.success());
    shell.prints(&["remove-operator", "grace@example.com"], "");
    assert!(!shell.run(&["remove-operator", "grace@example.com"], &[], "").status.success());
}

#[test]
fn a_tenant_is_seeded_and_a_key_for_settings_is_made() {
    let shell = Shell::new();
    let seeded = shell.prints(&["seed"], "");
    assert!(seeded.contains("demo@example.com") && seeded.contains("sb_test_"), "{seeded}");
    assert!(shell.prints(&["seed"], "").contains("already"));
    let key = shell.prints(&["new-api-key"], "");
    assert!(key.starts_with("sb_live_"), "{key}");
    let settings = [("API_KEY", key.trim()), ("LISTEN", "127.0.0.1:1")];
    let output = shell.run(&["healthcheck"], &settings, "");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains("nobody answers on LISTEN"), "{told}");
}

#[test]
fn settings_that_can_t_be_used_stop_the_program_with_one_sentence() {
    let shell = Shell::new();
    let file = shell.folder.path().join("switchboard.toml");
    std::fs::write(&file, "[tls]\ncert = 'sentinel.pem'").unwrap();
    let file = file.display().to_string();
    for (settings, named) in [
        (&[("PORT", "sentinel")][..], "PORT must be set to a port number"),
        (&[("CONFIG_FILE", &file)], "TLS_CERT is set, which needs TLS_KEY"),
        (&[("CORS_ORIGNS", "sentinel")], "did you mean CORS_ORIGIN?"),
        (&[("JWT_SECRET", "sentinel")], "JWT_SECRET in the environment is not a setting: of JWT_ there are"),
        (&[("RATE_LIMIT_MAX", "sentinel")], "RATE_LIMIT_MAX in the environment is not a setting"),
        (&[("JWT_ACCESS_TTL", "2h"), ("JWT_REFRESH_TTL", "1h")], "JWT_REFRESH_TTL is shorter than JWT_ACCESS_TTL"),
        (
            &[("SMTP_URL", "smtp://sentinel"), ("MAIL_FROM", "a@example.com"), ("EMAIL_VERIFICATION", "optional")],
            "EMAIL_VERIFICATION=optional is for development, without SMTP_URL",
        ),
        (&[("LOG_LEVEL", "sentinel=sentinel=")], "LOG_LEVEL must be set to"),
        (&[("LOG_FILE_PATH", "/dev/null/sentinel/app.log")], "LOG_FILE_PATH"),
    ] {
        let output = shell.run(&["serve"], settings, "");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && told.contains(named), "{told}");
        assert!(!told.contains("sentinel"), "{told}");
    }
}

#[test]
fn the_audit_log_of_commands_is_verified() {
    let shell = Shell::new();
    shell.prints(&["migrate"], "");
    shell.prints(&["create-operator", "grace@example.com"], "");
    assert!(!shell.run(&["create-operator", "grace@example.com"], &[], "").status.success());
    let told = shell.prints(&["verify-audit"], "");
    let well = "1 logs, 4 rows, 0 files of heads: as written; without heads an end that was cut off isn't seen\n";
    assert_eq!(told, well);
    let nil = shared::ids::TenantId::nil().to_string();
    assert_eq!(shell.prints(&["verify-audit", "--tenant", &nil], ""), told);
    let unknown = shell.run(&["verify-audit", "--tenant", shared::ids::TenantId::new().as_str()], &[], "");
    let said = String::from_utf8(unknown.stderr).unwrap();
    assert!(unknown.status.code() == Some(1) && said.contains("there is no audit log of this tenant"), "{said}");
    let heads = shell.folder.path().join("torn.jsonl").display().to_string();
    std::fs::write(&heads, "{").unwrap();
    let torn = shell.run(&["verify-audit", "--heads", &heads], &[], "");
    let said = String::from_utf8(torn.stderr).unwrap();
    assert!(torn.status.code() == Some(1) && said.contains("torn.jsonl"), "{said}");

    let url = format!("sqlite://{}", shell.folder.path().join("a.db").display());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let db = Database::connect(shared::pool::options(&url)).await.unwrap();
        let change = "UPDATE audit_log SET operation = 'other' WHERE result = 'failed'";
        assert_eq!(db.execute_unprepared(change).await.unwrap().rows_affected(), 1);
    });
    let output = shell.run(&["verify-audit"], &[], "");
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("was inserted or changed") && told.contains("1 findings"), "{told}");
}

#[test]
fn a_command_with_another_master_key_changes_nothing() {
    let shell = Shell::new();
    shell.prints(&["seed"], "");
    let before = shell.prints(&["verify-audit"], "");
    let file = shell.folder.path().join("plans.json").display().to_string();
    std::fs::write(&file, r#"{"default": "free", "plans": [{"name": "pro", "title": "Pro"}]}"#).unwrap();
    let (tenant, job) = (shared::ids::TenantId::new(), JobId::new());
    let other = DataKey::generate().to_base64();
    for arguments in [
        &["plans", "apply", &file][..],
        &["plans", "unassign", tenant.as_str()],
        &["plans", "list"],
        &["jobs", "cancel", job.as_str()],
        &["jobs", "redrive", "--all", "upkeep"],
        &["rotate-keys"],
    ] {
        let refused = shell.run(arguments, &[("MASTER_KEY", &other)], "");
        let told = String::from_utf8(refused.stderr).unwrap();
        let why = "MASTER_KEY is not the key that this database was made with";
        assert!(!refused.status.success() && told.contains(why), "{arguments:?}: {told}");
    }
    // Rows under another key would look forged from then on.
    assert_eq!(shell.prints(&["verify-audit"], ""), before);
}

#[test]
fn what_a_database_lacks_or_has_too_much_of_is_told() {
    let shell = Shell::new();
    let (tenant, job) = (shared::ids::TenantId::new(), JobId::new());
    let told = |arguments: &[&str]| {
        let output = shell.run(arguments, &[], "");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let commands = [
        &["plans", "list"][..],
        &["plans", "show", tenant.as_str()],
        &["plans", "unassign", tenant.as_str()],
        &["jobs", "dead"],
        &["jobs", "cancel", job.as_str()],
        &["rotate-keys"],
        &["verify-audit"],
    ];
    for arguments in commands {
        let said = told(arguments);
        assert!(said.contains("run `control-plane migrate` first"), "{arguments:?}: {said}");
    }
    shell.prints(&["migrate"], "");
    let url = format!("sqlite://{}", shell.folder.path().join("a.db").display());
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let db = Database::connect(shared::pool::options(&url)).await.unwrap();
        let newer = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m9999_later', 1)";
        db.execute_unprepared(newer).await.unwrap();
    });
    for arguments in commands.into_iter().chain([&["migrate"][..], &["serve"], &["seed"]]) {
        let said = told(arguments);
        assert!(said.contains("m9999_later") && said.contains("newer version"), "{arguments:?}: {said}");
    }
}

#[test]
fn an_override_decides_something() {
    let shell = Shell::new();
    let tenant = shared::ids::TenantId::new();
    let refused = shell.run(&["plans", "override", tenant.as_str()], &[], "");
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && told.contains("--limit"), "{told}");
    shell.prints(&["migrate"], "");
    for decision in [&["--clear"][..], &["--pool", "acme", "--limit", "sessions=1"]] {
        let refused = shell.run(&[&["plans", "override", tenant.as_str()], decision].concat(), &[], "");
        let told = String::from_utf8(refused.stderr).unwrap();
        assert!(told.contains("there is no such tenant"), "{told}");
    }
}

#[test]
fn programs_that_migrate_one_file_at_once_wait_for_each_other() {
    let shell = Shell::new();
    let mut running: Vec<_> = (0..8).map(|_| shell.command(&["migrate"], &[]).spawn().unwrap()).collect();
    for child in running.drain(..) {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn a_dead_job_is_redriven_or_the_command_says_why_not() {
    let shell = Shell::new();
    shell.prints(&["migrate"], "");
    let url = format!("sqlite://{}", shell.folder.path().join("a.db").display());
    let (upkeep, mail) = (JobId::new(), JobId::new());
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let db = Database::connect(shared::pool::options(&url)).await.unwrap();
        for (id, kind) in [(&upkeep, "upkeep"), (&mail, "mail.send")] {
            let row = format!(
                "INSERT INTO jobs (id, tenant_id, kind, lane, state, run_at, max_attempts, subject, created_at, finished_at) \
                 VALUES ('{id}', '{}', '{kind}', '{kind}', 'dead', 1, 5, '{}', 1, 1)",
                shared::ids::TenantId::nil(),
                shared::ids::MailId::new(),
            );
            db.execute_unprepared(&row).await.unwrap();
        }
    });
    assert_eq!(shell.prints(&["jobs", "redrive", upkeep.as_str()], ""), "");
    for (id, why) in [(&upkeep, "no job with this id was given up"), (&mail, "it is not kept any more")] {
        let refused = shell.run(&["jobs", "redrive", id.as_str()], &[], "");
        let told = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && told.contains(why), "{told}");
    }
    let all = shell.prints(&["jobs", "redrive", "--all", "mail.send"], "");
    assert_eq!(all, "0 ready again, 1 refused\n1\tit is not kept any more\n");
    let dead = shell.prints(&["jobs", "dead"], "");
    assert!(dead.starts_with(mail.as_str()) && dead.lines().count() == 1, "{dead}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_changes_every_replica_hears_at_once() {
    let Some(redis) = RedisServer::start().await else { return };
    let url = redis.url();
    let Some(mut app) = TestApp::start_with(Engine::Postgres, |config| config.redis.url = Some(url.into())).await
    else {
        return;
    };
    let bases = [app.base_url(), app.replica().await];
    let owner = app.sign_up().await;
    until("others are heard", async || app.app().key_cache.works().then_some(())).await;
    let run = |arguments: &[&str]| {
        let config = app.config();
        let shell = Shell {
            folder: tempfile::tempdir().unwrap(),
            master_key: config.secrets.master_key.expose_secret().into(),
        };
        let settings = [("DATABASE_URL", config.database.url.expose_secret()), ("REDIS_URL", &redis.url())];
        let output = shell.run(arguments, &settings, "");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let kid = run(&["rotate-keys", "--compromised"]);
    let started = Instant::now();
    for base in &bases {
        until("the new key signs, and the old one is refused", async || {
            let keys = Answer::of(app.http.get(format!("{base}/.well-known/jwks.json"))).await.json();
            let me = Answer::of(app.http.get(format!("{base}/api/v1/me")).bearer_auth(&owner.access_token)).await;
            (keys["keys"][0]["kid"] == kid.trim() && me.status == 401).then_some(())
        })
        .await;
    }
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "sooner than they look by themselves: {:?}",
        started.elapsed()
    );

    let mut heard = redis::Client::open(redis.url()).unwrap().get_async_pubsub().await.unwrap();
    heard.psubscribe("*:jobs").await.unwrap();
    assert_eq!(run(&["jobs", "redrive", "--all", "tenants.export"]).trim(), "0 ready again, 0 refused");
    let told = tokio::time::timeout(PATIENCE, heard.on_message().next()).await.unwrap().unwrap();
    assert_eq!(told.get_payload::<String>().unwrap(), "tenants.export");
    app.stop().await;
}
