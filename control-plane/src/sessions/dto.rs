//! Sessions as the API tells them.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, value},
};
use shared::{
    ids::SessionId,
    seal::SealError,
    time::Timestamp,
    wire::session::{Account, Network, OnUnknown, SessionSettings},
};
use utoipa::ToSchema;
use validator::{Validate, ValidationError, ValidationErrors};

use super::{
    entity::{DesiredColumn, Model},
    service,
    status::{Facts, State, status},
};
use crate::{extract::says_something, messages::recipient::phone_of, state::App, workers::entity as worker};

/// A session to be made.
#[derive(Debug, Clone, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSession {
    /// What to call it.
    #[schema(example = "Reception", min_length = 1, max_length = 100)]
    #[validate(length(min = 1, max = 100), custom(function = says_something))]
    pub name: String,
    /// Which WhatsApp it speaks to, for good. An API key makes sessions of its own network only; people choose, and
    /// get the real one if they don't.
    pub network: Option<Network>,
    /// How it runs.
    #[validate(nested)]
    pub settings: Option<ChangeSettings>,
    /// Whether to start it at once. Default: yes.
    pub start: Option<bool>,
}

/// What to change of a session.
#[derive(Debug, Clone, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateSession {
    /// Another name.
    #[schema(example = "Front desk", min_length = 1, max_length = 100)]
    #[validate(length(min = 1, max = 100), custom(function = says_something))]
    pub name: Option<String>,
    /// Other settings; those that are absent stay.
    #[validate(nested)]
    pub settings: Option<ChangeSettings>,
}

/// Settings of a session; those that are absent stay as they are.
#[derive(Debug, Clone, Default, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeSettings {
    /// What to do with a send whose outcome isn't known after a crash.
    pub on_unknown: Option<OnUnknown>,
    /// The name that the linked device shows on the phone.
    #[schema(example = "Switchboard", min_length = 1, max_length = 50)]
    #[validate(length(min = 1, max = 50), custom(function = says_something))]
    pub device_name: Option<String>,
}

impl ChangeSettings {
    /// The settings after the change.
    #[must_use]
    pub fn over(self, held: SessionSettings) -> SessionSettings {
        SessionSettings {
            on_unknown: self.on_unknown.unwrap_or(held.on_unknown),
            device_name: self.device_name.unwrap_or(held.device_name),
        }
    }
}

/// A session.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = Session)]
pub struct SessionDto {
    /// Its id.
    pub id: SessionId,
    /// What it is called.
    #[schema(example = "Reception")]
    pub name: String,
    /// Which WhatsApp it speaks to.
    pub network: Network,
    /// What its owner wants of it.
    pub desired: DesiredColumn,
    /// What it is.
    pub status: State,
    /// Why, where the status alone doesn't say it: a stable word such as `no_capacity`.
    pub reason: Option<String>,
    /// Of a ban: when it ends, where known.
    pub until: Option<Timestamp>,
    /// Who it is on WhatsApp, once it was linked.
    pub account: Option<AccountDto>,
    /// How it runs.
    pub settings: SettingsDto,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its owner last changed it.
    pub updated_at: Timestamp,
}

/// Settings of a session.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = SessionSettings)]
pub struct SettingsDto {
    /// What to do with a send whose outcome isn't known after a crash.
    pub on_unknown: OnUnknown,
    /// The name that the linked device shows on the phone.
    #[schema(example = "Switchboard")]
    pub device_name: String,
}

/// Who a session is on WhatsApp.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = Account)]
pub struct AccountDto {
    /// The account's JID in the phone-number namespace.
    #[schema(example = "15550001234@s.whatsapp.net")]
    pub jid: String,
    /// Its LID, where known.
    pub lid: Option<String>,
    /// Its phone number in E.164.
    #[schema(example = "+15550001234")]
    pub phone: Option<String>,
    /// The name that it shows to others.
    pub name: Option<String>,
}

/// The account behind a device's JID, which has a device part (`…:12@…`).
fn account_jid(jid: &str) -> String {
    match jid.split_once('@') {
        Some((user, server)) => format!("{}@{server}", user.split(':').next().unwrap_or(user)),
        None => jid.to_owned(),
    }
}

impl From<Account> for AccountDto {
    fn from(account: Account) -> Self {
        let jid = account_jid(&account.jid);
        Self { phone: phone_of(&jid), jid, lid: account.lid.as_deref().map(account_jid), name: account.push_name }
    }
}

impl SessionDto {
    /// A row as it is now.
    ///
    /// # Errors
    /// [`SealError`] if the row was tampered with.
    pub fn of(app: &App, row: Model, holder: Option<&worker::Model>) -> Result<Self, SealError> {
        let status = status(Facts::of(&row, holder, Timestamp::now()));
        let account = service::account(app, &row)?;
        Ok(Self {
            id: row.id,
            name: row.name,
            network: row.network.into(),
            desired: row.desired,
            status: status.status,
            reason: status.reason,
            until: status.until,
            account: account.map(AccountDto::from),
            settings: SettingsDto { on_unknown: row.settings.0.on_unknown, device_name: row.settings.0.device_name },
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

/// What a session is, and since when.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SessionStatus {
    /// The session.
    pub session_id: SessionId,
    /// What it is.
    pub status: State,
    /// Why, where the status alone doesn't say it.
    pub reason: Option<String>,
    /// Of a ban: when it ends, where known.
    pub until: Option<Timestamp>,
    /// What its owner wants of it.
    pub desired: DesiredColumn,
    /// Since when its worker has seen it so.
    pub since: Option<Timestamp>,
    /// When the last frame came from WhatsApp, as far as reported.
    pub last_frame_at: Option<Timestamp>,
}

impl SessionStatus {
    /// A row's status now.
    #[must_use]
    pub fn of(row: Model, holder: Option<&worker::Model>) -> Self {
        let status = status(Facts::of(&row, holder, Timestamp::now()));
        Self {
            status: status.status,
            reason: status.reason,
            until: status.until,
            desired: row.desired,
            since: row.observed_since.filter(|_| row.observed_generation == row.generation),
            last_frame_at: row.last_frame_at,
            session_id: row.id,
        }
    }
}

/// A QR code to be scanned.
#[derive(Clone, Serialize, ToSchema)]
pub struct QrDto {
    /// The text in the code.
    pub qr: String,
    /// When WhatsApp stops accepting it. Ask again then: there is a next one, until pairing times out.
    pub expires_at: Timestamp,
}

/// Whose phone the code will be typed into.
#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePairingCode {
    /// The account's phone number in E.164, with or without `+`.
    #[validate(length(max = 30))]
    #[schema(example = "+15550001234", pattern = r"^\+?[1-9][0-9]{6,14}$")]
    pub phone: String,
}

/// A code to be typed into the phone.
#[derive(Serialize, ToSchema)]
#[schema(as = PairingCode)]
pub struct PairingCodeDto {
    /// Eight characters, with a dash in the middle as the phone shows it.
    #[schema(example = "ABCD-1234")]
    pub code: String,
    /// When WhatsApp stops accepting it.
    pub expires_at: Timestamp,
}

/// What WhatsApp asks of the owner of an account that is protected by a passkey.
#[derive(Serialize, ToSchema)]
#[schema(as = PasskeyRequest)]
#[serde(rename_all = "snake_case", tag = "stage")]
pub enum PasskeyDto {
    /// An assertion.
    Assertion {
        /// WebAuthn's `PublicKeyCredentialRequestOptions` in JSON: for `PublicKeyCredential.parseRequestOptionsFromJSON`.
        #[schema(value_type = Object)]
        request_options: serde_json::Value,
    },
    /// That the codes on both sides are the same.
    Confirmation {
        /// What the phone shows as well.
        #[schema(example = "ABCD-1234")]
        code: String,
    },
}

/// The owner's answer.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "stage", deny_unknown_fields, try_from = "AnswerBody")]
pub enum AnswerPasskey {
    /// The assertion.
    Assertion {
        /// What `navigator.credentials.get` gave, as its `toJSON` writes it.
        credential: Credential,
    },
    /// The codes are the same.
    Confirmation,
}

/// How it is read: a derived tagged enum would take a number for its tag, an array for the credential, and anything beside
/// `confirmation`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerBody {
    stage: Stage,
    #[serde(default, deserialize_with = "not_null")]
    credential: Option<Credential>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    Assertion,
    Confirmation,
}

fn not_null<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Credential>, D::Error> {
    Credential::deserialize(from).map(Some)
}

impl TryFrom<AnswerBody> for AnswerPasskey {
    type Error = value::Error;

    fn try_from(body: AnswerBody) -> Result<Self, value::Error> {
        match (body.stage, body.credential) {
            (Stage::Assertion, Some(credential)) => Ok(Self::Assertion { credential }),
            (Stage::Assertion, None) => Err(value::Error::missing_field("credential")),
            (Stage::Confirmation, None) => Ok(Self::Confirmation),
            (Stage::Confirmation, Some(_)) => Err(value::Error::unknown_field("credential", &["stage"])),
        }
    }
}

impl Validate for AnswerPasskey {
    fn validate(&self) -> Result<(), ValidationErrors> {
        match self {
            Self::Assertion { credential } => {
                let mut errors = ValidationErrors::new();
                errors.merge_self("credential", credential.validate());
                outcome(errors)
            }
            Self::Confirmation => Ok(()),
        }
    }
}

/// WebAuthn's `AuthenticationResponseJSON`. All values are unpadded base64url. What isn't listed is ignored.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// The credential's id.
    #[schema(
        max_length = 16384,
        pattern = "^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{4}|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048]|[A-Za-z0-9_-][AQgw])$"
    )]
    pub raw_id: String,
    /// The answer itself.
    pub response: AssertionResponse,
}

/// WebAuthn's `AuthenticatorAssertionResponseJSON`.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AssertionResponse {
    /// What was signed over.
    #[serde(rename = "clientDataJSON")]
    #[schema(
        max_length = 16384,
        pattern = "^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{4}|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048]|[A-Za-z0-9_-][AQgw])$"
    )]
    pub client_data_json: String,
    /// What the authenticator says of itself.
    #[schema(
        max_length = 16384,
        pattern = "^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{4}|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048]|[A-Za-z0-9_-][AQgw])$"
    )]
    pub authenticator_data: String,
    /// The signature.
    #[schema(
        max_length = 16384,
        pattern = "^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{4}|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048]|[A-Za-z0-9_-][AQgw])$"
    )]
    pub signature: String,
    /// Whose credential it is.
    #[schema(
        max_length = 16384,
        pattern = "^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{4}|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048]|[A-Za-z0-9_-][AQgw])$"
    )]
    pub user_handle: Option<String>,
}

// By hand: the derived validation knows the fields by their names in Rust, and callers by those in JSON.
impl Validate for Credential {
    fn validate(&self) -> Result<(), ValidationErrors> {
        let mut errors = base64url([("rawId", Some(&self.raw_id))]);
        errors.merge_self("response", self.response.validate());
        outcome(errors)
    }
}

impl Validate for AssertionResponse {
    fn validate(&self) -> Result<(), ValidationErrors> {
        outcome(base64url([
            ("clientDataJSON", Some(&self.client_data_json)),
            ("authenticatorData", Some(&self.authenticator_data)),
            ("signature", Some(&self.signature)),
            ("userHandle", self.user_handle.as_ref()),
        ]))
    }
}

fn base64url<const N: usize>(fields: [(&'static str, Option<&String>); N]) -> ValidationErrors {
    let mut errors = ValidationErrors::new();
    for (name, text) in fields {
        if let Some(Err(error)) = text.map(|text| is_base64url(text)) {
            errors.add(name, error);
        }
    }
    errors
}

fn outcome(errors: ValidationErrors) -> Result<(), ValidationErrors> {
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

impl Credential {
    /// As WhatsApp Web writes it (whatsapp-rust 0.7.0, `build_webauthn_assertion_json`).
    #[must_use]
    pub fn as_whatsapp_reads_it(&self) -> String {
        serde_json::json!({
            "id": self.raw_id,
            "rawId": self.raw_id,
            "type": "public-key",
            "response": {
                "clientDataJSON": self.response.client_data_json,
                "authenticatorData": self.response.authenticator_data,
                "signature": self.response.signature,
                "userHandle": self.response.user_handle,
            },
        })
        .to_string()
    }
}

fn is_base64url(text: &str) -> Result<(), ValidationError> {
    let decoded = URL_SAFE_NO_PAD.decode(text);
    if text.len() <= 16_384 && decoded.is_ok_and(|bytes| !bytes.is_empty()) {
        return Ok(());
    }
    Err(ValidationError::new("base64url").with_message("must be unpadded base64url, at most 16384 characters".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_told_without_its_device() {
        let account = Account {
            jid: "15550001234:7@s.whatsapp.net".into(),
            lid: Some("99:7@lid".into()),
            push_name: Some("Desk".into()),
        };
        let dto = AccountDto::from(account);
        assert_eq!(dto.jid, "15550001234@s.whatsapp.net");
        assert_eq!(dto.lid.as_deref(), Some("99@lid"));
        assert_eq!(dto.phone.as_deref(), Some("+15550001234"));
    }
}
