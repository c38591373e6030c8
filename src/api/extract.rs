//! What handlers take: bodies, queries and paths, refused with a problem document that says what was found.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use tokio::time::timeout;

use super::problem::{Kind, Problem};
use crate::model::message::quoted;
use crate::model::time::{DURATION_RULE, parse_duration};

/// How long a whole body may take to come.
const WHOLE: Duration = Duration::from_secs(30);

/// A JSON body; an empty one is `{}`.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).map(str::to_owned);
        let whole = timeout(WHOLE, Bytes::from_request(request, state)).await;
        let bytes = whole
            .map_err(|_| of_body(StatusCode::REQUEST_TIMEOUT))?
            .map_err(|rejection| of_body(rejection.status()))?;
        if bytes.is_empty() {
            return read(b"{}").map(Self);
        }
        let is_json = kind.as_deref().is_some_and(|kind| {
            let kind = kind.split(';').next().unwrap_or_default().trim();
            let kind = kind.to_ascii_lowercase();
            kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
        });
        if !is_json {
            let found = kind.unwrap_or_else(|| "none".to_owned());
            let detail = format!("found the content type {found:?}, expected application/json");
            return Err(Problem::new(Kind::UnsupportedMediaType, detail, "send JSON, and say so"));
        }
        read(&bytes).map(Self)
    }
}

/// What is wrong with a body that could not be read.
fn of_body(status: StatusCode) -> Problem {
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        return Problem::new(Kind::TooLarge, "the body is larger than 1 MiB", "send less");
    }
    if status == StatusCode::REQUEST_TIMEOUT {
        return Problem::new(Kind::TimedOut, "the body did not come in time", "send it at once");
    }
    Problem::invalid("the body could not be read to its end", "send it again")
}

/// Reads an object; `null` is one without keys. An array is none, although a struct could be read from it.
fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let bytes = if bytes.trim_ascii() == b"null" { b"{}" } else { bytes };
    if bytes.trim_ascii_start().first().is_some_and(|first| *first == b'[') {
        return Err(Problem::invalid(
            "the body is a JSON array, expected an object",
            "see /api/docs for what is expected",
        ));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let read = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { String::new() } else { format!(" at `{path}`") };
        Problem::invalid(
            format!("the body cannot be taken{place}: {}", error.inner()),
            "see /api/docs for what is expected",
        )
    })?;
    reader
        .end()
        .map_err(|error| Problem::invalid(format!("the body cannot be taken: {error}"), "send one JSON object"))?;
    Ok(read)
}

/// A form.
pub(super) struct Form<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Form<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let whole = timeout(WHOLE, axum::Form::<T>::from_request(request, state)).await;
        match whole.map_err(|_| of_body(StatusCode::REQUEST_TIMEOUT))? {
            Ok(axum::Form(form)) => Ok(Self(form)),
            Err(rejection) => Err(match rejection.status() {
                StatusCode::UNSUPPORTED_MEDIA_TYPE => Problem::new(
                    Kind::UnsupportedMediaType,
                    "expected the content type application/x-www-form-urlencoded",
                    "send a form, and say so",
                ),
                StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => of_body(rejection.status()),
                _ => Problem::invalid(rejection.body_text(), "see /api/docs for what is expected"),
            }),
        }
    }
}

/// What stands behind the `?`.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(asked)) => Ok(Self(asked)),
            Err(rejection) => Err(Problem::invalid(rejection.body_text(), "see /api/docs for what can be asked")),
        }
    }
}

/// What stands in the path.
pub(super) struct Named<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(named)) => Ok(Self(named)),
            // A name that is none names nothing.
            Err(rejection) => Err(Problem::new(Kind::NotFound, rejection.body_text(), "names are UTF-8")),
        }
    }
}

/// Reads a duration such as `30s`, where there is one.
pub(super) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
    let span = parse_duration(&text);
    let wrong = || serde::de::Error::custom(format!("found the duration {text:?}, expected {DURATION_RULE}"));
    span.map(Some).ok_or_else(wrong)
}

/// Refuses a word that is none of those there are.
pub(super) fn one_of(what: &str, found: Option<&str>, words: &[&str]) -> Result<(), Problem> {
    let Some(found) = found.filter(|found| !words.contains(found)) else { return Ok(()) };
    let detail = format!("found the {what} {}, expected one of {}", quoted(found), words.join(", "));
    Err(Problem::invalid(detail, "leave it out for all"))
}

/// Reads a time, where there is one.
pub(super) fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
    let read = DateTime::parse_from_rfc3339(&text).ok().filter(|_| text.is_ascii());
    let wrong = || {
        let found = quoted(&text);
        serde::de::Error::custom(format!("found {found}, expected an RFC 3339 time such as 2026-11-21T09:00:00Z"))
    };
    read.map(|time| Some(time.to_utc())).ok_or_else(wrong)
}

/// Reads a switch: `?follow` and `?follow=true` are on, `?follow=false` is off.
pub(super) fn switch<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    let text = String::deserialize(from)?;
    match text.as_str() {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        other => Err(serde::de::Error::custom(format!("found {other:?}, expected true or false"))),
    }
}
