//! The HTTP API (D1, D2): cached reads against an empty handler, and a trigger over HTTP against one by file.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::clock;
use crate::device::Side;
use crate::report::median;
use crate::rounds::Setting;
use crate::stage::Stage;
use crate::volume::{Job, Volume};

/// How many jobs a list names.
const JOBS: usize = 100;
/// How many callers ask at once, each on a connection that it keeps.
const CALLERS: usize = 4;
/// How long they ask.
const SPAN: Duration = Duration::from_millis(800);
/// How many triggers a round drops, and how long the device is left alone before each.
const TRIGGERS: u64 = 60;
const GAP: Duration = Duration::from_millis(12);
/// How long a device may take to serve.
const PATIENCE: Duration = Duration::from_secs(10);

/// A device with an API; killed when dropped.
struct Served {
    child: Child,
    address: String,
    key: String,
}

impl Served {
    fn start(volume: &Volume) -> Outcome<Self> {
        let log = volume.root().join("served.log");
        let output = File::create(&log)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_orchestrator"));
        command.arg("run").arg("--common").arg(volume.common()).arg("--programs").arg(volume.programs());
        command.args(["--device-id", "bench", "--http", "127.0.0.1:0", "--http-rate", "0", "--docker-host", "none"]);
        let child = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()?;
        let deadline = Instant::now() + PATIENCE;
        let mut served = Self { child, address: String::new(), key: String::new() };
        while served.address.is_empty() || served.key.is_empty() {
            let said = std::fs::read_to_string(&log)?;
            let word = |before: &str| said.split(before).nth(1)?.split_whitespace().next().map(str::to_owned);
            served.address = word("url=http://").unwrap_or_default();
            served.key = word("shown this once:").unwrap_or_default();
            if Instant::now() > deadline {
                return Err(format!("no API after {PATIENCE:?}:\n{said}").into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(served)
    }

    fn head(&self, method: &str, path: &str, more: &str) -> String {
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n{more}\r\n", self.key)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Both fail only if it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One caller on a connection that is kept. It does as little as it can: what it costs is counted as the server's.
struct Asker {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Asker {
    async fn connect(address: &str) -> Outcome<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 256 << 10] })
    }

    /// Asks once, and gives the status.
    async fn ask(&mut self, request: &str) -> Outcome<u16> {
        self.stream.write_all(request.as_bytes()).await?;
        let mut there = 0;
        let mut whole = None;
        loop {
            let read = self.stream.read(&mut self.buffer[there..]).await?;
            if read == 0 {
                return Err("the connection was closed, or the answer is too long".into());
            }
            there += read;
            if whole.is_none() {
                whole = length(&self.buffer[..there])?;
            }
            if whole.is_some_and(|whole| there >= whole) {
                // `HTTP/1.1 200`.
                return Ok(std::str::from_utf8(&self.buffer[9..12])?.parse()?);
            }
        }
    }
}

/// How long the whole answer is, if its head is there.
fn length(answer: &[u8]) -> Outcome<Option<usize>> {
    const NAME: &[u8] = b"content-length:";
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let mut lines = answer[..end].split(|byte| *byte == b'\n');
    let value = lines.find_map(|line| line.get(..NAME.len())?.eq_ignore_ascii_case(NAME).then(|| &line[NAME.len()..]));
    let length: usize = std::str::from_utf8(value.ok_or("no length")?)?.trim().parse()?;
    Ok(Some(end + 4 + length))
}

/// A thread's own runtime.
fn runtime() -> Outcome<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Requests a second, by several callers at once: all on one thread, which leaves the server its processor, or each on its own,
/// which asks faster. The better of the two counts.
fn rate(address: &str, request: &str) -> Outcome<f64> {
    Ok(load(address, request, 1)?.max(load(address, request, CALLERS)?))
}

/// The same by so many threads.
fn load(address: &str, request: &str, threads: usize) -> Outcome<f64> {
    let count = || async {
        let mut asker = Asker::connect(address).await?;
        let mut count = 0;
        let begun = Instant::now();
        while begun.elapsed() < SPAN {
            let status = asker.ask(request).await?;
            if status != 200 {
                return Err(format!("answered {status}").into());
            }
            count += 1;
        }
        Ok(count)
    };
    let thread = || -> Result<u32, String> {
        let asked = || -> Outcome<u32> {
            let counts: Vec<Outcome<u32>> = runtime()?.block_on(join_all((0..CALLERS / threads).map(|_| count())));
            Ok(counts.into_iter().collect::<Outcome<Vec<u32>>>()?.iter().sum())
        };
        asked().map_err(|error| error.to_string())
    };
    let counts: Result<Vec<u32>, String> = thread::scope(|scope| {
        let asking: Vec<_> = (0..threads).map(|_| scope.spawn(thread)).collect();
        asking.into_iter().map(|thread| thread.join().map_err(|_| "a caller died".to_owned())?).collect()
    });
    Ok(f64::from(counts?.iter().sum::<u32>()) / SPAN.as_secs_f64())
}

/// D1: requests a second; the floor is an empty handler of the same framework.
pub(crate) fn reads(setting: Setting<'_>, side: Side) -> Outcome<f64> {
    if setting.self_check || side == Side::Floor {
        return rate(&empty_handler()?, "GET /jobs HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    let stage = Stage::set(setting.place, JOBS)?;
    let served = Served::start(&stage.volume)?;
    let request = served.head("GET", "/jobs?limit=500", "");
    rate(&served.address, &request)
}

/// Serves an empty answer until this process ends.
fn empty_handler() -> Outcome<String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::spawn(move || {
        runtime.block_on(async {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            let router = axum::Router::new().route("/jobs", axum::routing::get(|| async {}));
            // It serves until the process ends.
            let _ = axum::serve(listener, router).await;
        });
    });
    Ok(address)
}

/// D2: milliseconds from the trigger to `main()`, the median; the floor drops a file, the product asks over HTTP, both on one device.
pub(crate) fn triggers(setting: Setting<'_>, side: Side) -> Outcome<f64> {
    let mut stage = Stage::set(setting.place, 2)?;
    let served = Served::start(&stage.volume)?;
    let over_http = side == Side::Product && !setting.self_check;
    let runtime = runtime()?;
    let mut asker = runtime.block_on(Asker::connect(&served.address))?;
    let request =
        served.head("POST", "/trigger/probe", "Content-Type: application/json\r\nContent-Length: 2\r\n") + "{}";
    let mut once = |sample: u64| -> Outcome<f64> {
        thread::sleep(GAP + Duration::from_millis(sample % 7));
        let dropped = if over_http {
            let begun = clock::now();
            let status = runtime.block_on(asker.ask(&request))?;
            if status != 202 {
                return Err(format!("answered {status}").into());
            }
            begun
        } else {
            let staged = stage.volume.stage(Job::Probe, 1)?;
            let begun = clock::now();
            for trigger in &staged {
                trigger.drop_in()?;
            }
            begun
        };
        Ok(clock::millis(dropped, stage.volume.answers().wait_for(1)?))
    };
    for sample in 0..8 {
        once(sample)?;
    }
    Ok(median(&(0..TRIGGERS).map(once).collect::<Outcome<Vec<f64>>>()?))
}
