// SPDX-License-Identifier: Apache-2.0
//! A health check as images and containers configure it (Docker API `HealthConfig`), and what inspect shows of its runs.

use serde::{Deserialize, Serialize};

use crate::{
    docker::time::go_duration_text,
    http::{ApiError, ApiResult},
};

/// Shortest duration Docker takes.
const SHORTEST: i64 = 1_000_000;

/// `Healthcheck` of a configuration. Durations in nanoseconds; 0 means "not said": the image's, then Docker's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs)] // Names and meaning are the Docker API's.
pub struct HealthConfig {
    /// `NONE`, or `CMD` and words, or `CMD-SHELL` and a line; empty inherits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature.
fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl HealthConfig {
    /// Takes from the image what the request left open.
    pub fn merge_image(&mut self, image: &Self) {
        if self.test.is_empty() {
            self.test.clone_from(&image.test);
        }
        for (own, inherited) in [
            (&mut self.interval, image.interval),
            (&mut self.timeout, image.timeout),
            (&mut self.start_period, image.start_period),
            (&mut self.start_interval, image.start_interval),
            (&mut self.retries, image.retries),
        ] {
            if *own == 0 {
                *own = inherited;
            }
        }
    }

    /// Checks what a request says, before anything is inherited.
    ///
    /// # Errors
    /// 400 with Docker's text.
    pub fn validate(&self) -> ApiResult<()> {
        let short = |duration: i64| duration != 0 && duration < SHORTEST;
        let shortest = go_duration_text(SHORTEST);
        for (name, duration) in [("Interval", self.interval), ("Timeout", self.timeout)] {
            if short(duration) {
                return Err(ApiError::bad_request(format!("{name} in Healthcheck cannot be less than {shortest}")));
            }
        }
        if self.retries < 0 {
            return Err(ApiError::bad_request("Retries in Healthcheck cannot be negative"));
        }
        for (name, duration) in [("StartPeriod", self.start_period), ("StartInterval", self.start_interval)] {
            if short(duration) {
                return Err(ApiError::bad_request(format!("{name} in Healthcheck cannot be less than {shortest}")));
            }
        }
        Ok(())
    }

    /// Words to run, if there is something to run: `shell` is what `CMD-SHELL` lines are given to.
    pub fn command(&self, shell: Option<&[String]>) -> Option<Vec<String>> {
        let (kind, words) = self.test.split_first()?;
        match kind.as_str() {
            "CMD" => Some(words.to_vec()),
            "CMD-SHELL" => {
                let default = ["/bin/sh".to_owned(), "-c".to_owned()];
                let shell = shell.filter(|shell| !shell.is_empty()).unwrap_or(&default);
                Some(shell.iter().chain(words).cloned().collect())
            }
            // Docker runs nothing for words it does not know either.
            _ => None,
        }
    }
}

/// Names are Docker's `State.Health.Status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// No check has succeeded yet, and not too many have failed.
    #[default]
    Starting,
    /// The last check succeeded, or fewer than `Retries` have failed since one did.
    Healthy,
    /// `Retries` checks failed in a row, or nobody checks: stopped or frozen.
    Unhealthy,
}

impl HealthStatus {
    /// Docker's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One run of a check. Times in nanoseconds since the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HealthResult {
    pub start: i64,
    pub end: i64,
    /// -1: it could not run, or ran for too long.
    pub exit_code: i64,
    pub output: String,
}

/// What is known of a container's health.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The sum of it.
    pub status: HealthStatus,
    /// Failures since the last success.
    pub failing_streak: i64,
    /// The last runs, oldest first.
    pub log: Vec<HealthResult>,
}

impl Health {
    /// Runs that are kept.
    const LOG: usize = 5;
    /// Failures in a row that Docker takes for bad.
    const RETRIES: i64 = 3;

    /// Takes note of a run; `since_start` is when it began, in nanoseconds after the container's start.
    pub fn note(&mut self, config: &HealthConfig, result: HealthResult, since_start: i64) {
        let code = result.exit_code;
        let excess = (self.log.len() + 1).saturating_sub(Self::LOG);
        self.log.drain(..excess);
        self.log.push(result);
        if code == 0 {
            self.failing_streak = 0;
            self.status = HealthStatus::Healthy;
            return;
        }
        if self.status == HealthStatus::Starting && since_start < config.start_period {
            // Time to start up is granted.
            return;
        }
        self.failing_streak += 1;
        let retries = if config.retries > 0 { config.retries } else { Self::RETRIES };
        if self.failing_streak >= retries {
            self.status = HealthStatus::Unhealthy;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(exit_code: i64) -> HealthResult {
        HealthResult { exit_code, ..HealthResult::default() }
    }

    #[test]
    fn failures_count_after_the_start_period_only() {
        let config = HealthConfig { retries: 2, start_period: 100, ..HealthConfig::default() };
        let mut health = Health::default();
        health.note(&config, result(1), 50);
        assert_eq!((health.status, health.failing_streak, health.log.len()), (HealthStatus::Starting, 0, 1));
        health.note(&config, result(1), 150);
        assert_eq!((health.status, health.failing_streak), (HealthStatus::Starting, 1));
        health.note(&config, result(-1), 200);
        assert_eq!((health.status, health.failing_streak), (HealthStatus::Unhealthy, 2));
        health.note(&config, result(0), 250);
        assert_eq!((health.status, health.failing_streak), (HealthStatus::Healthy, 0));
        // Once healthy, a start period grants nothing any more.
        health.note(&config, result(1), 10);
        assert_eq!((health.status, health.failing_streak), (HealthStatus::Healthy, 1));
        for code in 10..20 {
            health.note(&config, result(code), 300);
        }
        assert_eq!(health.log.iter().map(|run| run.exit_code).collect::<Vec<_>>(), [15, 16, 17, 18, 19]);
    }

    #[test]
    fn the_request_wins_over_the_image_field_by_field() {
        let image: HealthConfig =
            serde_json::from_value(serde_json::json!({"Test": ["CMD", "a"], "Interval": 5, "Retries": 7}))
                .expect("image");
        let mut own = HealthConfig { interval: 9, ..HealthConfig::default() };
        own.merge_image(&image);
        assert_eq!((own.test.len(), own.interval, own.retries), (2, 9, 7));
        assert_eq!(serde_json::to_string(&own).expect("json"), r#"{"Test":["CMD","a"],"Interval":9,"Retries":7}"#);
    }

    #[test]
    fn what_is_run() {
        let command = |test: &[&str], shell: Option<&[String]>| {
            let test = test.iter().map(|&word| word.to_owned()).collect();
            HealthConfig { test, ..HealthConfig::default() }.command(shell)
        };
        assert_eq!(command(&[], None), None);
        assert_eq!(command(&["NONE"], None), None);
        assert_eq!(command(&["what", "x"], None), None);
        assert_eq!(command(&["CMD", "a", "b"], None).expect("words"), ["a", "b"]);
        assert_eq!(command(&["CMD-SHELL", "a b"], None).expect("line"), ["/bin/sh", "-c", "a b"]);
        let shell = ["ash".to_owned(), "-ec".to_owned()];
        assert_eq!(command(&["CMD-SHELL", "a b"], Some(&shell)).expect("line"), ["ash", "-ec", "a b"]);
    }

    #[test]
    fn faults_read_as_dockers() {
        let check = |config: HealthConfig| {
            let config = HealthConfig { test: vec!["NONE".into()], ..config };
            config.validate().map_err(|error| error.message)
        };
        let short = HealthConfig { timeout: 999_999, ..HealthConfig::default() };
        assert_eq!(check(short).expect_err("short"), "Timeout in Healthcheck cannot be less than 1ms");
        let negative = HealthConfig { retries: -1, ..HealthConfig::default() };
        assert_eq!(check(negative.clone()).expect_err("negative"), "Retries in Healthcheck cannot be negative");
        assert!(negative.validate().is_err(), "without a test too");
        assert_eq!(check(HealthConfig { interval: 1_000_000, ..HealthConfig::default() }), Ok(()));
    }
}
