//! Tokens: what a user who showed the password shows from then on. Signed with HMAC-SHA-256, and nothing else is accepted.
//!
//! `jsonwebtoken` reads and checks them; the one algorithm that is used here is brought along, by *ring*, which TLS needs anyhow:
//! the crate's own choices bring every algorithm there is.

use std::sync::Once;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error as TokenError, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use ring::hmac;
use serde::{Deserialize, Serialize};
use signature::{Signer, Verifier};

use super::{base32, locked, random};
use crate::client::{Client, Code, Failure};
use crate::volume::security;

/// How long a token is good, seconds.
pub const TOKEN_SECONDS: i64 = 15 * 60;
/// How long another one is given for it without the password, seconds.
pub const REFRESH_SECONDS: i64 = 12 * 3_600;
/// Whom a token is for.
const AUDIENCE: &str = "aios-api";
/// Whom one is for that only gets others.
const REFRESH_AUDIENCE: &str = "aios-refresh";

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The volume.
    pub iss: String,
    /// Whom it is for.
    pub aud: String,
    /// The user.
    pub sub: String,
    /// The version of the user that it was given to.
    pub ver: u64,
    /// When the password was shown, seconds since 1970.
    pub auth_time: i64,
    /// When it was given, seconds since 1970.
    pub iat: i64,
    /// Until when it is good, seconds since 1970.
    pub exp: i64,
}

/// What tokens are signed with, newest first: `Common/Security/tokens.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Secrets {
    schema: u32,
    /// The volume.
    issuer: String,
    keys: Vec<Secret>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Secret {
    kid: String,
    /// 256 bits, 5 in each character.
    secret: String,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To use the API.
    Access,
    /// To get another token.
    Refresh,
}

impl Purpose {
    fn audience(self) -> &'static str {
        match self {
            Self::Access => AUDIENCE,
            Self::Refresh => REFRESH_AUDIENCE,
        }
    }

    /// How long it is good, seconds.
    #[must_use]
    pub fn seconds(self) -> i64 {
        match self {
            Self::Access => TOKEN_SECONDS,
            Self::Refresh => REFRESH_SECONDS,
        }
    }
}

/// The secrets of this volume; made if there are none.
///
/// # Errors
/// Exit code 4; 1 if a token that is signed with them is not accepted.
pub fn load(client: &mut Client) -> Result<Secrets, Failure> {
    let path = client.layout.token_secrets();
    let secrets = match security::read(&*client.disk, &path)? {
        Some(secrets) => secrets,
        None => {
            let _lock = locked(client)?;
            match security::read(&*client.disk, &path)? {
                Some(secrets) => secrets,
                None => {
                    let secrets = Secrets::new(&client.volume_id()?)?;
                    security::write(&*client.disk, &mut client.names, &path, &secrets)?;
                    secrets
                }
            }
        }
    };
    secrets.prove(client.now().wall.timestamp())?;
    Ok(secrets)
}

impl Secrets {
    fn new(volume: &str) -> Result<Self, Failure> {
        let secret = Secret { kid: base32(&random::<5>()?), secret: base32(&random::<32>()?) };
        Ok(Self { schema: 1, issuer: format!("aios:{volume}"), keys: vec![secret] })
    }

    /// Signs one token and accepts it, refuses it for the other purpose and with another signature.
    fn prove(&self, now: i64) -> Result<(), Failure> {
        let wrong = |what: &str| Failure::new(Code::Failed, format!("tokens cannot be trusted here: {what}"), "");
        let token = self.sign("self-test", 1, Purpose::Access, now, now)?;
        self.check(&token, Purpose::Access, now).map_err(|error| wrong(&format!("{error}")))?;
        let forged = format!("{}AAAA", &token[..token.len() - 4]);
        if self.check(&token, Purpose::Refresh, now).is_ok() || self.check(&forged, Purpose::Access, now).is_ok() {
            return Err(wrong("one is accepted that should not be"));
        }
        Ok(())
    }

    /// A token for a user who showed the password at `since`.
    ///
    /// # Errors
    /// There is nothing to sign it with.
    pub fn sign(&self, user: &str, version: u64, purpose: Purpose, since: i64, now: i64) -> Result<String, Failure> {
        install();
        let failed = |error: String| Failure::new(Code::Failed, format!("cannot sign a token: {error}"), "");
        let newest = self.keys.first().ok_or_else(|| failed("tokens.json holds no secret".to_owned()))?;
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: purpose.audience().to_owned(),
            sub: user.to_owned(),
            ver: version,
            auth_time: since,
            iat: now,
            // Whatever is given for another token ends with the first one's time.
            exp: (now + purpose.seconds()).min(since + REFRESH_SECONDS),
        };
        let header = Header { kid: Some(newest.kid.clone()), ..Header::new(Algorithm::HS256) };
        encode(&header, &claims, &EncodingKey::from_secret(newest.secret.as_bytes()))
            .map_err(|error| failed(error.to_string()))
    }

    /// What a token says, if it is good.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, token: &str, purpose: Purpose, now: i64) -> Result<Claims, TokenError> {
        install();
        let header = decode_header(token)?;
        let secret = self.keys.iter().find(|secret| header.kid.as_deref() == Some(&secret.kid));
        let secret = secret.ok_or_else(|| TokenError::from(ErrorKind::InvalidSignature))?;
        let mut rules = Validation::new(Algorithm::HS256);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        rules.set_issuer(&[&self.issuer]);
        rules.set_audience(&[purpose.audience()]);
        // Judged here, by the clock that the caller gives.
        rules.validate_exp = false;
        let key = DecodingKey::from_secret(secret.secret.as_bytes());
        let claims = decode::<Claims>(token, &key, &rules)?.claims;
        let lives = claims.iat <= now + 60 && now < claims.exp && claims.exp - claims.iat <= purpose.seconds();
        if lives { Ok(claims) } else { Err(ErrorKind::ExpiredSignature.into()) }
    }
}

/// The one algorithm.
static PROVIDER: CryptoProvider =
    CryptoProvider { signer_factory: signer, verifier_factory: verifier, key_utils: KeyUtils::new_unimplemented() };

fn install() {
    static ONCE: Once = Once::new();
    // Where another was installed before, the proof at the start finds out whether it works.
    ONCE.call_once(|| {
        let _ = PROVIDER.install_default();
    });
}

struct Hs256(hmac::Key);

impl Hs256 {
    fn new(algorithm: Algorithm, secret: &[u8]) -> Result<Self, TokenError> {
        if algorithm != Algorithm::HS256 {
            return Err(ErrorKind::InvalidAlgorithm.into());
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, secret)))
    }
}

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, TokenError> {
    Ok(Box::new(Hs256::new(*algorithm, key.as_bytes())?))
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, TokenError> {
    Ok(Box::new(Hs256::new(*algorithm, key.try_get_as_bytes()?)?))
}

impl Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(hmac::sign(&self.0, message).as_ref().to_vec())
    }
}

impl Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], tag: &Vec<u8>) -> Result<(), signature::Error> {
        hmac::verify(&self.0, message, tag).map_err(|_| signature::Error::new())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::ids::DeviceId;
    use crate::volume::layout::Layout;

    const NOW: i64 = 1_800_000_000;

    /// A token with a header and claims of somebody's own, signed with the right secret.
    fn forged(secrets: &Secrets, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let key = hmac::Key::new(hmac::HMAC_SHA256, secrets.keys[0].secret.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes())))
    }

    #[test]
    fn secrets_that_sign_nothing_good_are_not_begun_with() {
        let home = tempfile::tempdir().unwrap();
        let layout = Layout { common: home.path().join("Common"), programs: home.path().join("Programs") };
        let mut client = Client::new(layout, DeviceId::new("d").unwrap());
        client.disk.make_folders(&client.layout.common).unwrap();
        let made = load(&mut client).unwrap();
        let path = client.layout.token_secrets();
        let broken = Secrets { keys: Vec::new(), ..made };
        security::write(&*client.disk, &mut client.names, &path, &broken).unwrap();
        let failure = load(&mut client).unwrap_err();
        assert!(failure.error.contains("cannot sign a token"), "{failure:?}");
    }

    #[test]
    fn only_what_was_signed_here_for_this_and_still_lives_is_good() {
        let secrets = Secrets::new("vol").unwrap();
        secrets.prove(NOW).unwrap();
        let good = secrets.sign("ada", 3, Purpose::Access, NOW, NOW).unwrap();
        let claims = secrets.check(&good, Purpose::Access, NOW + TOKEN_SECONDS - 1).unwrap();
        assert_eq!((claims.sub.as_str(), claims.ver), ("ada", 3));
        let kid = secrets.keys[0].kid.clone();
        let header = json!({"alg": "HS256", "typ": "JWT", "kid": kid});
        let claims = serde_json::to_value(&claims).unwrap();
        let with = |key: &str, value: Value| {
            let mut claims = claims.clone();
            claims[key] = value;
            forged(&secrets, &header, &claims)
        };
        let without = |key: &str| {
            let mut claims = claims.clone();
            claims.as_object_mut().unwrap().remove(key);
            forged(&secrets, &header, &claims)
        };
        assert!(secrets.check(&forged(&secrets, &header, &claims), Purpose::Access, NOW).is_ok());
        let other =
            Secrets { keys: vec![Secret { secret: "x".repeat(52), ..secrets.keys[0].clone() }], ..secrets.clone() };
        let [head, body, tag] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
        let unsigned = URL_SAFE_NO_PAD.encode(json!({"alg": "none", "typ": "JWT", "kid": kid}).to_string());
        for (what, token) in [
            ("empty", String::new()),
            ("no token", "a.b.c".to_owned()),
            ("another secret", other.sign("ada", 3, Purpose::Access, NOW, NOW).unwrap()),
            ("another body", format!("{head}.{}.{tag}", URL_SAFE_NO_PAD.encode(with("sub", json!("root"))))),
            ("no signature", format!("{head}.{body}.")),
            ("alg none", format!("{unsigned}.{body}.")),
            ("alg none, signed", forged(&secrets, &json!({"alg": "none", "kid": kid}), &claims)),
            ("alg HS512", forged(&secrets, &json!({"alg": "HS512", "kid": kid}), &claims)),
            ("alg RS256", forged(&secrets, &json!({"alg": "RS256", "kid": kid}), &claims)),
            ("no kid", forged(&secrets, &json!({"alg": "HS256"}), &claims)),
            ("another kid", forged(&secrets, &json!({"alg": "HS256", "kid": "x"}), &claims)),
            ("exp as text", with("exp", json!("9999999999"))),
            ("no exp", without("exp")),
            ("exp far away", with("exp", json!(NOW + 100 * TOKEN_SECONDS))),
            ("over", with("exp", json!(NOW))),
            ("from the future", with("iat", json!(NOW + 3_600))),
            ("another audience", with("aud", json!("else"))),
            ("no audience", without("aud")),
            ("another issuer", with("iss", json!("aios:else"))),
            ("no issuer", without("iss")),
            ("no subject", without("sub")),
            ("no version", without("ver")),
            ("for refresh", secrets.sign("ada", 3, Purpose::Refresh, NOW, NOW).unwrap()),
        ] {
            assert!(secrets.check(&token, Purpose::Access, NOW).is_err(), "{what} is accepted: {token}");
        }
    }
}
