//! Jobs in containers against the engine's own command line (C1, C2): the same image, program and options.

use std::process::{Command, Stdio};

use crate::Outcome;
use crate::clock;
use crate::device::{ALONE, Side};
use crate::report::median;
use crate::rounds::Setting;
use crate::stage::Stage;
use crate::volume::Job;

/// What containers are made of.
const IMAGE: &str = "debian:bookworm-slim";
/// How often a round does it.
const SAMPLES: u32 = 10;

/// Whether there is an engine that has the image.
pub(crate) fn has_engine() -> bool {
    docker(&["image", "inspect", IMAGE]).is_ok()
}

/// Milliseconds for one container job, the median of a round: the product from the drop to its result, the floor from
/// `docker run` or `docker exec` to its end.
pub(crate) fn round(setting: Setting<'_>, side: Side, job: Job) -> Outcome<f64> {
    let is_warm = matches!(job, Job::Warm);
    if setting.self_check || side == Side::Floor {
        return floor(is_warm);
    }
    let mut stage = Stage::set(setting.place, 2)?;
    stage.volume.write_job_inside(Job::Cold, IMAGE, None)?;
    stage.volume.write_job_inside(Job::Warm, IMAGE, Some("10m"))?;
    stage.start(side, ALONE, false)?;
    let once = |stage: &mut Stage| {
        let dropped = stage.drop_all(job, 1)?;
        Ok(clock::millis(dropped, stage.await_results()?))
    };
    let _: f64 = once(&mut stage)?;
    let times = (0..SAMPLES).map(|_| once(&mut stage)).collect::<Outcome<Vec<f64>>>()?;
    stage.close()?;
    Ok(median(&times))
}

fn floor(is_warm: bool) -> Outcome<f64> {
    const ALIKE: [&str; 4] = ["--network=none", "--cap-drop=ALL", "--read-only", "--init"];
    let kept = if is_warm { Some(Kept::start(&ALIKE)?) } else { None };
    let run = [&["run", "--rm"], &ALIKE[..], &[IMAGE, "true"]].concat();
    let once = || {
        let begun = clock::now();
        match &kept {
            Some(kept) => docker(&["exec", &kept.0, "true"])?,
            None => docker(&run)?,
        };
        Ok(clock::millis(begun, clock::now()))
    };
    let _: f64 = once()?;
    Ok(median(&(0..SAMPLES).map(|_| once()).collect::<Outcome<Vec<f64>>>()?))
}

/// A container that is kept; removed when dropped.
struct Kept(String);

impl Kept {
    fn start(options: &[&str]) -> Outcome<Self> {
        Ok(Self(docker(&[&["run", "-d"], options, &[IMAGE, "sleep", "3600"]].concat())?))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // What fails here is in nobody's way.
        let _ = docker(&["rm", "-f", &self.0]);
    }
}

fn docker(words: &[&str]) -> Outcome<String> {
    let done = Command::new("docker").args(words).stdin(Stdio::null()).output()?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned());
    }
    Err(format!("docker {}: {}", words.join(" "), String::from_utf8_lossy(&done.stderr).trim()).into())
}
