// SPDX-License-Identifier: Apache-2.0
//! `--change` of `docker import`: the Dockerfile instructions that only touch the image's run configuration.

use serde_json::{Map, Value, json};

use super::error::ImageError;

/// Applies Dockerfile lines to an empty run configuration.
pub(super) fn apply(lines: &[String]) -> Result<Value, ImageError> {
    let mut config = Map::new();
    for line in lines {
        let line = line.trim();
        let (instruction, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let (upper, rest) = (instruction.to_uppercase(), rest.trim());
        if rest.is_empty() {
            return Err(ImageError::Invalid(format!("{upper} requires at least one argument")));
        }
        match upper.as_str() {
            "CMD" => insert(&mut config, "Cmd", command(rest)),
            "ENTRYPOINT" => insert(&mut config, "Entrypoint", command(rest)),
            "USER" => insert(&mut config, "User", json!(rest)),
            "WORKDIR" => insert(&mut config, "WorkingDir", json!(rest)),
            "STOPSIGNAL" => insert(&mut config, "StopSignal", json!(rest)),
            "ENV" => {
                let pair = if rest.contains('=') { rest.to_owned() } else { rest.replacen(' ', "=", 1) };
                if let Some(list) = config.entry("Env").or_insert_with(|| json!([])).as_array_mut() {
                    list.push(json!(pair));
                }
            }
            "EXPOSE" => {
                for port in rest.split_whitespace() {
                    let port = if port.contains('/') { port.to_owned() } else { format!("{port}/tcp") };
                    set(&mut config, "ExposedPorts", &port, json!({}));
                }
            }
            "VOLUME" => {
                for path in rest.split_whitespace() {
                    set(&mut config, "Volumes", path, json!({}));
                }
            }
            "LABEL" => {
                let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
                set(&mut config, "Labels", key.trim_matches('"'), json!(value.trim_matches('"')));
            }
            _ => return Err(ImageError::Invalid(format!("{upper} is not a valid change command"))),
        }
    }
    Ok(Value::Object(config))
}

fn insert(config: &mut Map<String, Value>, key: &str, value: Value) {
    config.insert(key.to_owned(), value);
}

fn set(config: &mut Map<String, Value>, map: &str, key: &str, value: Value) {
    if let Some(map) = config.entry(map).or_insert_with(|| json!({})).as_object_mut() {
        map.insert(key.to_owned(), value);
    }
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
        assert!(apply(&["CMD".to_owned()]).is_err());
    }
}
