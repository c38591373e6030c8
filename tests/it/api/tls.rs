//! TLS: a certificate of its own, and another one without a restart.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use base64::Engine as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::super::volume::{Volume, pause};

/// Makes a certificate for `localhost`, and gives it as it is trusted.
fn make(volume: &Volume) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    // In one piece each, as a careful program would.
    let pem = |what: &str, der: &[u8]| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", lines.join("\n"))
    };
    let key = pem("PRIVATE KEY", &made.signing_key.serialize_der());
    for (name, text) in [("cert.pem", pem("CERTIFICATE", made.cert.der())), ("key.pem", key)] {
        let aside = volume.path("aside.pem");
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(aside, volume.path(name)).unwrap();
    }
    made.cert.der().clone()
}

/// Asks for the health of the service by TLS, and trusts only `certificate`.
fn ask(address: &str, certificate: &CertificateDer<'static>) -> Result<String, std::io::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address)?);
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn it_is_served_by_tls_and_a_new_certificate_is_taken_without_a_restart() {
    let mut volume = Volume::new();
    let first = make(&volume);
    let (cert, key) = (volume.path("cert.pem"), volume.path("key.pem"));
    let options = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let api = volume.serve("a", &options);
    let address = api.base.strip_prefix("https://").expect("by TLS").to_owned();
    let said = ask(&address, &first).unwrap();
    assert!(said.starts_with("HTTP/1.1 200") && said.contains("\"ok\""), "{said}");
    // In the clear nobody is answered.
    let mut plain = TcpStream::connect(&address).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut bytes = Vec::new();
    let _ = plain.read_to_end(&mut bytes);
    assert!(!String::from_utf8_lossy(&bytes).contains("200 OK"));
    let second = make(&volume);
    while ask(&address, &second).is_err() {
        pause();
    }
    assert!(ask(&address, &first).is_err(), "the old one is not shown any more");
    // One that is no good changes nothing.
    std::fs::write(&cert, "nonsense").unwrap();
    volume.wait("it is said", |volume| volume.said("a").contains("stays in use"));
    ask(&address, &second).unwrap();
}

#[test]
fn beyond_this_machine_tls_is_enough_and_who_only_connects_takes_no_place_for_long() {
    let mut volume = Volume::new();
    let certificate = make(&volume);
    let (cert, key) = (volume.path("cert.pem"), volume.path("key.pem"));
    let tls = ["--http", "0.0.0.0:0", "--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    volume.start("a", &tls);
    volume.wait("it serves", |volume| volume.said("a").contains("HTTP API url=https://0.0.0.0:"));
    let said = volume.said("a");
    let port = said.split("url=https://0.0.0.0:").nth(1).unwrap().split_whitespace().next().unwrap();
    let address = format!("127.0.0.1:{}", port.trim_end_matches('/'));
    let silent: Vec<TcpStream> = (0..900).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let said = ask(&address, &certificate).unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    let open = std::fs::read_dir(format!("/proc/{}/fd", volume.devices["a"].id())).unwrap().count();
    assert!(open < 600, "{open} descriptors are open");
    drop(silent);
}
