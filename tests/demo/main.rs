// SPDX-License-Identifier: Apache-2.0
//! `./dev demo`: the story on an engine of its own, told as it happens; exit code 0 only if every step held.
#![allow(clippy::print_stdout, reason = "a demo speaks")]

mod picture;

use std::{
    io::IsTerminal as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use arca_tests::{
    engine::{Engine, over_vms},
    isolation,
    leaks::Snapshot,
    measure::{self, gigabits, milliseconds},
    outside::Outside,
    story::{self, Step},
};

fn main() -> ExitCode {
    if isolation::errand().is_none() {
        return match isolation::rerun("demo", &[]) {
            Ok(status) => ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)),
            Err(error) => {
                eprintln!("demo: private namespaces cannot be made: {error} (run as root)");
                ExitCode::from(77)
            }
        };
    }
    match tell() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn tell() -> anyhow::Result<()> {
    let began = Instant::now();
    let paint = Paint(std::io::stdout().is_terminal());
    isolation::settle()?;
    let outside = Outside::start()?;
    let before = Snapshot::take()?;
    println!("{}", paint.bold("Arca: every container a machine of its own, every network an OVN switch"));
    println!("{}\n", paint.dim("in private namespaces; nothing on this machine changes"));

    let engine = Engine::start()?;
    paint.step(&Step {
        title: "an engine: helper machine, OVS, OVN, three daemons".into(),
        command: "arca daemon start".into(),
        result: format!("DOCKER_HOST={}", engine.docker_host()),
        time: engine.start_time,
    });
    let loading = Instant::now();
    engine.load_image()?;
    paint.step(&Step {
        title: "a small image".into(),
        command: "docker load -i busybox.tar".into(),
        result: "busybox:latest".into(),
        time: loading.elapsed(),
    });
    story::play(&engine, &mut |step| paint.step(step))?;

    println!("\n{}", paint.bold("The topology"));
    println!("{}", picture::topology(&engine)?);
    println!("{}", paint.bold("Between web and db, through OVN (carrier: stream)"));
    if over_vms() {
        let pings = engine.docker_ok(&["exec", "web", "ping", "-c", "20", "-q", "db"])?;
        println!("  {}", pings.lines().last().unwrap_or_default());
    } else {
        figures(&engine)?;
    }

    engine.stop()?;
    drop(engine);
    let leaked = Snapshot::left_since(&before)?;
    drop(outside);
    anyhow::ensure!(leaked.is_empty(), "left behind: {leaked:?}");
    println!("\nEvery step held, nothing was left behind: {:.1} s.", began.elapsed().as_secs_f64());
    Ok(())
}

/// Measured by threads that visit both containers.
fn figures(engine: &Engine) -> anyhow::Result<()> {
    let (web, db, address) = (engine.pid("web")?, engine.pid("db")?, engine.address("db", "backend")?);
    let calm = measure::ping_pong(web, db, &address, Some(Duration::from_millis(10)), 100)?;
    let flat = measure::ping_pong(web, db, &address, None, 2000)?;
    let rate = measure::stream(web, db, &address, Duration::from_secs(3))?;
    println!("  round trip, 100 a second   {:>11} (99 %: {})", milliseconds(calm.p50), milliseconds(calm.p99));
    println!("  round trip, flat out       {:>11} (99 %: {})", milliseconds(flat.p50), milliseconds(flat.p99));
    println!("  one TCP stream             {:>11}", gigabits(rate));
    Ok(())
}

/// Colours where a person looks.
struct Paint(bool);

impl Paint {
    fn with(&self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn bold(&self, text: &str) -> String {
        self.with("1", text)
    }

    fn dim(&self, text: &str) -> String {
        self.with("2", text)
    }

    fn step(&self, step: &Step) {
        println!("{} {:<66} {:>7.0} ms", self.with("32", "✓"), step.title, step.time.as_secs_f64() * 1e3);
        if !step.command.is_empty() {
            println!("    {}", self.dim(&format!("$ {}", step.command)));
        }
        for line in step.result.lines() {
            println!("    {line}");
        }
    }
}
