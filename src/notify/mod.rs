//! Telling webhooks: the port, and [`web`], which tells them over HTTP.
//!
//! This room promises that telling holds nothing up: [`Notifier::tell`] returns at once, each letter has an end in bounded
//! time, and exactly one [`Answer`] says which. It remembers nothing: what is to be told stands in the state.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;

use crate::model::ids::JobName;
use crate::model::news::{Event, News};

pub mod peer;
pub mod web;

/// Everything that one telling needs; nothing is looked up later.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Whose webhook it is.
    pub job: JobName,
    /// What is told.
    pub news: News,
    /// To whom.
    pub url: String,
    /// The words: see [`body`].
    pub body: Vec<u8>,
}

/// The end of one telling: sent exactly once for each [`Letter`].
#[derive(Debug, Clone)]
pub struct Answer {
    /// Whose webhook it was.
    pub job: JobName,
    /// What was told.
    pub news: News,
    /// Why it was given up, if it was.
    pub outcome: Result<(), String>,
}

/// The port: whatever tells webhooks. One owner calls it; nothing blocks.
pub trait Notifier {
    /// Returns whether another letter to this URL may be on its way now. A receiver that does not answer takes no room from others.
    fn has_room(&self, url: &str) -> bool;

    /// Begins to tell.
    fn tell(&mut self, letter: Letter);

    /// The ends since the last call, oldest first.
    fn take_answers(&mut self) -> Vec<Answer>;
}

/// A result as it stands in `Results/`, byte for byte, with the event before its own keys. `None`: it is no whole object.
#[must_use]
pub fn body(result: &[u8], event: Event) -> Option<Vec<u8>> {
    serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(result).ok()?;
    let keys = result.trim_ascii().strip_prefix(b"{")?;
    let mut body = format!("{{\"event\":\"{}\",", event.as_str()).into_bytes();
    body.extend_from_slice(keys);
    Some(body)
}

/// The receiver behind a URL: scheme, host and port.
fn receiver(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}").to_ascii_lowercase()
}

/// A webhook for people's eyes: its host. Path, query and user may be all the secret that it takes.
#[must_use]
pub fn shown(url: &str) -> String {
    receiver(url) + "/…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_the_result_and_the_event() {
        let body = body(b"{\"schema\":1,\"result\":{\"a\":1e2}}\n", Event::Recovered).unwrap();
        assert_eq!(body, b"{\"event\":\"recovered\",\"schema\":1,\"result\":{\"a\":1e2}}");
        for damaged in [&b"[]"[..], b"", b"{\"schema\":1,\"res", b"{} {}"] {
            assert_eq!(super::body(damaged, Event::Failed), None);
        }
    }

    #[test]
    fn what_may_be_secret_is_not_shown() {
        for (url, host) in [
            ("https://hooks.example.org/services/T0/B0/secret?token=x", "https://hooks.example.org/…"),
            ("http://user:p@ss@10.0.0.1:8080?x=y", "http://10.0.0.1:8080/…"),
            ("http://[::1]:80#a@b", "http://[::1]:80/…"),
        ] {
            assert_eq!(shown(url), host);
        }
    }
}
