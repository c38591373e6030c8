//! Tells webhooks over HTTP: a POST on a thread of its own, which lives no longer than its letter.
//!
//! Three tries of at most 5 s each, a pause between them; any answer but 2xx is a failed try. No redirect is followed, so that
//! what is told goes to nobody else, and no proxy is used. Who a `https` server is judged by are the certificates that
//! this machine trusts, or those in `SSL_CERT_FILE`; they are read when they are needed and not kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::crypto::ring;
use tokio::sync::Notify;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::{Answer, Letter, Notifier, receiver};

/// The most letters to one receiver that are on their way at once.
const TO_ONE: usize = 4;
/// The number of letters to all receivers from which on each has one at most.
const SHARED: usize = 16;
/// The most letters at all: each has a thread while it is on its way.
const MOST: usize = 64;
/// How long one try takes at most, from the name's look-up to the answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The pauses after the tries that failed; the last one is followed by none.
const PAUSES: [Option<Duration>; 3] = [Some(Duration::from_secs(1)), Some(Duration::from_secs(2)), None];

/// Tells webhooks over HTTP.
#[derive(Debug)]
pub struct WebNotifier {
    desk: Arc<Desk>,
    /// The number of letters on their way, by receiver.
    on_their_way: BTreeMap<String, usize>,
    /// The letters that wait for a thread.
    stalled: Vec<Letter>,
}

#[derive(Debug)]
struct Desk {
    wake: Arc<Notify>,
    tray: Mutex<Tray>,
    /// Told when the notifier goes: no pause is waited out any more.
    closes: Condvar,
}

#[derive(Debug, Default)]
struct Tray {
    /// With the receivers that they are of.
    answers: Vec<(String, Answer)>,
    closed: bool,
}

impl WebNotifier {
    /// One that has told nothing yet; `wake` is notified whenever there are answers to take.
    #[must_use]
    pub fn new(wake: Arc<Notify>) -> Self {
        let desk = Desk { wake, tray: Mutex::default(), closes: Condvar::new() };
        Self { desk: Arc::new(desk), on_their_way: BTreeMap::new(), stalled: Vec::new() }
    }
}

impl Notifier for WebNotifier {
    fn has_room(&self, url: &str) -> bool {
        let to_it = self.on_their_way.get(&receiver(url)).copied().unwrap_or(0);
        let to_all: usize = self.on_their_way.values().sum();
        to_it < TO_ONE && to_all < if to_it == 0 { MOST } else { SHARED }
    }

    fn tell(&mut self, letter: Letter) {
        *self.on_their_way.entry(receiver(&letter.url)).or_default() += 1;
        self.send(letter);
    }

    fn take_answers(&mut self) -> Vec<Answer> {
        for letter in std::mem::take(&mut self.stalled) {
            self.send(letter);
        }
        let answers = std::mem::take(&mut self.desk.tray().answers);
        let mut taken = Vec::with_capacity(answers.len());
        for (receiver, answer) in answers {
            if let Some(count) = self.on_their_way.get_mut(&receiver) {
                *count -= 1;
            }
            taken.push(answer);
        }
        self.on_their_way.retain(|_, count| *count > 0);
        taken
    }
}

impl WebNotifier {
    /// Sends a letter on its way; where there is no thread for it, with a later turn.
    fn send(&mut self, letter: Letter) {
        let (desk, mine) = (Arc::clone(&self.desk), letter.clone());
        let thread = std::thread::Builder::new().name("notify".to_owned());
        let started = thread.spawn(move || {
            let outcome = desk.tell(&mine);
            desk.answer(receiver(&mine.url), Answer { job: mine.job, news: mine.news, outcome });
        });
        if let Err(error) = started {
            tracing::warn!(job = %letter.job, %error, "no thread can be started for its webhook: it is tried again");
            self.stalled.push(letter);
        }
    }
}

impl Drop for WebNotifier {
    fn drop(&mut self) {
        self.desk.tray().closed = true;
        self.desk.closes.notify_all();
    }
}

impl Desk {
    fn tray(&self) -> MutexGuard<'_, Tray> {
        self.tray.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, receiver: String, answer: Answer) {
        self.tray().answers.push((receiver, answer));
        self.wake.notify_one();
    }

    fn tell(&self, letter: &Letter) -> Result<(), String> {
        let agent = agent(&letter.url, TIMEOUT)?;
        let mut last = String::new();
        for (tries, pause) in (1..).zip(PAUSES) {
            match post(&agent, letter) {
                Ok(()) => return Ok(()),
                Err(why) => {
                    let (job, run) = (&letter.job, &letter.news.run_id);
                    tracing::debug!(%job, %run, to = super::shown(&letter.url), tries, why, "not told yet");
                    last = why;
                }
            }
            let closed = pause.is_some_and(|pause| {
                let waited = self.closes.wait_timeout_while(self.tray(), pause, |tray| !tray.closed);
                waited.unwrap_or_else(PoisonError::into_inner).0.closed
            });
            if closed {
                return Err(format!("its device left; {last}"));
            }
        }
        Err(format!("{} tries, the last: {last}", PAUSES.len()))
    }
}

/// Who speaks with `url`, and for how long at most.
pub(super) fn agent(url: &str, timeout: Duration) -> Result<Agent, String> {
    let config = Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .max_idle_connections(0)
        .user_agent(concat!("orchestrator/", env!("CARGO_PKG_VERSION")));
    let is_secure = url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
    Ok(if is_secure { config.tls_config(trust()?) } else { config }.build().into())
}

/// Whom this machine trusts.
fn trust() -> Result<TlsConfig, String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(format!(
            "this machine's root certificates cannot be read: {why}; hint: install the package ca-certificates, or \
             set SSL_CERT_FILE"
        ));
    }
    let roots: Vec<_> = found.certs.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build())
}

/// One try. The client looks names up on threads of its own, and panics where there are none.
fn post(agent: &Agent, letter: &Letter) -> Result<(), String> {
    let post = || try_to_post(agent, letter);
    let posted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(post));
    posted.unwrap_or_else(|_| Err("this device is out of threads".to_owned()))
}

fn try_to_post(agent: &Agent, letter: &Letter) -> Result<(), String> {
    let request = agent.post(&letter.url).content_type("application/json");
    match request.send(letter.body.as_slice()) {
        Ok(response) if response.status().is_success() => Ok(()),
        Ok(response) if response.status().is_redirection() => {
            Err(format!("it answered {}, and no redirect is followed", response.status().as_u16()))
        }
        Ok(response) => Err(format!("it answered {}", response.status().as_u16())),
        Err(ureq::Error::Timeout(_)) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        // Its words may hold the URL.
        Err(ureq::Error::BadUri(_) | ureq::Error::Http(_)) => Err("its URL cannot be used".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
