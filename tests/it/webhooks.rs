//! Webhooks: what they hear, from whom, and that nobody waits for them. The server is a few lines here.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::volume::{Volume, files, read};

/// How a request is answered.
#[derive(Debug, Clone, Copy)]
enum Reply {
    Status(u16),
    /// Not at all, and the connection stays open.
    Never,
}

/// A request as it came.
#[derive(Debug, Clone)]
struct Heard {
    /// The first line and the headers, in small letters.
    head: String,
    body: Value,
}

/// A server on a port of its own; the first replies are given, the rest is 204.
struct Server {
    port: u16,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Server {
    fn open(replies: &[Reply]) -> Self {
        Self::over(replies, |stream| Box::new(stream))
    }

    /// `wrap` makes of a connection what is spoken over.
    fn over(replies: &[Reply], wrap: impl Fn(TcpStream) -> Box<dyn Stream> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, heard) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Vec::new())));
        let (replies, wrap, tray) = (replies.to_vec(), Arc::new(wrap), Arc::clone(&heard));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (replies, wrap, tray) = (replies.clone(), Arc::clone(&wrap), Arc::clone(&tray));
                std::thread::spawn(move || serve(wrap(stream.unwrap()), &replies, &tray));
            }
        });
        Self { port, heard }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook?key=s3cret", self.port)
    }

    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    fn events(&self) -> Vec<String> {
        self.heard().iter().map(|heard| heard.body["event"].as_str().unwrap().to_owned()).collect()
    }
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

fn serve(stream: Box<dyn Stream>, replies: &[Reply], tray: &Mutex<Vec<Heard>>) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    // Who gives up in the middle, or does not trust this server, has said nothing.
    while !head.ends_with("\r\n\r\n") {
        match reader.read_line(&mut head) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
    head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    let mut body = vec![0; length.parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    let mut tray = tray.lock().unwrap();
    let reply = replies.get(tray.len()).copied().unwrap_or(Reply::Status(204));
    tray.push(Heard { head, body: serde_json::from_slice(&body).unwrap_or_default() });
    drop(tray);
    match reply {
        Reply::Status(status) => {
            let text = format!("HTTP/1.1 {status} x\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n");
            reader.get_mut().write_all(text.as_bytes()).unwrap();
            reader.get_mut().flush().unwrap();
        }
        Reply::Never => loop {
            std::thread::park();
        },
    }
}

/// A job that ends with the exit code it is given, and tells this server.
fn job(volume: &Volume, name: &str, url: &str) {
    volume.script("end.sh", "exit \"$1\"");
    volume.job(name, &format!("file = \"end.sh\"\nnotify = \"{url}\"\n"));
}

/// Runs the job once, to its end.
fn run(volume: &Volume, job: &str, code: u32) {
    let before = volume.finals(job);
    volume.next_instant();
    volume.drop_trigger(&format!("{job}{before}.json"), &format!("{{\"job\": \"{job}\", \"args\": [\"{code}\"]}}"));
    // What is to be told is in the state, behind the result.
    volume.wait("its end", |volume| volume.finals(job) == before + 1 && volume.holder(job).is_none());
}

/// Whether nothing is to be told any more.
fn is_told(volume: &Volume, job: &str) -> bool {
    volume.state().is_some_and(|state| state["jobs"][job]["news"].is_null() && state["jobs"][job].is_object())
}

fn device_log(volume: &Volume) -> String {
    let logs = files(&volume.common("Logs"));
    let own = logs.iter().filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("orchestrator."));
    own.map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

/// The line that says what could not be told. Lines reach the log a little later than their devices go on.
fn given_up(volume: &Volume) -> String {
    volume.wait_for("the warning", |volume| {
        device_log(volume).lines().find(|line| line.contains("given up")).map(str::to_owned)
    })
}

#[test]
fn a_first_failure_and_a_recovery_are_told_once() {
    let mut volume = Volume::new();
    let server = Server::open(&[]);
    let url = server.url().replace("http://", "http://me:pass@");
    job(&volume, "backup", &url);
    volume.start("a", &[]);
    let mut told = Vec::new();
    for (code, event) in [(0, ""), (1, "failed"), (1, ""), (0, "recovered"), (0, ""), (1, "failed")] {
        run(&volume, "backup", code);
        if !event.is_empty() {
            told.push(event);
        }
        volume.wait("it is told", |volume| is_told(volume, "backup") && server.heard().len() == told.len());
        assert_eq!(server.events(), told);
    }
    let heard = &server.heard()[0];
    assert!(heard.head.starts_with("post /hook?key=s3cret http/1.1\r\n"), "{}", heard.head);
    for header in [
        "content-type: application/json\r\n",
        &format!("user-agent: orchestrator/{}\r\n", env!("CARGO_PKG_VERSION")),
        "authorization: basic bwu6cgfzcw==\r\n",
    ] {
        assert!(heard.head.contains(header), "{header} in {}", heard.head);
    }
    // The result as it stands in Results, and the event.
    let mut body = heard.body.clone();
    body.as_object_mut().unwrap().remove("event");
    let name = format!("backup.{}.1.json", body["run_id"].as_str().unwrap());
    let stands = files(&volume.common("Results")).into_iter().find(|path| path.ends_with(&name)).unwrap();
    assert_eq!(body, read(&stands).unwrap());
    let log = device_log(&volume);
    assert!(!log.contains("s3cret") && !log.contains("pass@"), "the log says what may be secret:\n{log}");
}

#[test]
fn what_is_not_heard_is_told_again_and_at_last_given_up() {
    let mut volume = Volume::new();
    let replies = [500, 500, 200, 302, 500, 404].map(Reply::Status);
    let server = Server::open(&replies);
    job(&volume, "backup", &server.url());
    volume.start("a", &[]);
    run(&volume, "backup", 1);
    volume.wait("it is told", |volume| is_told(volume, "backup") && server.heard().len() >= 3);
    assert_eq!(server.events(), ["failed"; 3]);
    // Nobody is sent elsewhere, and three tries are all.
    run(&volume, "backup", 0);
    volume.wait("it is given up", |volume| is_told(volume, "backup") && server.heard().len() >= 6);
    let heard = server.heard();
    assert_eq!(server.events()[3..], ["recovered"; 3]);
    assert!(heard.iter().all(|heard| heard.head.starts_with("post /hook")), "{heard:?}");
    let warning = given_up(&volume);
    for part in ["\"WARN\"", "\"job\":\"backup\"", "http://127.0.0.1:", "3 tries, the last: it answered 404"] {
        assert!(warning.contains(part), "{part} in {warning}");
    }
    assert!(!warning.contains("s3cret"), "{warning}");
    // What was given up counts as told.
    run(&volume, "backup", 1);
    volume.wait("the next is told", |volume| is_told(volume, "backup") && server.heard().len() >= 7);
    assert_eq!(server.events()[6..], ["failed"]);
}

#[test]
fn a_webhook_that_does_not_answer_holds_up_nobody_and_is_told_by_the_next_life() {
    let mut volume = Volume::new();
    let silent = Server::open(&[Reply::Never]);
    let other = Server::open(&[]);
    job(&volume, "slow", &silent.url());
    job(&volume, "quick", &other.url());
    volume.start("a", &["--stop-grace", "100ms"]);
    run(&volume, "slow", 1);
    volume.wait("it is on its way", |_| silent.heard().len() == 1);
    run(&volume, "slow", 1);
    run(&volume, "quick", 1);
    volume.wait("the other is told", |volume| is_told(volume, "quick"));
    assert_eq!((silent.events().len(), other.events()), (1, vec!["failed".to_owned()]));
    assert!(!is_told(&volume, "slow"));
    // Nor does it hold up a device that leaves: what is not told by then is told by its next life.
    volume.signal("a", rustix::process::Signal::TERM);
    assert_eq!(volume.ended("a"), Some(0));
    assert!(!is_told(&volume, "slow"));
    volume.start("a", &[]);
    volume.wait("it is told", |volume| is_told(volume, "slow"));
    let heard = silent.heard();
    assert_eq!(heard[0].body, heard[1].body);
}

#[test]
fn a_receiver_that_does_not_answer_delays_only_its_own_jobs() {
    let mut volume = Volume::new();
    let silent = Server::open(&[Reply::Never; 200]);
    let other = Server::open(&[]);
    let dead: Vec<String> = (0..30).map(|number| format!("dead{number}")).collect();
    for name in &dead {
        job(&volume, name, &silent.url());
    }
    job(&volume, "good", &other.url());
    volume.start("a", &["--slots", "30"]);
    for name in &dead {
        volume.drop_trigger(&format!("{name}.json"), &format!("{{\"job\": \"{name}\", \"args\": [\"1\"]}}"));
    }
    volume.wait("all have failed", |volume| dead.iter().all(|name| volume.finals(name) == 1));
    run(&volume, "good", 1);
    volume.wait("it is told", |volume| is_told(volume, "good"));
    // The others take a minute and more, a few at a time.
    assert!(dead.iter().any(|name| !is_told(&volume, name)));
}

#[test]
fn what_a_device_died_over_is_told_by_another() {
    let mut volume = Volume::new();
    let server = Server::open(&[Reply::Never]);
    job(&volume, "backup", &server.url());
    volume.start("a", &[]);
    run(&volume, "backup", 1);
    volume.wait("a tells", |_| server.heard().len() == 1);
    volume.kill("a");
    volume.start("b", &[]);
    volume.wait("b has told", |volume| is_told(volume, "backup"));
    let heard = server.heard();
    assert_eq!((heard.len(), &heard[0].body), (2, &heard[1].body));
    assert!(device_log(&volume).lines().any(|line| line.contains("webhook is told")));
}

#[test]
fn a_daemon_that_fails_again_and_again_is_told_of_once() {
    let mut volume = Volume::new();
    let server = Server::open(&[]);
    volume.script("daemon.sh", "exit \"$(cat code)\"");
    let path = volume.path("Programs/code");
    let code = |code: &str| std::fs::write(&path, code).unwrap();
    code("1");
    let text = format!(
        "type = \"always\"\nfile = \"daemon.sh\"\nbackoff = \"10ms\"\nbackoff_max = \"10ms\"\nnotify = \"{}\"\n",
        server.url()
    );
    volume.job("daemon", &text);
    volume.start("a", &[]);
    volume.wait("some ends", |volume| volume.results("daemon").len() > 5 && is_told(volume, "daemon"));
    assert_eq!(server.events(), ["failed"]);
    code("0");
    volume.wait("it recovers", |volume| server.events().len() == 2 && is_told(volume, "daemon"));
    assert_eq!(server.events(), ["failed", "recovered"]);
}

#[test]
fn a_server_is_told_over_tls_only_if_its_certificate_is_trusted() {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificate = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (trusted, unknown) = (certificate(), certificate());
    let mut volume = Volume::new();
    let server = |made: &rcgen::CertifiedKey<rcgen::KeyPair>| {
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let chain = vec![CertificateDer::from(made.cert.der().to_vec())];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
        Server::over(&[], move |stream| {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            Box::new(rustls::StreamOwned::new(connection, stream))
        })
    };
    let (good, bad) = (server(&trusted), server(&unknown));
    let roots = volume.path("roots.pem");
    std::fs::write(&roots, pem(trusted.cert.der())).unwrap();
    volume.env.push(("SSL_CERT_FILE", roots));
    for (name, server) in [("good", &good), ("bad", &bad)] {
        job(&volume, name, &format!("https://localhost:{}/", server.port));
    }
    volume.start("a", &[]);
    run(&volume, "good", 1);
    run(&volume, "bad", 1);
    volume.wait("both are over", |volume| is_told(volume, "good") && is_told(volume, "bad"));
    assert_eq!((good.events(), bad.events()), (vec!["failed".to_owned()], Vec::new()));
    let warning = given_up(&volume);
    assert!(warning.contains("\"job\":\"bad\"") && warning.to_lowercase().contains("certificate"), "{warning}");
}

fn pem(der: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters = |three: &[u8]| -> String {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        (0..4)
            .map(|at| if at > three.len() { '=' } else { char::from(LETTERS[(bits >> (18 - 6 * at)) as usize & 63]) })
            .collect()
    };
    let text: Vec<String> = der.chunks(48).map(|line| line.chunks(3).map(letters).collect()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", text.join("\n"))
}
