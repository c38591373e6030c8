//! Orchestrators on other volumes, which commands may be sent to as well.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::security::{all, locked, random};
use super::{Client, Code, Failure};
use crate::model::message::quoted;
use crate::model::time::utc;
use crate::volume::security;

/// How many servers there may be.
const SERVERS: usize = 100;
/// How long an address may be, characters.
const URL: usize = 500;

/// An orchestrator on another volume, as `Common/Security/servers/<id>.json` keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// 1.
    pub schema: u32,
    /// Its id here.
    pub id: String,
    /// Where its API is: `https://host:port`.
    pub url: String,
    /// The key it knows this volume by. It must be sent, so it is kept as it is.
    pub key: String,
    /// Since when it is known.
    #[serde(with = "utc")]
    pub registered_at: DateTime<Utc>,
}

/// Reads the address of a server: `http` or `https`, a host, perhaps a port, and nothing behind it.
///
/// # Errors
/// Exit code 2.
pub fn read_url(text: &str) -> Result<String, Failure> {
    let wrong = |why: &str| {
        let error = format!("the url {} {why}", quoted(text));
        Failure::new(Code::Usage, error, "give one such as https://other-host:8080")
    };
    if text.chars().count() > URL {
        return Err(wrong("is too long"));
    }
    let uri: ureq::http::Uri = text.parse().map_err(|_| wrong("is none"))?;
    let scheme = uri.scheme_str().unwrap_or_default();
    if !matches!(scheme, "http" | "https") || uri.host().is_none_or(str::is_empty) {
        return Err(wrong("has no scheme http or https and host"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(wrong("has something behind the host"));
    }
    let authority = uri.authority().map(ureq::http::uri::Authority::as_str).unwrap_or_default();
    if authority.contains('@') {
        return Err(wrong("has a name before the host"));
    }
    let host = uri.host().unwrap_or_default();
    let is_name = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte));
    let port = authority.strip_prefix(host).unwrap_or_default();
    if !is_name || !(port.is_empty() || uri.port_u16().is_some_and(|number| port == format!(":{number}"))) {
        return Err(wrong("has no host and port as they are written"));
    }
    Ok(format!("{scheme}://{authority}"))
}

/// Whether an address that was read is this machine's own.
#[must_use]
pub fn is_loopback(url: &str) -> bool {
    let host = url
        .parse()
        .ok()
        .and_then(|uri: ureq::http::Uri| uri.host().map(|host| host.trim_matches(['[', ']']).to_owned()));
    host.is_some_and(|host| {
        host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
    })
}

/// All servers, by the time they were registered.
///
/// # Errors
/// Exit code 4.
pub fn list(client: &Client) -> Result<Vec<Record>, Failure> {
    let mut servers: Vec<Record> = all(client, &client.layout.servers())?;
    servers.sort_by(|a, b| (a.registered_at, &a.id).cmp(&(b.registered_at, &b.id)));
    Ok(servers)
}

/// Notes a server.
///
/// # Errors
/// Exit code 2: it is noted already, or cannot be meant.
pub fn register(client: &mut Client, url: &str, key: &str) -> Result<Record, Failure> {
    let url = read_url(url)?;
    if key.is_empty() || key.len() > 200 || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::new(Code::Usage, "the key is none", "give a key that the other orchestrator has made"));
    }
    let _lock = locked(client)?;
    let known = list(client)?;
    if let Some(same) = known.iter().find(|known| known.url == url) {
        let error = format!("{url} is the server {} already", same.id);
        return Err(Failure::new(Code::Exists, error, "delete that one first to give it another key"));
    }
    if known.len() >= SERVERS {
        return Err(Failure::new(Code::Failed, format!("there are {SERVERS} servers"), "delete one"));
    }
    let id = hex::encode(random::<6>()?);
    let record = Record { schema: 1, id, url, key: key.to_owned(), registered_at: client.now().wall };
    let path = client.layout.servers().join(format!("{}.json", record.id));
    security::write(&*client.disk, &mut client.names, &path, &record)?;
    Ok(record)
}

/// Forgets a server.
///
/// # Errors
/// Exit code 3: nobody knows it.
pub fn forget(client: &Client, id: &str) -> Result<(), Failure> {
    let is_id = id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let path = client.layout.servers().join(format!("{id}.json"));
    if is_id && security::remove(&*client.disk, &path)? {
        return Ok(());
    }
    let error = format!("there is no server {}", quoted(id));
    Err(Failure::new(Code::NotFound, error, "`GET /servers` lists the servers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_scheme_a_host_and_no_more() {
        for (text, read) in [
            ("http://a:8080", "http://a:8080"),
            ("https://a.lan/", "https://a.lan"),
            ("http://[::1]:80", "http://[::1]:80"),
        ] {
            assert_eq!(read_url(text).unwrap(), read);
        }
        for bad in [
            "",
            "a",
            "a:80",
            "ftp://a",
            "http://",
            "http://a/b",
            "http://a?b",
            "http://u:p@a",
            "http://a:1*",
            "http://a:",
            "http://a:99999",
            "http://a_b",
            "file:///etc/passwd",
        ] {
            assert_eq!(read_url(bad).unwrap_err().code, Code::Usage, "{bad}");
        }
    }
}
