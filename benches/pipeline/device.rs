//! One running pipeline of either side, started and looked at the same way.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::Outcome;
use crate::floor;
use crate::volume::Volume;

/// Which pipeline it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// The minimal pipeline.
    Floor,
    /// `orchestrator run`, in its default configuration.
    Product,
    /// The same with `--durability fast`, which like the floor syncs nothing.
    ProductFast,
}

impl fmt::Display for Side {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Floor => "floor",
            Self::Product => "product",
            Self::ProductFast => "product, fast",
        })
    }
}

/// A device's name and slots.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seat {
    /// Its device id.
    pub id: &'static str,
    /// Its slots; `None`: the default.
    pub slots: Option<usize>,
    /// Whether others work on the same volume.
    pub shared: bool,
    /// More options for the product's command line.
    pub options: &'static [&'static str],
}

/// The one device of most rounds, in the default configuration.
pub(crate) const ALONE: Seat = Seat { id: "bench", slots: None, shared: false, options: &[] };

/// Only these variables reach a device: none of the developer's own may configure it.
const PASSED_ON: [&str; 4] = ["PATH", "HOME", "LANG", "TMPDIR"];

/// How long a device may take to end after SIGTERM.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// The unit of `/proc/<pid>/stat`: `USER_HZ`, which is 100 on every common Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// How much of a failed device's log is shown.
const SHOWN_LOG_LINES: usize = 30;

/// A running device; killed when dropped.
#[derive(Debug)]
pub(crate) struct Device {
    child: Child,
    name: String,
    log: PathBuf,
    must_exit_cleanly: bool,
}

impl Device {
    /// Starts a device. With `self_check` the floor plays the product's part too.
    pub(crate) fn start(side: Side, seat: Seat, volume: &Volume, self_check: bool) -> Outcome<Self> {
        let plays_floor = self_check || side == Side::Floor;
        let mut command = if plays_floor { floor_command(seat, volume)? } else { product_command(side, seat, volume) };
        let log = volume.root().join(format!("{}.log", seat.id));
        let output = File::options().create(true).append(true).open(&log)?;
        command.env_clear().envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        let child = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()?;
        Ok(Self { child, name: format!("{side} ({})", seat.id), log, must_exit_cleanly: !plays_floor })
    }

    /// An error if it is no longer running.
    pub(crate) fn check_alive(&mut self) -> Outcome<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("{} ended by itself: {status}", self.name).into()),
        }
    }

    /// Its name and the end of what it printed.
    pub(crate) fn last_words(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(SHOWN_LOG_LINES)..];
        let body = if shown.is_empty() { "(it printed nothing)".to_owned() } else { shown.join("\n    ") };
        format!("  log of {}:\n    {body}", self.name)
    }

    /// Its resident memory in MiB.
    pub(crate) fn resident_mib(&self) -> Outcome<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in /proc")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1024.0)
    }

    /// The CPU seconds it has used, its children's not counted.
    pub(crate) fn cpu_seconds(&self) -> Outcome<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The second field is the name in parentheses, which may hold anything; utime and stime are fields 14 and 15.
        let (_, after_name) = stat.rsplit_once(')').ok_or("no name in /proc/<pid>/stat")?;
        let ticks: Vec<f64> =
            after_name.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        Ok(ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
    }

    /// Ends it by SIGTERM; the product must drain and exit with 0.
    pub(crate) fn stop(&mut self) -> Outcome<()> {
        self.check_alive()?;
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, Signal::TERM)?;
        let deadline = Instant::now() + STOP_PATIENCE;
        loop {
            match self.child.try_wait()? {
                Some(status) if self.must_exit_cleanly && !status.success() => {
                    return Err(format!("{} was asked to stop and ended with {status}", self.name).into());
                }
                Some(_) => return Ok(()),
                None if Instant::now() > deadline => {
                    return Err(format!("{} did not end within {STOP_PATIENCE:?} of SIGTERM", self.name).into());
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Both fail only if it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn product_command(side: Side, seat: Seat, volume: &Volume) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orchestrator"));
    command.arg("run").arg("--common").arg(volume.common()).arg("--programs").arg(volume.programs());
    command.args(["--device-id", seat.id]);
    if let Some(slots) = seat.slots {
        command.args(["--slots", &slots.to_string()]);
    }
    command.args(seat.options);
    if side == Side::ProductFast {
        command.args(["--durability", "fast"]);
    }
    command
}

fn floor_command(seat: Seat, volume: &Volume) -> Outcome<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(floor::MODE).arg(volume.common()).arg(volume.programs());
    command.arg(seat.slots.unwrap_or_else(floor::default_slots).to_string());
    if seat.shared {
        command.arg(floor::CLAIMING);
    }
    Ok(command)
}
