//! Errors as RFC 9457 problem documents: a stable type, what was wrong, and what to do.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::client::{Code, Failure};

/// What kind of problem it is. The word of each is part of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Invalid,
    Unauthenticated,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    Conflict,
    TooLarge,
    RangeNotSatisfiable,
    UnsupportedMediaType,
    TooManyRequests,
    TimedOut,
    Volume,
    Server,
    Internal,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not-found",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::Conflict => "conflict",
            Self::TooLarge => "too-large",
            Self::RangeNotSatisfiable => "range-not-satisfiable",
            Self::UnsupportedMediaType => "unsupported-media-type",
            Self::TooManyRequests => "too-many-requests",
            Self::TimedOut => "timed-out",
            Self::Volume => "volume-unusable",
            Self::Server => "server-unavailable",
            Self::Internal => "internal",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Invalid => "The request cannot be meant",
            Self::Unauthenticated => "Nobody is known by this key or token",
            Self::Forbidden => "The role does not allow this",
            Self::NotFound => "There is no such thing, or it is not yours",
            Self::MethodNotAllowed => "The path does not know this method",
            Self::Conflict => "It cannot be done as things are",
            Self::TooLarge => "The request is too large",
            Self::RangeNotSatisfiable => "There is no such piece",
            Self::UnsupportedMediaType => "The body is of a type that is not read here",
            Self::TooManyRequests => "Too many requests",
            Self::TimedOut => "It took too long",
            Self::Volume => "The shared folder cannot be used",
            Self::Server => "Another server does not do it",
            Self::Internal => "Something is wrong here",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::Volume => StatusCode::SERVICE_UNAVAILABLE,
            Self::Server => StatusCode::BAD_GATEWAY,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// What went wrong with a request.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    kind: Kind,
    detail: String,
    hint: String,
    /// After how many seconds another try makes sense.
    retry_after: Option<u64>,
}

/// A problem as it is sent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Document {
    /// `urn:aios:problem:` and a word that stays.
    #[serde(rename = "type")]
    kind: String,
    /// The same for people.
    title: &'static str,
    /// The status of the answer.
    status: u16,
    /// What was wrong with this request: found and expected.
    detail: String,
    /// What to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    hint: String,
}

impl Problem {
    /// A problem of this kind.
    pub(super) fn new(kind: Kind, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), hint: hint.into(), retry_after: None }
    }

    /// The request cannot be meant.
    pub(super) fn invalid(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, detail, hint)
    }

    /// Too many requests; another makes sense after so many seconds.
    pub(super) fn too_many(detail: impl Into<String>, seconds: u64) -> Self {
        let hint = format!("try again in {seconds} s");
        Self { retry_after: Some(seconds), ..Self::new(Kind::TooManyRequests, detail, hint) }
    }

    /// What it is about.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// The problem as it is sent.
    pub(super) fn document(&self) -> Document {
        Document {
            kind: format!("urn:aios:problem:{}", self.kind.word()),
            title: self.kind.title(),
            status: self.kind.status().as_u16(),
            detail: self.detail.clone(),
            hint: self.hint.clone(),
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let kind = match failure.code {
            Code::Failed | Code::InUse | Code::Exists | Code::Rejected => Kind::Conflict,
            Code::Usage => Kind::Invalid,
            Code::NotFound => Kind::NotFound,
            Code::Volume => Kind::Volume,
            Code::TimedOut => Kind::TimedOut,
            Code::Done | Code::Program(_) => Kind::Internal,
        };
        Self::new(kind, failure.error, failure.hint)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.kind.status(), Json(self.document())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.kind == Kind::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"aios\""));
        }
        response
    }
}
