//! What is remembered of sessions in Redis: where they are, and their QR codes.

use redis::AsyncCommands;
use rstest::rstest;
use serde_json::json;
use shared::{ids::SessionId, wire::session::Observed};

use crate::{
    fleet::{FakeWorker, Program, until},
    harness::{Answer, Engine, TestApp},
    redis_server::RedisServer,
};

async fn connection(redis: &RedisServer) -> redis::aio::MultiplexedConnection {
    redis::Client::open(redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// All that lies in Redis about sessions, by name.
async fn values(redis: &RedisServer, session: &SessionId) -> Vec<(String, Vec<u8>)> {
    let mut connection = connection(redis).await;
    let names: Vec<String> = connection.keys(format!("*{session}")).await.unwrap();
    let mut found = Vec::new();
    for name in names {
        if let Some(value) = connection.get::<_, Option<Vec<u8>>>(&name).await.unwrap() {
            found.push((name, value));
        }
    }
    found
}

async fn put_back(redis: &RedisServer, values: &[(String, Vec<u8>)]) {
    for (name, value) in values {
        connection(redis).await.set::<_, _, ()>(name, value).await.unwrap();
    }
}

async fn routes(app: &TestApp, outcome: &str) -> u64 {
    let figures = app.figures().await.text;
    let name = format!("redis_values_total{{value=\"route\",outcome=\"{outcome}\"}} ");
    figures.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_shows_a_qr_code_that_the_worker_was_asked_for_once_and_no_longer_than_it_stands() {
    let Some(mut redis) = RedisServer::start().await else { return };
    let url = redis.url();
    let Some(mut app) = TestApp::start_with(Engine::Postgres, |config| config.redis.url = Some(url.into())).await
    else {
        return;
    };
    let bases = [app.base_url(), app.replica().await];
    let program = Program::new(&app).await;
    let worker = FakeWorker::active(&app, "w1").await;
    let id = program.session().await;
    worker.told(&id, |_| true).await;
    let ask = async |base: &str| {
        let request = app.http.get(format!("{base}/api/v1/sessions/{id}/qr")).bearer_auth(&program.key);
        Answer::of(request).await
    };
    worker.show_qr("2@one");
    worker.report(&id, Observed::Pairing).await;
    program.status(&id, "pairing").await;
    for base in bases.iter().cycle().take(6) {
        let answer = ask(base).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["qr"]), (200, &json!("2@one")), "{answer:?}");
    }
    assert_eq!(worker.views(), 1);
    let kept = values(&redis, &id).await;
    assert!(kept.iter().any(|(name, _)| name.contains(":qr:")), "{kept:?}");
    for (name, value) in &kept {
        assert!(!value.windows(4).any(|bytes| bytes == b"2@on"), "in clear: {name}");
        let left: i64 = connection(&redis).await.pttl(name).await.unwrap();
        assert!((1..=60_000).contains(&left), "{name}: {left} ms");
    }

    worker.show_qr("2@two");
    worker.report(&id, Observed::Pairing).await;
    for base in &bases {
        assert_eq!(ask(base).await.json()["qr"], "2@two");
    }
    assert_eq!(worker.views(), 2);
    worker.report(&id, Observed::Connected).await;
    put_back(&redis, &kept).await;
    for base in &bases {
        assert!(!ask(base).await.text.contains("2@one"), "a code that was scanned");
    }

    worker.report(&id, Observed::Pairing).await;
    redis.kill();
    let before = worker.views();
    worker.show_qr("2@three");
    for base in &bases {
        assert_eq!(ask(base).await.json()["qr"], "2@three");
    }
    assert_eq!(worker.views(), before + 2, "without Redis the worker is asked each time");
    redis.start_again().await;
    until("codes are kept again", async || {
        let before = worker.views();
        for base in &bases {
            assert_eq!(ask(base).await.json()["qr"], "2@three");
        }
        worker.report(&id, Observed::Pairing).await;
        (worker.views() < before + 2).then_some(())
    })
    .await;
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_route_spares_the_database_is_dropped_at_each_move_and_found_out_if_it_is_old(#[case] engine: Engine) {
    let Some(mut redis) = RedisServer::start().await else { return };
    let url = redis.url();
    let Some(app) = TestApp::start_with(engine, |config| config.redis.url = Some(url.into())).await else { return };
    let program = Program::new(&app).await;
    let worker = FakeWorker::active(&app, "w1").await;
    let id = program.session().await;
    worker.told(&id, |_| true).await;
    worker.report(&id, Observed::Pairing).await;
    program.status(&id, "pairing").await;
    let path = format!("sessions/{id}/pairing-code");
    let phone = json!({"phone": "+15550001234"});
    assert_eq!(program.post(&path, &phone).await.status, 200);
    let before = routes(&app, "hit").await;
    assert_eq!(program.post(&path, &phone).await.status, 200);
    assert_eq!(routes(&app, "hit").await, before + 1);
    let old = values(&redis, &id).await;
    assert!(old.iter().any(|(name, _)| name.contains(":route:")), "{old:?}");
    let text = String::from_utf8_lossy(&old[0].1).into_owned();
    assert!(!text.contains(&worker.endpoint) && !text.contains(&program.tenant));

    // Nobody else's, whatever is remembered.
    let other = Program::new(&app).await;
    other.post(&path, &phone).await.assert_problem(404, "not-found");

    // The worker takes its sessions under new generations: the route is gone, and were it not, the worker would refuse.
    worker.come().await;
    assert_eq!(values(&redis, &id).await, [], "dropped");
    put_back(&redis, &old).await;
    worker.report(&id, Observed::Pairing).await;
    assert_eq!(program.post(&path, &phone).await.status, 200);
    assert_eq!(routes(&app, "stale").await, 1);
    assert_eq!(program.post(&path, &phone).await.status, 200);
    assert_eq!(routes(&app, "stale").await, 1, "found out once");

    // Messages go where the session is, by whatever is remembered.
    worker.report(&id, Observed::Connected).await;
    program.status(&id, "connected").await;
    for remembered in [Some(&old), None] {
        if let Some(old) = remembered {
            put_back(&redis, old).await;
        }
        // Several at once: the first of an idle session is handed over by the request that brings it.
        let sent = (0..8).map(|_| program.send(&id, "+15550002222", "hello"));
        for sent in futures_util::future::join_all(sent).await {
            program.message(sent.json()["id"].as_str().unwrap(), "sent").await;
        }
    }

    // A wish drops it too.
    assert!(!values(&redis, &id).await.is_empty());
    assert_eq!(program.post(&format!("sessions/{id}/stop"), &json!({})).await.status, 202);
    assert_eq!(values(&redis, &id).await, []);
    program.post(&path, &phone).await.assert_problem(409, "not-pairing");
    assert_eq!(program.post(&format!("sessions/{id}/start"), &json!({})).await.status, 202);
    worker.report(&id, Observed::Pairing).await;
    program.status(&id, "pairing").await;
    assert_eq!(program.post(&path, &phone).await.status, 200);

    redis.kill();
    for _ in 0..4 {
        assert_eq!(program.post(&path, &phone).await.status, 200);
    }
    worker.report(&id, Observed::Connected).await;
    program.status(&id, "connected").await;
    let sent = program.send(&id, "+15550002222", "hello").await.json();
    program.message(sent["id"].as_str().unwrap(), "sent").await;
    app.stop().await;
}

/// As one that was demoted, or whose memory is full: it answers, and takes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_can_be_read_and_not_written_counts_as_away_until_it_can() {
    let Some(redis) = RedisServer::start().await else { return };
    let url = redis.url();
    let Some(app) = TestApp::start_with(Engine::Postgres, |config| config.redis.url = Some(url.into())).await else {
        return;
    };
    let ours = app.app().redis.clone().unwrap();
    assert!(ours.probe().await.is_ok());
    let command = async |words: &[&str]| {
        let mut connection = connection(&redis).await;
        redis::cmd(words[0]).arg(&words[1..]).query_async::<()>(&mut connection).await.unwrap();
    };
    command(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    assert!(ours.probe().await.is_err(), "it takes nothing");
    command(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    assert!(ours.probe().await.is_ok());
    app.stop().await;
}
