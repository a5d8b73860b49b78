//! Operators decide what tenants may do, and tenants see it at once.

use futures_util::future::join_all;
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use shared::ids::TenantId;

use crate::{
    harness::{Answer, Engine, Owner, TestApp},
    operators::operator,
    plans::{limit, plan_of, plans},
};

/// Requests of an operator.
pub struct Desk<'a> {
    app: &'a TestApp,
    pub token: String,
}

impl<'a> Desk<'a> {
    pub async fn new(app: &'a TestApp) -> Self {
        Self { app, token: operator(app).await }
    }

    pub async fn ask(&self, method: Method, path: &str, body: &Value) -> Answer {
        let request = self.app.request(method, &format!("/api/v1/admin/{path}")).bearer_auth(&self.token);
        Answer::of(if body.is_null() { request } else { request.json(body) }).await
    }

    /// The answer's body, of a request that succeeds.
    pub async fn done(&self, method: Method, path: &str, body: Value) -> Value {
        let answer = self.ask(method.clone(), path, &body).await;
        assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
        answer.json()
    }

    pub async fn get(&self, path: &str) -> Value {
        self.done(Method::GET, path, Value::Null).await
    }
}

fn file(sessions: u32) -> Value {
    json!({
        "default": "free",
        "plans": [
            {"name": "free", "title": "Free", "features": ["webhooks"], "limits": {"sessions": sessions}},
            {"name": "pro", "title": "Pro", "features": ["webhooks", "whatsapp"], "limits": {"sessions": 10 * sessions}},
            {"name": "for-acme", "title": "Acme's own", "pool": "acme", "listed": false},
        ],
    })
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_decides_for_a_tenant_holds_at_once_in_the_one_order(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let (owner, other) = (app.sign_up().await, app.sign_up().await);
    let desk = Desk::new(&app).await;
    let of = |what: &str| format!("tenants/{}/{what}", owner.tenant_id);
    desk.done(Method::POST, "plans", file(1)).await;
    let make = async || {
        let body = json!({"name": "s", "network": "sandbox", "start": false});
        Answer::of(app.post("/api/v1/sessions", &body).bearer_auth(&owner.access_token)).await
    };

    let seen = desk.get(&of("plan")).await;
    assert_eq!((&seen["source"], &seen["given"], &seen["trial"]), (&json!("default"), &Value::Null, &Value::Null));
    assert_eq!(seen["default"], json!({"plan": "free", "version": 2}));
    assert_eq!(make().await.status, 201);
    make().await.assert_problem(402, "quota-exceeded");

    // Given.
    let given = desk.done(Method::PUT, &of("plan"), json!({"plan": "pro"})).await;
    assert_eq!((&given["source"], &given["given"]), (&json!("subscription"), &json!({"plan": "pro", "version": 1})));
    assert_eq!(limit(&given, "sessions"), (json!(10), 1));
    assert_eq!(make().await.status, 201, "it holds for the next request");
    desk.done(Method::POST, "plans", file(2)).await;
    assert_eq!(limit(&plan_of(&app, &owner).await, "sessions").0, 10, "a version that was given stays as it was");
    let newer = desk.done(Method::PUT, &of("plan"), json!({"plan": "pro", "version": null})).await;
    assert_eq!((&newer["version"], limit(&newer, "sessions").0), (&json!(2), json!(20)));
    let older = desk.done(Method::PUT, &of("plan"), json!({"plan": "pro", "version": 1})).await;
    assert_eq!(older["version"], 1);

    // Tried.
    let tried = desk.done(Method::PUT, &of("trial"), json!({"plan": "free", "days": 3})).await;
    assert_eq!((&tried["plan"], &tried["source"]), (&json!("free"), &json!("trial")));
    assert_eq!((&tried["trial"]["plan"], &tried["trial"]["ends_at"]), (&json!("free"), &tried["trial_ends_at"]));
    assert_eq!(tried["given"], json!({"plan": "pro", "version": 1}), "which comes after it");
    assert_eq!(plan_of(&app, &owner).await["source"], "trial");

    // Overridden.
    let wanted = json!({"features": {"whatsapp": true}, "limits": {"sessions": 2, "members": null}, "pool": "acme"});
    let decided = desk.done(Method::PATCH, &of("overrides"), wanted.clone()).await;
    assert_eq!(
        (&decided["overrides"], &decided["pool"], &decided["overridden"]),
        (&wanted, &json!("acme"), &json!(true))
    );
    assert_eq!((&decided["source"], &decided["features"]), (&json!("trial"), &json!(["whatsapp", "webhooks"])));
    make().await.assert_problem(402, "quota-exceeded");
    let more = json!({"features": {"webhooks": false}, "limits": {"sessions": 3}});
    let both = desk.done(Method::PATCH, &of("overrides"), more.clone()).await;
    assert_eq!(both["overrides"]["limits"], json!({"sessions": 3, "members": null}), "what isn't named stays");
    assert_eq!((&both["overrides"]["pool"], &both["features"]), (&json!("acme"), &json!(["whatsapp"])));
    assert_eq!(make().await.status, 201);
    let hook = json!({"url": "https://93.184.216.34/hook", "event_types": ["*"]});
    let hook = app.post("/api/v1/webhooks", &hook).bearer_auth(&owner.access_token);
    Answer::of(hook).await.assert_problem(402, "feature-not-in-plan");
    let only = desk.done(Method::PUT, &of("overrides"), json!({"pool": "shared"})).await;
    assert_eq!(only["overrides"], json!({"features": {}, "limits": {}, "pool": "shared"}));
    assert_eq!((&only["pool"], limit(&only, "sessions").0), (&Value::Null, json!(2)), "as the trial's plan says");
    let none = desk.done(Method::PUT, &of("overrides"), json!({})).await;
    assert_eq!((&none["overridden"], &none["overrides"]["pool"]), (&json!(false), &Value::Null));

    // And back.
    let ended = desk.done(Method::DELETE, &of("trial"), Value::Null).await;
    assert_eq!((&ended["source"], &ended["trial"]), (&json!("subscription"), &Value::Null));
    assert_eq!(desk.done(Method::DELETE, &of("trial"), Value::Null).await, ended, "nothing happens");
    let without = desk.done(Method::DELETE, &of("plan"), Value::Null).await;
    assert_eq!((&without["source"], &without["version"]), (&json!("default"), &json!(3)));
    assert_eq!(plan_of(&app, &owner).await["source"], "default");
    assert_eq!(plan_of(&app, &other).await["overridden"], false, "all of it for this tenant alone");

    // The command and the call see and change the same.
    plans(&app, &["override", &owner.tenant_id, "--limit", "sessions=unlimited", "--pool", "acme"]).await;
    let seen = desk.get(&of("plan")).await;
    assert_eq!(seen["overrides"], json!({"features": {}, "limits": {"sessions": null}, "pool": "acme"}));
    desk.done(Method::PUT, &of("trial"), json!({"plan": "pro", "days": 1})).await;
    assert!(plans(&app, &["show", &owner.tenant_id]).await.contains("a trial, until"));
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn plans_are_published_whole_or_not_at_all(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let desk = Desk::new(&app).await;
    let applied = desk.done(Method::POST, "plans", file(1)).await;
    let expected = |plan: &str, version: i64, is_new: bool| json!({"plan": plan, "version": version, "is_new": is_new});
    assert_eq!(
        applied["data"],
        json!([expected("free", 2, true), expected("pro", 1, true), expected("for-acme", 1, true)])
    );
    let again = desk.done(Method::POST, "plans", file(1)).await;
    assert_eq!(
        again["data"],
        json!([expected("free", 2, false), expected("pro", 1, false), expected("for-acme", 1, false)])
    );

    let mut broken = file(7);
    broken["default"] = json!("nowhere");
    let refused = desk.ask(Method::POST, "plans", &broken).await;
    refused.assert_problem(422, "validation");
    assert_eq!(refused.pointers(), ["/default"]);
    broken = file(7);
    broken["trial"] = json!({"plan": "nowhere", "days": 3});
    let refused = desk.ask(Method::POST, "plans", &broken).await;
    refused.assert_problem(422, "validation");
    assert_eq!(refused.pointers(), ["/trial/plan"]);
    let listed = desk.get("plans").await;
    let plans: Vec<_> =
        listed["data"].as_array().unwrap().iter().map(|p| (p["plan"].clone(), p["version"].clone())).collect();
    assert_eq!(
        plans,
        [(json!("pro"), json!(1)), (json!("free"), json!(2)), (json!("for-acme"), json!(1))],
        "nothing of what was refused"
    );

    let mut with_trial = file(3);
    with_trial["trial"] = json!({"plan": "pro", "days": 14});
    desk.done(Method::POST, "plans", with_trial).await;
    let listed = desk.get("plans?limit=2").await;
    let (pro, free) = (&listed["data"][0], &listed["data"][1]);
    assert_eq!((&pro["default"], &pro["trial_days"], &pro["version"]), (&json!(false), &json!(14), &json!(2)));
    assert_eq!((&free["default"], &free["trial_days"], &free["version"]), (&json!(true), &Value::Null, &json!(3)));
    let next = format!("plans?limit=2&cursor={}", listed["next_cursor"].as_str().unwrap());
    let next = desk.get(&next).await;
    assert_eq!((&next["data"][0]["plan"], &next["next_cursor"]), (&json!("for-acme"), &Value::Null));
    assert_eq!((&next["data"][0]["pool"], &next["data"][0]["listed"]), (&json!("acme"), &json!(false)));

    let versions = desk.get("plans/free/versions?limit=2").await;
    let sessions = |version: &Value| version["limits"][0]["allowed"].clone();
    let newest = versions["data"].as_array().unwrap();
    assert_eq!((sessions(&newest[0]), sessions(&newest[1])), (json!(3), json!(1)), "the newest first");
    let rest = format!("plans/free/versions?cursor={}", versions["next_cursor"].as_str().unwrap());
    let rest = desk.get(&rest).await;
    assert_eq!((&rest["data"][0]["version"], &rest["data"][1]), (&json!(1), &Value::Null));
    for unknown in ["nowhere", "No-Name", "%00", "..%2ffree"] {
        desk.ask(Method::GET, &format!("plans/{unknown}/versions"), &Value::Null)
            .await
            .assert_problem(404, "not-found");
    }
    for path in ["plans?cursor=%00", "plans/free/versions?cursor=Zm9v", "plans?limit=0"] {
        desk.ask(Method::GET, path, &Value::Null).await.assert_problem(400, "bad-request");
    }

    // A new tenant tries what new tenants may try.
    let owner = app.sign_up().await;
    let seen = desk.get(&format!("tenants/{}/plan", owner.tenant_id)).await;
    assert_eq!((&seen["source"], &seen["trial"]["plan"]), (&json!("trial"), &json!("pro")));
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_publish_at_once_each_makes_a_version_of_its_own(#[case] engine: Engine) {
    const AT_ONCE: u32 = 8;
    let Some(app) = TestApp::start(engine).await else { return };
    let desk = Desk::new(&app).await;
    let answers = join_all((1..=AT_ONCE).map(|sessions| desk.done(Method::POST, "plans", file(sessions)))).await;
    let mut versions: Vec<_> = answers.iter().map(|answer| answer["data"][0]["version"].as_i64().unwrap()).collect();
    versions.sort_unstable();
    assert_eq!(versions, (2..2 + i64::from(AT_ONCE)).collect::<Vec<_>>());
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_decided_is_refused_and_changes_nothing(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let desk = Desk::new(&app).await;
    desk.done(Method::POST, "plans", file(1)).await;
    let of = |what: &str| format!("tenants/{}/{what}", owner.tenant_id);
    let before = desk.get(&of("plan")).await;
    let nul = "a\u{0}b";
    let too_many: Vec<_> = std::iter::repeat_n(json!({"name": "a", "title": "A"}), 201).collect();
    for (method, path, body, pointer) in [
        (Method::PUT, of("plan"), json!({"plan": "nowhere"}), "/plan"),
        (Method::PUT, of("plan"), json!({"plan": "pro", "version": 9}), "/plan"),
        (Method::PUT, of("plan"), json!({"plan": "pro", "version": 0}), "/version"),
        (Method::PUT, of("plan"), json!({"plan": "pro", "version": -1}), "/version"),
        (Method::PUT, of("plan"), json!({"plan": "pro", "version": 4_294_967_296_u64}), "/version"),
        (Method::PUT, of("plan"), json!({"plan": "pro' OR 1=1 --"}), "/plan"),
        (Method::PUT, of("plan"), json!({"plan": nul}), "/plan"),
        (Method::PUT, of("plan"), json!({"plan": ["pro"]}), "/plan"),
        (Method::PUT, of("plan"), json!({}), "/plan"),
        (Method::PUT, of("plan"), json!({"plan": "pro", "until": 3}), "/until"),
        (Method::PUT, of("trial"), json!({"plan": "nowhere", "days": 3}), "/plan"),
        (Method::PUT, of("trial"), json!({"plan": "pro", "days": 0}), "/days"),
        (Method::PUT, of("trial"), json!({"plan": "pro", "days": 3651}), "/days"),
        (Method::PUT, of("trial"), json!({"plan": "pro"}), "/days"),
        (Method::PATCH, of("overrides"), json!({"limits": {"moons": 1}}), "/limits"),
        (Method::PATCH, of("overrides"), json!({"limits": {"sessions": -1}}), "/limits"),
        (Method::PATCH, of("overrides"), json!({"limits": {"sessions": 4_294_967_296_u64}}), "/limits"),
        (Method::PATCH, of("overrides"), json!({"limits": ["sessions"]}), "/limits"),
        (Method::PATCH, of("overrides"), json!({"features": {"webhooks": "on"}}), "/features"),
        (Method::PATCH, of("overrides"), json!({"features": {"webhooks": null}}), "/features"),
        (Method::PUT, of("overrides"), json!({"pool": "No name"}), "/pool"),
        (Method::PUT, of("overrides"), json!({"pool": {"own": "acme"}}), "/pool"),
        (Method::PUT, of("overrides"), json!({"plan": "pro"}), "/plan"),
        (Method::POST, "plans".into(), json!({"default": "free"}), "/plans"),
        (Method::POST, "plans".into(), json!({"default": "A b", "plans": []}), "/default"),
        (
            Method::POST,
            "plans".into(),
            json!({"default": "free", "plans": [{"name": "a", "title": " "}]}),
            "/plans/0/title",
        ),
        (
            Method::POST,
            "plans".into(),
            json!({"default": "free", "plans": [{"name": "a", "title": "A"}, {"name": "a", "title": "B"}]}),
            "",
        ),
        (Method::POST, "plans".into(), json!({"default": "free", "plans": too_many}), ""),
        (
            Method::POST,
            "plans".into(),
            json!({"default": "free", "plans": [{"name": "a", "title": "A", "limits": {"sessions": null}}]}),
            "/plans/0/limits",
        ),
        (
            Method::POST,
            "plans".into(),
            json!({"default": "free", "trial": {"plan": "pro", "days": 366}, "plans": []}),
            "/trial/days",
        ),
    ] {
        let answer = desk.ask(method.clone(), &path, &body).await;
        answer.assert_problem(422, "validation");
        assert_eq!(answer.pointers(), [pointer], "{method} {path} {body}: {answer:?}");
        assert!(!answer.text.contains("OR 1=1"), "{answer:?}");
    }
    assert_eq!(desk.get(&of("plan")).await, before, "nothing was decided");
    assert_eq!(app.count("SELECT COUNT(*) FROM plan_versions").await, 4, "nothing was published");

    let unknown = TenantId::new().to_string();
    for tenant in [unknown.as_str(), "x", "ses_01h455vb4pex5vsknk084sn02q", "%00"] {
        for (method, what, body) in [
            (Method::GET, "plan", Value::Null),
            (Method::PUT, "plan", json!({"plan": "pro"})),
            (Method::DELETE, "plan", Value::Null),
            (Method::PUT, "trial", json!({"plan": "pro", "days": 1})),
            (Method::DELETE, "trial", Value::Null),
            (Method::PATCH, "overrides", json!({"limits": {"sessions": 1}})),
            (Method::PUT, "overrides", json!({})),
            (Method::GET, "usage", Value::Null),
        ] {
            let answer = desk.ask(method.clone(), &format!("tenants/{tenant}/{what}"), &body).await;
            assert_eq!(answer.status, 404, "{method} {tenant} {what}: {answer:?}");
            answer.assert_problem(404, "not-found");
        }
    }
    assert_eq!(app.count("SELECT COUNT(*) FROM subscriptions").await, 0);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn no_tenant_decides_its_own_plan(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let key = app.api_key(&owner, "sandbox", &["usage:read", "sessions:read"]).await;
    let of = |what: &str| format!("/api/v1/admin/tenants/{}/{what}", owner.tenant_id);
    for token in [&owner.access_token, &key] {
        for (method, path, body) in [
            (Method::GET, of("plan"), Value::Null),
            (Method::PUT, of("plan"), json!({"plan": "free"})),
            (Method::DELETE, of("plan"), Value::Null),
            (Method::PUT, of("trial"), json!({"plan": "free", "days": 1})),
            (Method::PATCH, of("overrides"), json!({"limits": {"sessions": null}})),
            (Method::PUT, of("overrides"), json!({})),
            (Method::GET, of("usage"), Value::Null),
            (Method::GET, "/api/v1/admin/plans".into(), Value::Null),
            (Method::POST, "/api/v1/admin/plans".into(), file(1)),
        ] {
            let answer = Answer::of(app.request(method, &path).json(&body).bearer_auth(token)).await;
            answer.assert_problem(401, "unauthenticated");
        }
    }
    assert_eq!(app.count("SELECT COUNT(*) FROM subscriptions").await, 0);
    assert_eq!(app.count("SELECT COUNT(*) FROM plan_versions").await, 1);
    app.stop().await;
}

/// A tenant's usage as its owner sees it, without when it was asked for.
async fn own_usage(app: &TestApp, owner: &Owner, query: &str) -> Answer {
    Answer::of(app.get(&format!("/api/v1/usage?{query}")).bearer_auth(&owner.access_token)).await
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_a_tenant_s_usage_and_plan_as_the_tenant_does(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let (owner, other) = (app.sign_up().await, app.sign_up().await);
    let desk = Desk::new(&app).await;
    for (id, tenant, at) in [
        ("messages_sent:a", &owner.tenant_id, "1769817600000"),
        ("messages_sent:b", &owner.tenant_id, "1769904000000"),
        ("messages_sent:c", &other.tenant_id, "1769817600000"),
    ] {
        let insert = "INSERT INTO usage_facts (id, tenant_id, meter, quantity, occurred_at, recorded_at) \
                      VALUES ($1, $2, 'messages_sent', 1, $3, $3)";
        let at: i64 = at.parse().unwrap();
        app.sql(insert, [id.into(), tenant.as_str().into(), at.into()]).await;
    }
    let period = "from=2026-01-01T00:00:00Z&to=2026-03-01T00:00:00Z&granularity=month";
    let seen = desk.get(&format!("tenants/{}/usage?{period}", owner.tenant_id)).await;
    assert_eq!(seen["totals"], json!([{"meter": "messages_sent", "quantity": 2}]));
    assert_eq!(seen, own_usage(&app, &owner, period).await.json());
    for wrong in ["granularity=week", "from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z", "meter=nonsense"] {
        let path = format!("tenants/{}/usage?{wrong}", owner.tenant_id);
        let answer = desk.ask(Method::GET, &path, &Value::Null).await;
        answer.assert_problem(400, "bad-request");
        assert_eq!(answer.pointers(), own_usage(&app, &owner, wrong).await.pointers());
    }

    let path = format!("/api/v1/admin/tenants/{}/plan", owner.tenant_id);
    let first = Answer::of(app.get(&path).bearer_auth(&desk.token)).await;
    let own = plan_of(&app, &owner).await;
    for (name, value) in own.as_object().unwrap() {
        assert_eq!(&first.json()[name], value, "{name}");
    }
    let tag = first.header("etag").unwrap().to_owned();
    let again = Answer::of(app.get(&path).bearer_auth(&desk.token).header("if-none-match", tag)).await;
    assert_eq!(again.status, 304, "{again:?}");
    app.stop().await;
}
