//! NVIDIA's processors: how busy they are their driver tells nobody but its own program, `nvidia-smi`. That is started once, says a
//! line for each processor every few seconds, and is listened to by a thread of its own: no heartbeat waits for it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::program::resolve;
use super::talk::Talk;
use crate::model::device::Gpu;

/// The program, and how it is asked: for values without units, separated by commas, every 5 s.
const PROGRAM: &str = "nvidia-smi";
const ARGS: [&str; 3] =
    ["--query-gpu=index,name,utilization.gpu,memory.total,memory.used", "--format=csv,noheader,nounits", "--loop=5"];
/// How long it may say nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it is left alone when it has ended.
const REST: Duration = Duration::from_secs(60);

/// What is known of each processor, by its index.
type Known = Mutex<BTreeMap<u32, Gpu>>;

/// Listens to the program for as long as this lives.
#[derive(Debug)]
pub(super) struct Watch(Arc<Known>);

impl Watch {
    /// Begins to listen. `None`: the program is in no folder of `PATH`.
    pub(super) fn begin() -> Option<Self> {
        let program = resolve(PROGRAM, std::env::var("PATH").ok().as_deref(), Path::new("/")).ok()?;
        Self::of(program.as_os_str())
    }

    fn of(program: &OsStr) -> Option<Self> {
        let known = Arc::<Known>::default();
        let (listener, program) = (Arc::downgrade(&known), program.to_owned());
        let thread = std::thread::Builder::new().name("aios-gpu".to_owned()).stack_size(128 << 10);
        thread.spawn(move || while listen(&listener, &program) {}).ok()?;
        Some(Self(known))
    }

    /// What was said last.
    pub(super) fn gpus(&self) -> Vec<Gpu> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Starts the program and listens until it ends; `false`: nobody wants to know any more.
fn listen(known: &Weak<Known>, program: &OsStr) -> bool {
    match Talk::with(program, &ARGS) {
        Err(error) => tracing::debug!(%error, "{PROGRAM} cannot be started"),
        Ok(mut talk) => {
            while let Ok(Some(line)) = talk.hear(PATIENCE) {
                let Some(known) = known.upgrade() else { return false };
                if let Some((index, gpu)) = read(&line) {
                    known.lock().unwrap_or_else(PoisonError::into_inner).insert(index, gpu);
                }
            }
            // What it said is true no more. Before it is waited for: one that hangs in the driver may never end.
            if let Some(known) = known.upgrade() {
                known.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
        }
    }
    std::thread::sleep(REST);
    known.strong_count() > 0
}

/// Reads `0, NVIDIA RTX A6000, 37, 49140, 1024`: percent and MiB. What it cannot say, such as `[N/A]`, is not known.
fn read(line: &str) -> Option<(u32, Gpu)> {
    let (index, rest) = line.split_once(", ")?;
    // A name may have commas.
    let mut fields = rest.rsplitn(4, ", ");
    let (used, total, busy, name) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let bytes = |text: &str| text.trim().parse::<u64>().ok().map(|mib| mib << 20);
    let gpu = Gpu {
        name: name.to_owned(),
        busy_percent: busy.trim().parse().ok(),
        memory_bytes: bytes(total),
        memory_used_bytes: bytes(used),
    };
    Some((index.trim().parse().ok()?, gpu))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_line_is_read_and_what_is_not_said_is_not_known() {
        let gpu = |busy: Option<f64>, total: Option<u64>, used: Option<u64>| Gpu {
            name: "NVIDIA A, B".to_owned(),
            busy_percent: busy,
            memory_bytes: total,
            memory_used_bytes: used,
        };
        for (line, expected) in [
            ("0, NVIDIA A, B, 37, 2, 1", Some((0, gpu(Some(37.0), Some(2 << 20), Some(1 << 20))))),
            ("11, NVIDIA A, B, [N/A], 2, [Not Supported]", Some((11, gpu(None, Some(2 << 20), None)))),
            ("No devices were found", None),
            ("x, NVIDIA, 1, 2, 3", None),
            ("0, 1, 2, 3", None),
            ("", None),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
    }

    #[test]
    fn a_program_that_talks_on_is_listened_to() {
        use std::os::unix::fs::PermissionsExt as _;
        let home = tempfile::tempdir().unwrap();
        let program = home.path().join(PROGRAM);
        let script = "#!/bin/sh\necho \"1, B, 5, 200, 100\"\necho \"0, $2, 6, 200, 150\"\nexec sleep 20\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let watch = Watch::of(program.as_os_str()).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while watch.gpus().len() < 2 {
            assert!(Instant::now() < until, "it is not heard: {:?}", watch.gpus());
            std::thread::yield_now();
        }
        let told: Vec<(String, Option<f64>)> =
            watch.gpus().into_iter().map(|gpu| (gpu.name, gpu.busy_percent)).collect();
        assert_eq!(told, [(ARGS[1].to_owned(), Some(6.0)), ("B".to_owned(), Some(5.0))]);
    }
}
