//! Asks an orchestrator on another volume, by its HTTP API. It blocks: the caller has a thread for it.

use std::io::Read as _;
use std::time::Duration;

use super::web::agent;

/// The largest answer that is read, bytes.
const ANSWER: u64 = 4 << 20;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// `GET` or `POST`, as a body says.
    pub url: String,
    /// The key to show.
    pub key: Option<&'a str>,
    /// What is posted; `None`: a `GET`.
    pub body: Option<&'a [u8]>,
    /// Through whom it comes: who is asked so asks nobody else.
    pub through: Option<&'a str>,
    /// How long it may take in all.
    pub timeout: Duration,
}

/// An answer that did not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoAnswer {
    /// Why, in a sentence.
    pub why: String,
    /// Whether the question may have been read: then asking somebody else could do a thing twice.
    pub may_be_read: bool,
}

/// The status and the body of an answer.
///
/// # Errors
/// There is none.
pub fn ask(question: &Question<'_>) -> Result<(u16, Vec<u8>), NoAnswer> {
    let unsent = |why: String| NoAnswer { why, may_be_read: false };
    let agent = agent(&question.url, question.timeout).map_err(unsent)?;
    let bearer = question.key.map(|key| format!("Bearer {key}"));
    let headers = [("authorization", bearer.as_deref()), ("x-aios-forwarded", question.through)];
    let given = headers.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let answered = match question.body {
        None => given.fold(agent.get(&question.url), |request, (name, value)| request.header(name, value)).call(),
        Some(body) => {
            let request = agent.post(&question.url).header("content-type", "application/json");
            given.fold(request, |request, (name, value)| request.header(name, value)).send(body)
        }
    };
    let mut response =
        answered.map_err(|error| NoAnswer { may_be_read: may_be_read(&error), why: error.to_string() })?;
    let status = response.status().as_u16();
    let mut bytes = Vec::new();
    let read = response.body_mut().as_reader().take(ANSWER).read_to_end(&mut bytes);
    read.map_err(|error| NoAnswer { why: format!("the answer was cut off: {error}"), may_be_read: true })?;
    Ok((status, bytes))
}

/// Whether the other side may have read the question before this went wrong.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the list of errors grows with the crate: what is new may have been read"
)]
fn may_be_read(error: &ureq::Error) -> bool {
    use ureq::Error;
    match error {
        Error::HostNotFound | Error::ConnectionFailed | Error::BadUri(_) | Error::Tls(_) | Error::Rustls(_) => false,
        Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => false,
        Error::Io(error) => error.kind() != std::io::ErrorKind::ConnectionRefused,
        _ => true,
    }
}
