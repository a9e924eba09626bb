// SPDX-License-Identifier: Apache-2.0
//! `--change` of `docker import` and `docker commit`: the Dockerfile instructions that only touch the image's run configuration.

use std::path::{Component, Path};

use serde_json::{Map, Value, json};

use super::error::ImageError;
use crate::docker::{health::HealthConfig, time::go_duration};

/// Applies Dockerfile lines to a run configuration.
///
/// # Errors
/// [`ImageError::Invalid`] for a line that is none, or that only a builder can do.
pub fn apply(config: &mut Map<String, Value>, lines: &[String]) -> Result<(), ImageError> {
    for line in lines {
        let line = line.trim();
        let (instruction, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let (upper, rest) = (instruction.to_uppercase(), rest.trim());
        if rest.is_empty() {
            return Err(ImageError::Invalid(format!("{upper} requires at least one argument")));
        }
        match upper.as_str() {
            "CMD" => insert(config, "Cmd", command(rest)),
            "ENTRYPOINT" => insert(config, "Entrypoint", command(rest)),
            "USER" => insert(config, "User", json!(rest)),
            "WORKDIR" => {
                let before = config.get("WorkingDir").and_then(Value::as_str).unwrap_or_default().to_owned();
                let whole = Path::new("/").join(before).join(rest);
                insert(config, "WorkingDir", json!(clean(&whole)));
            }
            "ONBUILD" => {
                if let Some(list) = list(config, "OnBuild") {
                    list.push(json!(rest));
                }
            }
            "STOPSIGNAL" => insert(config, "StopSignal", json!(rest)),
            "ENV" => {
                // The old form is one name and all the rest; the other any number of pairs.
                let pairs: Vec<String> = match rest.split_once(char::is_whitespace) {
                    Some((name, value)) if !name.contains('=') => vec![format!("{name}={}", value.trim())],
                    _ => words(rest),
                };
                let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
                for pair in pairs {
                    let Some(list) = list(config, "Env") else { continue };
                    match list.iter().position(|other| other.as_str().is_some_and(|other| name(other) == name(&pair))) {
                        Some(at) => list[at] = json!(pair),
                        None => list.push(json!(pair)),
                    }
                }
            }
            "EXPOSE" => {
                for port in rest.split_whitespace() {
                    let port = if port.contains('/') { port.to_owned() } else { format!("{port}/tcp") };
                    set(config, "ExposedPorts", &port, json!({}));
                }
            }
            "VOLUME" => {
                for path in rest.split_whitespace() {
                    set(config, "Volumes", path, json!({}));
                }
            }
            "LABEL" => {
                for pair in words(rest) {
                    let (key, value) = pair.split_once('=').unwrap_or((&pair, ""));
                    set(config, "Labels", key, json!(value));
                }
            }
            "HEALTHCHECK" => insert(config, "Healthcheck", health_check(rest)?),
            _ => return Err(ImageError::Invalid(format!("{upper} is not a valid change command"))),
        }
    }
    Ok(())
}

/// Without dots, as Go's `path.Clean`.
fn clean(path: &Path) -> String {
    let mut parts: Vec<std::borrow::Cow<'_, str>> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_string_lossy()),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    format!("/{}", parts.join("/"))
}

/// A field that is a list, made if it is not there.
fn list<'a>(config: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Vec<Value>> {
    let list = config.entry(key).or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut()
}

/// Words as a builder reads them: quotes hold one together, a backslash takes the next sign as it is.
fn words(text: &str) -> Vec<String> {
    let (mut all, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut signs = text.chars();
    while let Some(sign) = signs.next() {
        match (sign, quote) {
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(signs.next()),
            (sign, Some(open)) if sign == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(sign);
                word.get_or_insert_default();
            }
            (sign, None) if sign.is_whitespace() => all.extend(word.take()),
            (sign, _) => word.get_or_insert_default().push(sign),
        }
    }
    all.extend(word);
    all
}

fn insert(config: &mut Map<String, Value>, key: &str, value: Value) {
    config.insert(key.to_owned(), value);
}

fn set(config: &mut Map<String, Value>, map: &str, key: &str, value: Value) {
    let map = config.entry(map).or_insert_with(|| json!({}));
    if map.is_null() {
        *map = json!({});
    }
    if let Some(map) = map.as_object_mut() {
        map.insert(key.to_owned(), value);
    }
}

/// `[--interval=… --timeout=… --start-period=… --start-interval=… --retries=…] NONE | CMD …`.
fn health_check(text: &str) -> Result<Value, ImageError> {
    let invalid = |text: String| Err(ImageError::Invalid(text));
    let mut check = HealthConfig::default();
    let mut rest = text;
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        rest = after.trim_start();
        let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
        let field = match name {
            "interval" => &mut check.interval,
            "timeout" => &mut check.timeout,
            "start-period" => &mut check.start_period,
            "start-interval" => &mut check.start_interval,
            "retries" => &mut check.retries,
            _ => return invalid(format!("unknown flag: --{name}")),
        };
        let number = if name == "retries" { value.parse().ok() } else { go_duration(value) };
        let Some(number) = number.filter(|number| *number >= 0) else {
            return invalid(format!("invalid value \"{value}\" for flag --{name}"));
        };
        *field = number;
    }
    let (kind, words) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let words = words.trim();
    check.test = match (kind.to_uppercase().as_str(), words) {
        ("NONE", "") => vec!["NONE".to_owned()],
        ("NONE", _) => return invalid("HEALTHCHECK NONE takes no arguments".into()),
        ("CMD", "") => return invalid("missing command after HEALTHCHECK CMD".into()),
        ("CMD", line) => match serde_json::from_str::<Vec<String>>(line) {
            Ok(list) => ["CMD".to_owned()].into_iter().chain(list).collect(),
            Err(_) => vec!["CMD-SHELL".to_owned(), line.to_owned()],
        },
        (kind, _) => return invalid(format!("unknown type \"{kind}\" in HEALTHCHECK (try CMD)")),
    };
    check.validate().map_err(|error| ImageError::Invalid(error.message))?;
    Ok(json!(check))
}

/// A JSON list is the command itself, anything else goes to a shell.
fn command(text: &str) -> Value {
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(list) => json!(list),
        Err(_) => json!(["/bin/sh", "-c", text]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(lines: &[String]) -> Result<Value, ImageError> {
        let mut config = Map::new();
        super::apply(&mut config, lines).map(|()| Value::Object(config))
    }

    #[test]
    fn each_instruction_lands_in_its_field() {
        let lines = ["CMD [\"sh\"]", "env A=1", "ENV B 2", "EXPOSE 80 53/udp", "LABEL x=y", "entrypoint echo hi"];
        let config = apply(&lines.map(str::to_owned)).expect("valid");
        assert_eq!(
            config,
            json!({"Cmd": ["sh"], "Env": ["A=1", "B=2"], "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
                   "Labels": {"x": "y"}, "Entrypoint": ["/bin/sh", "-c", "echo hi"]})
        );
        assert!(apply(&["FROM x".to_owned()]).is_err());
        let lines =
            [r#"ENV A="b c" D=e\ f"#, "ENV A g h", "LABEL 'x y'=\"z\" k", "WORKDIR a", "WORKDIR ../b", "ONBUILD RUN x"];
        assert_eq!(
            apply(&lines.map(str::to_owned)).expect("valid"),
            json!({"Env": ["A=g h", "D=e f"], "Labels": {"x y": "z", "k": ""}, "WorkingDir": "/b", "OnBuild": ["RUN x"]})
        );
        let health = |line: &str| apply(&[format!("HEALTHCHECK {line}")]).map(|config| config["Healthcheck"].clone());
        assert_eq!(
            health("--interval=2s  --retries=5 CMD test -e /ok").expect("valid"),
            json!({"Test": ["CMD-SHELL", "test -e /ok"], "Interval": 2_000_000_000, "Retries": 5})
        );
        assert_eq!(health("cmd [\"a\", \"b\"]").expect("valid"), json!({"Test": ["CMD", "a", "b"]}));
        assert_eq!(health("NONE").expect("valid"), json!({"Test": ["NONE"]}));
        for bad in
            ["NONE x", "CMD", "what", "--zz=1 NONE", "--interval=x NONE", "--retries=-1 NONE", "--interval=1us NONE"]
        {
            assert!(health(bad).is_err(), "{bad}");
        }
        assert!(apply(&["CMD".to_owned()]).is_err());
    }
}
