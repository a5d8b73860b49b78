//! Errors as the API tells them.
//!
//! Each domain has an error enum of its own; what a caller may see of it is a [`Refusal`]: one of the registered
//! [`Kind`]s, with a sentence. Anything else is a defect or an outage of ours: it is logged here, once, and the caller
//! gets `internal` or `unavailable` without internals.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use sea_orm::{DbErr, RuntimeErr, sqlx};
use shared::problem::{FieldError, MEDIA_TYPE, Problem};

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $slug:literal, $status:literal, $title:literal;)*) => {
        /// Every type of problem that the API can answer with. `docs/errors.md` is made from this list.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[doc = $doc])+ $name,)* }

        impl Kind {
            /// All of them, in the order of their statuses.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            /// The last part of the `type` URI.
            #[must_use]
            pub const fn slug(self) -> &'static str {
                match self { $(Kind::$name => $slug,)* }
            }

            /// The HTTP status.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Kind::$name => $status,)* }
            }

            /// The same sentence for each occurrence.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Kind::$name => $title,)* }
            }

            /// What it means and what to do, for `docs/errors.md`.
            #[must_use]
            pub const fn explanation(self) -> &'static str {
                match self { $(Kind::$name => concat!($($doc),+),)* }
            }
        }
    };
}

kinds! {
    /// The body isn't JSON at all, or an object in it has the same name twice. Check the quoting and the encoding (UTF-8).
    MalformedJson = "malformed-json", 400, "The request body is not valid JSON";
    /// The path, the query or a header can't be read. `errors` names the part.
    BadRequest = "bad-request", 400, "The request can't be understood";
    /// No credentials, or credentials that are expired, revoked or not ours. Log in again or use another key.
    Unauthenticated = "unauthenticated", 401, "Valid credentials are needed";
    /// E-mail address and password don't belong together. The answer is the same for an address that isn't known.
    InvalidCredentials = "invalid-credentials", 401, "E-mail address or password is wrong";
    /// A worker that may not join: its request isn't signed with the key that it brings, or its name isn't known yet and
    /// the join token is missing or wrong.
    JoinRefused = "join-refused", 401, "The worker may not join";
    /// The plan's limit is reached. `detail` names the meter, the limit and when it resets.
    QuotaExceeded = "quota-exceeded", 402, "The plan's limit is reached";
    /// The plan is without this. `detail` names the feature; ask the operator for another plan.
    FeatureNotInPlan = "feature-not-in-plan", 402, "The plan is without this feature";
    /// The key or the role may not do this. `detail` names the scope that is missing.
    MissingScope = "missing-scope", 403, "These credentials may not do this";
    /// The API key may be used from certain addresses only, and this isn't one.
    AddressNotAllowed = "address-not-allowed", 403, "This API key may not be used from this address";
    /// The password that was to confirm this is wrong.
    WrongPassword = "wrong-password", 403, "The password is wrong";
    /// The code is wrong, too old, or was used before. Take the next one that the device shows.
    WrongCode = "wrong-code", 403, "The code is not accepted";
    /// A request that uses a cookie comes from a page of another origin, or from something that isn't a browser. Send the
    /// token in the body.
    CrossSite = "cross-site", 403, "This page may not use the cookie";
    /// The tenant is suspended by the operator, or its owner is deleting it; reading is still possible.
    TenantSuspended = "tenant-suspended", 403, "This account is suspended";
    /// The person doesn't belong to any account (any more). They can be invited to one, or sign up again for one of their own.
    NoAccount = "no-account", 403, "This person belongs to no account";
    /// There is nothing with this id, or it belongs to somebody else.
    NotFound = "not-found", 404, "There is no such thing";
    /// The path exists, the method on it doesn't.
    MethodNotAllowed = "method-not-allowed", 405, "This method is not possible here";
    /// None of the media types in `Accept` can be made.
    NotAcceptable = "not-acceptable", 406, "None of the accepted media types is available";
    /// The body didn't come whole in time. `detail` says how long it may take.
    RequestTimeout = "request-timeout", 408, "The request took too long to arrive";
    /// The thing is not in a state in which this is possible. `detail` says which state it is in.
    Conflict = "conflict", 409, "This is not possible in the present state";
    /// An account with this e-mail address exists.
    EmailTaken = "email-taken", 409, "This e-mail address is in use";
    /// The session isn't running, so nothing can be sent through it. Start it first.
    SessionNotRunning = "session-not-running", 409, "The session is not running";
    /// There is no QR code to show now: the session is linked already, or not started. `detail` says which.
    NoQrCode = "no-qr-code", 409, "There is no QR code to show";
    /// The session isn't waiting to be linked: it is linked already, not started, or has no connection to WhatsApp just now.
    /// `detail` says which.
    NotPairing = "not-pairing", 409, "The session is not waiting to be linked";
    /// WhatsApp refuses to link: the number has no account, or may not be linked so. Use the QR code.
    LinkRefused = "link-refused", 409, "WhatsApp refuses this way of linking";
    /// WhatsApp asks for nothing of a passkey now, or for something else than what was answered.
    NoPasskeyRequest = "no-passkey-request", 409, "No passkey is asked for";
    /// A request with the same `Idempotency-Key` is being worked on. Ask again after `Retry-After` seconds.
    IdempotencyInFlight = "idempotency-in-flight", 409, "A request with this idempotency key is in flight";
    /// The tenant has a webhook endpoint already. Change or delete it.
    WebhookExists = "webhook-exists", 409, "There is a webhook endpoint already";
    /// Another worker uses this name: it holds the credential or a live lease.
    WorkerIdTaken = "worker-id-taken", 409, "This worker id is taken";
    /// A newer run of this worker has joined; this one must stop.
    WorkerSuperseded = "worker-superseded", 409, "A newer run of this worker has joined";
    /// The worker isn't known (any more). It has to join again.
    WorkerUnknown = "worker-unknown", 410, "This worker is not known";
    /// The thing isn't what `If-Match` says any more: it was changed, or its state is another. Get it again, look, and change it then.
    PreconditionFailed = "precondition-failed", 412, "The thing has changed meanwhile";
    /// The body is larger than the limit, which `detail` names in bytes.
    BodyTooLarge = "body-too-large", 413, "The request body is too large";
    /// The body isn't `application/json`, or is compressed (`Content-Encoding`).
    UnsupportedMediaType = "unsupported-media-type", 415, "The request body must be application/json";
    /// The body is JSON, and one or more fields aren't as they should be. `errors` lists them all.
    Validation = "validation", 422, "One or more fields are not valid";
    /// The same `Idempotency-Key` came with another body or on another operation.
    IdempotencyMismatch = "idempotency-mismatch", 422, "This idempotency key was used for another request";
    /// The token of a mail was used before, is too old, or isn't one. Ask for another mail.
    MailTokenRefused = "mail-token-refused", 422, "This token does not work";
    /// The URL of a webhook leads where we don't call: not public, a port that isn't allowed, or not http(s).
    UrlNotAllowed = "url-not-allowed", 422, "This URL is not allowed";
    /// This kind of message can't be delivered by this account.
    UnsupportedMessage = "unsupported-message", 422, "This message can't be delivered";
    /// Too many requests. Ask again after `Retry-After` seconds.
    RateLimited = "rate-limited", 429, "Too many requests";
    /// A defect of ours. Tell the operator the `request_id`.
    Internal = "internal", 500, "Something went wrong on our side";
    /// A part that this needs doesn't answer just now (the database, or the worker), or not in time. It isn't known whether what was asked
    /// for was done: look, or ask again with the same `Idempotency-Key`.
    Unavailable = "unavailable", 503, "Not available just now";
    /// The control plane can't reach the worker at the endpoint that it named, or it isn't the worker that answers.
    WorkerUnreachable = "worker-unreachable", 503, "The worker can't be reached at its endpoint";
}

impl Kind {
    /// The `type` URI.
    #[must_use]
    pub fn uri(self) -> String {
        format!("/problems/{}", self.slug())
    }

    /// A refusal of this kind, with a sentence for this occurrence.
    #[must_use]
    pub fn because(self, detail: impl Into<String>) -> Refusal {
        Refusal { kind: self, detail: Some(detail.into()), errors: Vec::new(), headers: Vec::new() }
    }
}

/// An answer other than success, of a registered kind.
#[derive(Debug, Clone)]
pub struct Refusal {
    kind: Kind,
    detail: Option<String>,
    errors: Vec<FieldError>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Why, in a sentence.
    #[must_use]
    pub fn sentence(&self) -> &str {
        self.detail.as_deref().unwrap_or_else(|| self.kind.title())
    }

    /// Adds the fields that were refused.
    #[must_use]
    pub fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        self.errors = errors;
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// One field that was refused, as a whole `validation` problem.
    #[must_use]
    pub fn field(pointer: &str, code: &str, detail: &str) -> Self {
        Self::from(Kind::Validation).with_errors(vec![FieldError {
            pointer: pointer.into(),
            code: code.into(),
            detail: detail.into(),
        }])
    }
}

impl From<Kind> for Refusal {
    fn from(kind: Kind) -> Self {
        Self { kind, detail: None, errors: Vec::new(), headers: Vec::new() }
    }
}

/// What a handler returns when it doesn't succeed.
#[derive(Debug)]
pub enum ApiError {
    /// The caller's affair, or a known state of ours.
    Refused(Box<Refusal>),
    /// The database doesn't answer, or answers with an error.
    Database(DbErr),
    /// A defect of ours: what was being done, without any data.
    Defect(&'static str),
}

/// The result of a handler.
pub type ApiResult<T> = Result<T, ApiError>;

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

impl From<Kind> for ApiError {
    fn from(kind: Kind) -> Self {
        Refusal::from(kind).into()
    }
}

impl From<DbErr> for ApiError {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}

impl From<crate::auth::SigningKeyError> for ApiError {
    fn from(error: crate::auth::SigningKeyError) -> Self {
        match error {
            crate::auth::SigningKeyError::Database(error) => Self::Database(error),
            _ => Self::Defect("the signing keys can't be used"),
        }
    }
}

impl From<shared::seal::SealError> for ApiError {
    fn from(_: shared::seal::SealError) -> Self {
        Self::Defect("a sealed value did not open")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let refusal = match self {
            Self::Refused(refusal) => *refusal,
            Self::Database(error) => {
                // The driver's words can hold values; its kind can't.
                let outage = is_outage(&error);
                tracing::error!(kind = database_error_kind(&error), outage, "a database call failed");
                if outage { Kind::Unavailable.into() } else { Kind::Internal.into() }
            }
            Self::Defect(doing) => {
                tracing::error!(doing, "a defect");
                Kind::Internal.into()
            }
        };
        refusal.into_response()
    }
}

/// Whether the database was away or too busy, rather than asked something that it can't do.
fn is_outage(error: &DbErr) -> bool {
    let (DbErr::Exec(RuntimeErr::SqlxError(cause)) | DbErr::Query(RuntimeErr::SqlxError(cause))) = error else {
        return matches!(error, DbErr::Conn(_) | DbErr::ConnectionAcquire(_));
    };
    match &**cause {
        // SQLITE_BUSY. PostgreSQL: connection, transaction rolled back (deadlocks), resources, lock not available,
        // operator intervention (time-outs, shutdown), and transactions that were idle for too long.
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            code == "5"
                || code == "55P03"
                || code == "25P03"
                || ["08", "40", "53", "57"].iter().any(|c| code.starts_with(c))
        }),
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) => true,
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

/// Why the database can't be connected to, for whoever set its URL. The driver's own words can hold that.
#[must_use]
pub fn why_not_connected(error: &DbErr) -> &'static str {
    let DbErr::Conn(RuntimeErr::SqlxError(cause)) = error else { return database_error_kind(error) };
    match &**cause {
        sqlx::Error::Database(error) => match error.code().as_deref() {
            Some("28P01" | "28000") => "the user or the password is refused",
            Some("3D000") => "there is no such database",
            Some("53300") => "it takes no more connections",
            Some("14") => "the file can't be opened: does its folder exist, and is ?mode=rwc at the end of the URL?",
            _ => "it refuses",
        },
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => "nobody answers there",
        sqlx::Error::Tls(_) => "TLS failed",
        sqlx::Error::Configuration(_) => "the URL can't be read",
        _ => database_error_kind(error),
    }
}

/// The name of a database error's variant.
#[must_use]
pub fn database_error_kind(error: &DbErr) -> &'static str {
    match error {
        DbErr::ConnectionAcquire(_) => "connection_acquire",
        DbErr::Conn(_) => "connection",
        DbErr::Exec(_) => "execute",
        DbErr::Query(_) => "query",
        DbErr::Type(_) => "type",
        DbErr::Json(_) => "json",
        DbErr::Migration(_) => "migration",
        DbErr::RecordNotFound(_) => "record_not_found",
        DbErr::RecordNotInserted => "record_not_inserted",
        DbErr::RecordNotUpdated => "record_not_updated",
        _ => "other",
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let problem = Problem {
            kind: self.kind.uri(),
            title: self.kind.title().into(),
            status: self.kind.status(),
            detail: self.detail,
            // Put in by the layer that knows it, which finds the problem in the extensions.
            request_id: None,
            errors: self.errors,
        };
        let mut response = (status, Json(&problem)).into_response();
        response.extensions_mut().insert(problem);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.headers_mut().extend(self.headers);
        response
    }
}
