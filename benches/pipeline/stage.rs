//! A volume, its devices and the bounded wait for results: no round waits for ever.

use std::thread;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::clock;
use crate::device::{Device, Seat, Side};
use crate::volume::{Job, Place, Volume};
use crate::watch::ResultWatch;

/// A device that gives no result for this long hangs.
const STALL: Duration = Duration::from_secs(20);

/// Fewer results a second than this, over the whole wait, is a hang too.
const SLOWEST_RATE: f64 = 50.0;

/// How often a silent device is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// While many results are due, the harness wakes up once per pause instead of once per result.
const PAUSE: Duration = Duration::from_millis(1);

/// So few that each is waited for.
const FEW: usize = 16;

/// Runs before anything is measured.
const WARM_UP: usize = 8;

/// How long a device is left alone after the warm-up.
const SETTLE: Duration = Duration::from_millis(300);

/// This many triggers are dropped between two looks at the results.
const DROPS_PER_LOOK: usize = 500;

/// One volume with the devices that work on it.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The volume.
    pub volume: Volume,
    /// Who works on it; killed before the volume goes, see `Drop`.
    devices: Vec<Device>,
    results: ResultWatch,
}

impl Stage {
    /// Makes a volume that nobody works on yet.
    pub(crate) fn set(place: &Place, jobs: usize) -> Outcome<Self> {
        let volume = Volume::create(place, jobs)?;
        let results = ResultWatch::open(&volume)?;
        Ok(Self { volume, devices: Vec::new(), results })
    }

    /// Makes a volume, starts a device at each seat and warms them up.
    pub(crate) fn open(place: &Place, side: Side, seats: &[Seat], self_check: bool) -> Outcome<Self> {
        let mut stage = Self::set(place, 2)?;
        for &seat in seats {
            stage.start(side, seat, self_check)?;
        }
        stage.warm_up()?;
        Ok(stage)
    }

    /// Starts one more device.
    pub(crate) fn start(&mut self, side: Side, seat: Seat, self_check: bool) -> Outcome<()> {
        self.devices.push(Device::start(side, seat, &self.volume, self_check)?);
        Ok(())
    }

    /// Lets the devices run something, then leaves them alone for a moment.
    pub(crate) fn warm_up(&mut self) -> Outcome<()> {
        for _ in 0..WARM_UP {
            self.drop_all(Job::Nop, 1)?;
            self.await_results()?;
        }
        thread::sleep(SETTLE);
        Ok(())
    }

    /// Drops triggers as fast as it goes; gives the moment of the first.
    pub(crate) fn drop_all(&mut self, job: Job, count: usize) -> Outcome<u64> {
        let staged = self.volume.stage(job, count)?;
        let start = clock::now();
        for some in staged.chunks(DROPS_PER_LOOK) {
            for trigger in some {
                trigger.drop_in()?;
            }
            self.results.drain()?;
        }
        Ok(start)
    }

    /// Waits until every dropped trigger has its result; gives the moment of the last.
    pub(crate) fn await_results(&mut self) -> Outcome<u64> {
        self.await_count().map_err(|error| {
            let words: Vec<String> = self.devices.iter().map(Device::last_words).collect();
            format!("{error}\n{}", words.join("\n")).into()
        })
    }

    fn await_count(&mut self) -> Outcome<u64> {
        let expected = self.volume.dropped();
        let missing = expected.saturating_sub(self.results.count());
        let deadline = Instant::now() + STALL + Duration::from_secs_f64(missing as f64 / SLOWEST_RATE);
        let mut progress = (self.results.count(), Instant::now());
        loop {
            let count = self.results.count();
            if count >= expected {
                return Ok(clock::now());
            }
            if count != progress.0 {
                progress = (count, Instant::now());
            } else {
                self.devices.iter_mut().try_for_each(Device::check_alive)?;
            }
            if progress.1.elapsed() > STALL || Instant::now() > deadline {
                return Err(format!("hangs: {count} of {expected} results are there").into());
            }
            if expected - count > FEW {
                thread::sleep(PAUSE);
            }
            self.results.wait(LOOK)?;
        }
    }

    /// The resident memory of the first device in MiB.
    pub(crate) fn resident_mib(&self) -> Outcome<f64> {
        self.devices.first().ok_or("no device")?.resident_mib()
    }

    /// The CPU seconds of all devices.
    pub(crate) fn cpu_seconds(&self) -> Outcome<f64> {
        self.devices.iter().map(Device::cpu_seconds).sum()
    }

    /// Stops every device.
    pub(crate) fn stop(&mut self) -> Outcome<()> {
        for mut device in self.devices.drain(..) {
            device.stop().map_err(|error| format!("{error}\n{}", device.last_words()))?;
        }
        Ok(())
    }

    /// Stops every device, then checks what they did.
    pub(crate) fn close(mut self) -> Outcome<()> {
        self.stop()?;
        self.volume.verify()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Devices first: a living one would write into the folders while they are removed.
        self.devices.clear();
    }
}
