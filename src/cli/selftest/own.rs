//! The self-test's jobs that run by themselves: due times, daemons, idle time, chains and pools.

use serde_json::{Value, json};

use super::{Bench, expect};
use crate::coordinator::run::clock;
use crate::model::ids::RunId;
use crate::model::result::{Cause, Outcome, Status};
use crate::volume::atomic::write_over;
use crate::volume::results;

impl Bench {
    /// Writes a job file, over the one that is there.
    fn job(&mut self, name: &str, text: &str) -> Result<(), String> {
        let path = self.layout.programs.join(name);
        write_over(&*self.disk, &mut self.names, &path, text.as_bytes()).map_err(|error| error.to_string())
    }

    /// All results of a job, the oldest first.
    fn results_of(&self, job: &str) -> Vec<Outcome> {
        let mut days = results::days(&*self.disk, &self.layout).unwrap_or_default();
        days.reverse();
        let of_day = |day: &String| results::of_day(&*self.disk, &self.layout, day).unwrap_or_default();
        let named = days.iter().flat_map(of_day).filter(|named| named.job.as_str() == job);
        let read = |named: results::Named| {
            let lease = crate::model::lease::Lease { run: named.run, attempt: named.attempt };
            results::read(&*self.disk, &self.layout.result(&named.job, &lease)).ok().flatten()
        };
        named.filter_map(read).collect()
    }

    /// Waits for so many results of a job that are final or not.
    fn some_of(&self, job: &str, count: usize) -> Result<Vec<Outcome>, String> {
        self.wait(&format!("{count} results of {job}"), |bench| {
            let found = bench.results_of(job);
            (found.len() >= count).then_some(found)
        })
    }

    /// The runs of a job that a device holds, with their attempts.
    fn held(&self, job: &str) -> Vec<(RunId, u64)> {
        let state = self.disk.read(&self.layout.state(), 1 << 20).ok();
        let state: Value = state.and_then(|(bytes, _)| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let runs = state["runs"].as_object().cloned().unwrap_or_default();
        let held = runs.into_iter().filter(|(_, held)| held["job"] == job && held["device"].is_string());
        held.filter_map(|(run, held)| Some((RunId::parse(&run)?, held["attempt"].as_u64()?))).collect()
    }

    pub(super) fn intervals(&mut self) -> Result<(), String> {
        self.job("t_tick.toml", "type = \"interval\"\ninterval = \"1s\"\ncommand = [\"true\"]\n")?;
        let ticks = self.some_of("t_tick", 3)?;
        self.job("t_tick.toml", "command = [\"true\"]\n")?;
        for (tick, next) in ticks.iter().zip(&ticks[1..]) {
            let on_grid = tick.created_at.timestamp_millis() % 1_000 == 0;
            expect(on_grid && tick.cause == Cause::Schedule && tick.created_at < next.created_at, tick)?;
        }
        Ok(())
    }

    pub(super) fn due_times(&mut self) -> Result<(), String> {
        // A device has to know of it before.
        let soon = clock().wall + chrono::TimeDelta::seconds(5);
        let (time, end) = (soon.format("%H:%M:%S"), (soon + chrono::TimeDelta::seconds(1)).format("%H:%M:%S"));
        let second = soon.format("%S %M %H");
        let run = "command = [\"true\"]\n";
        self.job("t_daily.toml", &format!("type = \"daily\"\ntime = \"{time}\"\n{run}"))?;
        self.job("t_cron.toml", &format!("type = \"cron\"\ncron = \"{second} * * *\"\n{run}"))?;
        let window = format!("after_time = \"{time}\"\nbefore_time = \"{end}\"\n");
        self.job("t_random.toml", &format!("type = \"random_daily\"\n{window}{run}"))?;
        for job in ["t_daily", "t_cron", "t_random"] {
            let found = self.some_of(job, 1)?;
            expect(found.len() == 1 && found[0].created_at.timestamp() == soon.timestamp(), &found[0])?;
        }
        Ok(())
    }

    pub(super) fn daemons(&mut self) -> Result<(), String> {
        let text = "type = \"always\"\ninstances = 2\ncommand = [\"sleep\", \"60\"]\n";
        self.job("t_daemon.toml", text)?;
        let up = |bench: &Self| Some(bench.held("t_daemon")).filter(|held| held.len() == 2);
        let first = self.wait("two instances of a daemon", up)?;
        self.job("t_daemon.toml", &text.replace("60", "61"))?;
        let again = |bench: &Self| up(bench).filter(|held| held.iter().all(|(_, attempt)| *attempt > 1));
        let second = self.wait("both to follow their definition", again)?;
        let runs = |held: &[(RunId, u64)]| held.iter().map(|(run, _)| run.clone()).collect::<Vec<_>>();
        if runs(&first) != runs(&second) {
            return Err(format!("{first:?} became {second:?}: expected the same runs"));
        }
        self.job("t_daemon.toml", &format!("{text}enabled = false\n"))?;
        let ended = self.wait("both to end", |bench| {
            let finals: Vec<Outcome> = bench.results_of("t_daemon").into_iter().filter(|it| it.is_final).collect();
            (finals.len() == 2).then_some(finals)
        })?;
        ended.iter().try_for_each(|outcome| expect(outcome.status == Status::Cancelled, outcome))
    }

    pub(super) fn idle(&mut self) -> Result<(), String> {
        self.job("t_idle.toml", "type = \"idle\"\ncommand = [\"sleep\", \"60\"]\n")?;
        let fills = |bench: &Self| bench.held("t_idle").into_iter().next();
        let (run, _) = self.wait("an idle device to be filled", fills)?;
        let device = self.holder(&run).ok_or("nobody holds it")?;
        let work = self.drop("t_work", &json!({"command": ["true"], "tags": [device.as_str()]}))?;
        let outcome = self.result("t_work", &work, 1)?;
        expect(outcome.status == Status::Succeeded, &outcome)?;
        let gave_way = self.result("t_idle", &run, 1)?;
        self.job("t_idle.toml", "command = [\"true\"]\n")?;
        expect(gave_way.status == Status::Cancelled && gave_way.is_final, &gave_way)
    }

    pub(super) fn chains(&mut self) -> Result<(), String> {
        let tell = "command = [\"sh\", \"-c\", \"cat \\\"$AIOS_CAUSE_RESULT\\\" > \\\"$AIOS_RESULT\\\"\"]\n";
        self.job("t_then.toml", tell)?;
        self.job("t_both.toml", &format!("{tell}after = [\"t_good\", \"t_then\"]\n"))?;
        self.job("t_good.toml", "command = [\"true\"]\non_success = [\"t_then\"]\n")?;
        let good = self.drop("t_good", &json!({"job": "t_good"}))?;
        let then = self.some_of("t_then", 1)?.remove(0);
        let told = then.result.as_ref().and_then(|json| serde_json::from_str::<Value>(json.text()).ok());
        let told = told.unwrap_or_default();
        expect(then.cause == Cause::Job && told["run_id"] == good.as_str(), &then)?;
        let both = self.some_of("t_both", 1)?.remove(0);
        expect(both.cause == Cause::Job && both.status == Status::Succeeded, &both)
    }

    pub(super) fn pools(&mut self) -> Result<(), String> {
        self.job("pools.toml", "one = 1\n")?;
        self.job("t_pool.toml", "file = \"alone.sh\"\npool = \"one\"\n")?;
        let runs: Vec<RunId> =
            (0..3).map(|_| self.drop("t_pool", &json!({"job": "t_pool"}))).collect::<Result<_, _>>()?;
        for run in runs {
            let outcome = self.result("t_pool", &run, 1)?;
            // The script fails when another of its kind is at work.
            expect(outcome.status == Status::Succeeded, &outcome)?;
        }
        Ok(())
    }
}
