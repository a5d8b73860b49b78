//! Signing up and logging in, as the API shows them.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use shared::{
    ids::{LoginId, TenantId, UserId},
    time::Timestamp,
};
use utoipa::ToSchema;
use validator::{Validate, ValidateEmail, ValidationError};

use super::{Permission, Role};
use crate::{extract::says_something, tenants::TenantDto};

/// The shortest password, in characters. NIST SP 800-63B asks for length and for no composition rules.
pub(crate) const MIN_PASSWORD: usize = 10;
/// The longest secret, in characters of up to four bytes: hashing is paid by us.
const MAX_SECRET: usize = 200;

/// Somebody who wants an account.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignUp {
    /// E-mail address to log in with.
    #[schema(value_type = String, format = Email, example = "ada@example.com", max_length = 254)]
    #[validate(nested)]
    pub email: EmailAddress,
    /// At least 10 characters.
    #[validate(nested)]
    #[schema(value_type = String, format = Password, example = "correct horse battery", min_length = 10, max_length = 200)]
    pub password: Shown<MIN_PASSWORD>,
    /// What to call the person.
    #[validate(length(min = 1, max = 100), custom(function = says_something))]
    #[schema(example = "Ada Lovelace", min_length = 1, max_length = 100)]
    pub name: String,
    /// What to call the account.
    #[validate(length(min = 1, max = 100), custom(function = says_something))]
    #[schema(example = "Acme", min_length = 1, max_length = 100)]
    pub tenant_name: String,
}

/// Somebody who has an account.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogIn {
    /// E-mail address.
    #[schema(value_type = String, format = Email, example = "ada@example.com", max_length = 254)]
    #[validate(nested)]
    pub email: EmailAddress,
    /// Password.
    #[validate(nested)]
    #[schema(value_type = String, format = Password, example = "correct horse battery", max_length = 200)]
    pub password: Shown<0>,
    /// Whether the refresh token is to be kept in a cookie that scripts can't read, and left out of the answer. For browsers.
    #[serde(default)]
    pub cookie: bool,
    /// To which account, of those that the person belongs to. Absent: the one that they have belonged to longest. If a code is
    /// asked for, it is said with the code.
    pub tenant_id: Option<TenantId>,
}

/// The second step of logging in.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogInCode {
    /// From the answer of the first step.
    #[validate(nested)]
    #[schema(value_type = String, example = "sbc_q2Zx…", max_length = 200)]
    pub challenge_token: Shown<0>,
    /// Six digits of the device, or a recovery code.
    #[validate(nested)]
    #[schema(value_type = String, example = "492039", max_length = 200)]
    pub code: Shown<0>,
    /// See `log_in`.
    #[serde(default)]
    pub cookie: bool,
    /// See `log_in`.
    pub tenant_id: Option<TenantId>,
}

/// Another of the accounts that a person belongs to.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SwitchTenant {
    /// Which.
    pub tenant_id: TenantId,
    /// See `log_in`.
    #[serde(default)]
    pub cookie: bool,
}

/// A refresh token, to be used or ended.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RefreshToken {
    /// From the last answer that had one. Without it, the one in the cookie is meant.
    #[validate(nested)]
    #[schema(value_type = Option<String>, example = "sbr_q2Zx…", max_length = 200)]
    pub refresh_token: Option<Shown<0>>,
}

/// The token of a mail.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MailToken {
    /// As the mail says it, or from the fragment of its link.
    #[validate(nested)]
    #[schema(value_type = String, example = "sbm_q2Zx…", max_length = 200)]
    pub token: Shown<0>,
}

/// Somebody who forgot their password.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForgotPassword {
    /// E-mail address.
    #[schema(value_type = String, format = Email, example = "ada@example.com", max_length = 254)]
    #[validate(nested)]
    pub email: EmailAddress,
}

/// Another password, by a mail.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetPassword {
    /// As the mail says it, or from the fragment of its link.
    #[validate(nested)]
    #[schema(value_type = String, example = "sbm_q2Zx…", max_length = 200)]
    pub token: Shown<0>,
    /// At least 10 characters.
    #[validate(nested)]
    #[schema(value_type = String, format = Password, example = "correct horse battery", min_length = 10, max_length = 200)]
    pub password: Shown<MIN_PASSWORD>,
}

/// Another password, by the present one.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePassword {
    /// The present one.
    #[validate(nested)]
    #[schema(value_type = String, format = Password, example = "correct horse battery", max_length = 200)]
    pub current_password: Shown<0>,
    /// At least 10 characters.
    #[validate(nested)]
    #[schema(value_type = String, format = Password, example = "incorrect horse battery", min_length = 10, max_length = 200)]
    pub new_password: Shown<MIN_PASSWORD>,
}

/// One's password once more.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmPassword {
    /// The present one.
    #[validate(nested)]
    #[schema(value_type = String, format = Password, example = "correct horse battery", max_length = 200)]
    pub password: Shown<0>,
}

/// A code of the device.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Code {
    /// Six digits.
    #[validate(nested)]
    #[schema(value_type = String, example = "492039", max_length = 200)]
    pub code: Shown<0>,
}

/// An e-mail address, in lower case and without white space around it.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub struct EmailAddress(String);

impl EmailAddress {
    /// For the database; never for a log.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for EmailAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EmailAddress(…)")
    }
}

impl From<String> for EmailAddress {
    fn from(text: String) -> Self {
        let text = text.trim().to_lowercase();
        // In the form of the domain name system, which every mail server takes: one mailbox is one account, however it is written.
        let ascii = text.rsplit_once('@').filter(|(_, domain)| !domain.is_ascii()).and_then(|(local, domain)| {
            match url::Host::parse(domain) {
                Ok(url::Host::Domain(domain)) => Some(format!("{local}@{domain}")),
                Ok(_) | Err(_) => None,
            }
        });
        Self(ascii.unwrap_or(text))
    }
}

impl Validate for EmailAddress {
    fn validate(&self) -> Result<(), validator::ValidationErrors> {
        // What can't be mailed to would wait for a mail for ever; an address of a host (`ada@[192.0.2.1]`) would choose a mail server itself.
        let mailed = || {
            let address = self.0.parse::<lettre::Address>();
            address.is_ok_and(|address| matches!(url::Host::parse(address.domain()), Ok(url::Host::Domain(_))))
        };
        if self.0.len() <= 254 && self.0.validate_email() && mailed() {
            return Ok(());
        }
        let mut errors = validator::ValidationErrors::new();
        errors.add("__all__", ValidationError::new("email"));
        Err(errors)
    }
}

/// A secret that a caller shows, of at least `MIN` characters.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Shown<const MIN: usize>(SecretString);

impl<const MIN: usize> Shown<MIN> {
    /// The secret.
    pub(crate) fn into_secret(self) -> SecretString {
        self.0
    }
}

impl<const MIN: usize> From<SecretString> for Shown<MIN> {
    fn from(secret: SecretString) -> Self {
        Self(secret)
    }
}

impl<const MIN: usize> std::fmt::Debug for Shown<MIN> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shown(…)")
    }
}

impl<const MIN: usize> Validate for Shown<MIN> {
    fn validate(&self) -> Result<(), validator::ValidationErrors> {
        let text = self.0.expose_secret();
        if (MIN..=MAX_SECRET).contains(&text.chars().count()) {
            return Ok(());
        }
        let mut errors = validator::ValidationErrors::new();
        let bounds = format!("must have {MIN} to {MAX_SECRET} characters");
        errors.add("__all__", ValidationError::new("length").with_message(bounds.into()));
        Err(errors)
    }
}

/// A login's tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct Tokens {
    /// To be sent as `Authorization: Bearer …`.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String, example = "eyJ0eXAiOiJKV1QiLCJhbGciOiJFZERTQSJ9…")]
    pub access_token: SecretString,
    /// Always `Bearer`.
    #[schema(example = "Bearer")]
    pub token_type: &'static str,
    /// How long the access token lives, in seconds.
    #[schema(example = 900)]
    pub expires_in: u64,
    /// To be exchanged, once, for the next pair of tokens. Absent if it stands in a cookie.
    #[serde(serialize_with = "expose_some", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false, example = "sbr_q2Zx…")]
    pub refresh_token: Option<SecretString>,
    /// Until when the login can be continued.
    pub refresh_expires_at: Timestamp,
    /// Who is logged in.
    pub user_id: UserId,
    /// To which tenant.
    pub tenant_id: TenantId,
}

fn expose<S: Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(secret.expose_secret())
}

fn expose_some<S: Serializer>(secret: &Option<SecretString>, to: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => expose(secret, to),
        None => to.serialize_none(),
    }
}

fn expose_all<S: Serializer>(secrets: &[SecretString], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(secrets.iter().map(ExposeSecret::expose_secret))
}

/// The password was right, and a code is asked for.
#[derive(Debug, Serialize, ToSchema)]
pub struct SecondFactorRequired {
    /// Always true.
    #[schema(example = true)]
    pub mfa_required: bool,
    /// To be sent with the code.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String, example = "sbc_q2Zx…")]
    pub challenge_token: SecretString,
    /// How long it is waited for the code, in seconds.
    #[schema(example = 300)]
    pub expires_in: u64,
}

/// A second factor.
#[derive(Debug, Serialize, ToSchema)]
pub struct SecondFactor {
    /// Whether logging in asks for a code.
    pub enabled: bool,
    /// How many recovery codes weren't used yet.
    #[schema(example = 10)]
    pub recovery_codes_left: u32,
}

/// What an authenticator is to be given.
#[derive(Debug, Serialize, ToSchema)]
pub struct SecondFactorSecret {
    /// For typing: base32.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String, example = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP")]
    pub secret: SecretString,
    /// For opening.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String, example = "otpauth://totp/Switchboard:ada%40example.com?secret=JBSWY3DPEHPK3PXP&issuer=Switchboard")]
    pub otpauth_url: SecretString,
    /// For scanning: the URL as a QR code.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String, example = "<svg xmlns=\"http://www.w3.org/2000/svg\"/>")]
    pub qr_svg: SecretString,
}

/// For when the device is lost.
#[derive(Debug, Serialize, ToSchema)]
pub struct RecoveryCodes {
    /// Each works once, instead of a code of the device. They can't be shown again.
    #[serde(serialize_with = "expose_all")]
    #[schema(value_type = Vec<String>, example = json!(["k3v9d-x7m2q"]))]
    pub recovery_codes: Vec<SecretString>,
}

/// A login that goes on.
#[derive(Debug, Serialize, ToSchema)]
pub struct Login {
    /// Its id.
    pub id: LoginId,
    /// The tenant that it is for.
    pub tenant_id: TenantId,
    /// With what it was made, roughly.
    #[schema(example = "Firefox on Linux")]
    pub device: String,
    /// From where it was made, roughly: a network.
    #[schema(example = "203.0.113.0/24")]
    pub address: String,
    /// Whether it is the one that asks.
    pub current: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last continued.
    pub last_used_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Timestamp,
}

/// A login to a tenant, as its archive tells of it: those that ended too, until they are forgotten.
#[derive(Debug, Serialize)]
pub(crate) struct LoginRecord {
    /// Its id.
    pub(super) id: LoginId,
    /// Who logged in.
    pub(super) user_id: UserId,
    /// With what, roughly.
    pub(super) device: String,
    /// From where, roughly: a network.
    pub(super) address: String,
    /// When.
    pub(super) created_at: Timestamp,
    /// When it was last continued.
    pub(super) last_used_at: Timestamp,
    /// When it ends by itself.
    pub(super) expires_at: Timestamp,
    /// When it was ended before that.
    pub(super) revoked_at: Option<Timestamp>,
}

/// The person who is logged in.
#[derive(Debug, Serialize, ToSchema)]
pub struct Me {
    /// Their id.
    pub id: UserId,
    /// The address that they log in with.
    #[schema(example = "ada@example.com")]
    pub email: String,
    /// Whether they have shown that it is their own.
    pub email_verified: bool,
    /// Whether logging in asks for a code of their device.
    pub second_factor: bool,
    /// What to call them.
    #[schema(example = "Ada Lovelace")]
    pub name: String,
    /// What they are in the tenant.
    pub role: Role,
    /// What they may do in it.
    pub permissions: Vec<Permission>,
    /// The tenant that they are logged in to.
    pub tenant: TenantDto,
    /// When they signed up.
    pub created_at: Timestamp,
}

/// What of oneself can be changed.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateMe {
    /// Another name.
    #[validate(length(min = 1, max = 100), custom(function = says_something))]
    #[schema(example = "Ada King", min_length = 1, max_length = 100)]
    pub name: String,
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("x", 9, false)]
    #[case("x", 10, true)]
    #[case("😀", 10, true)]
    #[case("😀", 200, true)]
    #[case("😀", 201, false)]
    #[case("x", 201, false)]
    fn a_password_is_measured_in_characters(#[case] character: &str, #[case] count: usize, #[case] taken: bool) {
        let password = Shown::<MIN_PASSWORD>(character.repeat(count).into());
        assert_eq!(password.validate().is_ok(), taken);
    }

    #[rstest]
    #[case(" Ada@Example.COM ", "ada@example.com", true)]
    #[case("ada@Exämple.com", "ada@xn--exmple-cua.com", true)]
    #[case("ada@xn--exmple-cua.com", "ada@xn--exmple-cua.com", true)]
    #[case("ada@１２７.0.0.1", "ada@１２７.0.0.1", false)]
    #[case("ada@[127.0.0.1]", "ada@[127.0.0.1]", false)]
    #[case("a..b@example.com", "a..b@example.com", false)]
    #[case("ä@", "ä@", false)]
    #[case("ä", "ä", false)]
    fn a_mailbox_has_one_form_and_can_be_mailed_to(#[case] written: &str, #[case] form: &str, #[case] taken: bool) {
        let address = EmailAddress::from(written.to_owned());
        assert_eq!((address.as_str(), address.validate().is_ok()), (form, taken));
    }
}
