// SPDX-License-Identifier: Apache-2.0
//! The event bus behind `GET /events`: a broadcast for those who listen and a ring for those who ask for the past.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::{docker::time::now, http::filters::Filters};

/// Events kept for `since`.
const RING: usize = 1024;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// `container`, `network`, `image`, `volume`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What happened: `start`, `exec_create: sh`, …
    pub action: String,
    /// Whom it happened to.
    pub id: String,
    /// Names, labels and facts.
    pub attributes: BTreeMap<String, String>,
    /// Nanoseconds since the Unix epoch.
    pub time: i64,
}

impl Event {
    /// The event as it travels, with the legacy fields of container and image events.
    pub fn to_json(&self) -> Value {
        let mut out = serde_json::Map::new();
        match self.kind {
            "container" => {
                out.insert("status".into(), json!(self.action));
                out.insert("id".into(), json!(self.id));
                if let Some(image) = self.attributes.get("image") {
                    out.insert("from".into(), json!(image));
                }
            }
            "image" => {
                out.insert("status".into(), json!(self.action));
                out.insert("id".into(), json!(self.id));
            }
            _ => {}
        }
        out.insert("Type".into(), json!(self.kind));
        out.insert("Action".into(), json!(self.action));
        out.insert("Actor".into(), json!({"ID": self.id, "Attributes": self.attributes}));
        out.insert("scope".into(), json!("local"));
        out.insert("time".into(), json!(self.time.div_euclid(1_000_000_000)));
        out.insert("timeNano".into(), json!(self.time));
        Value::Object(out)
    }

    /// Whether every filter accepts the event.
    pub fn matches(&self, filters: &Filters) -> bool {
        // "exec_create: sh" is found by "exec_create" too.
        let action = self.action.split(": ").next().unwrap_or("");
        let named = |kind: &str| {
            filters.any(kind, |wanted| {
                self.kind == kind
                    && (self.id.starts_with(wanted.as_str()) || self.attributes.get("name") == Some(wanted))
                    // A network's events name the container too.
                    || kind == "container" && self.attributes.get("container").is_some_and(|id| id.starts_with(wanted.as_str()))
            })
        };
        let image = || {
            filters.any("image", |wanted| {
                let of = if self.kind == "image" { self.attributes.get("name") } else { self.attributes.get("image") };
                let repository = |name: &str| name.split(':').next() == Some(wanted);
                self.kind == "image" && self.id == *wanted || of.is_some_and(|name| name == wanted || repository(name))
            })
        };
        filters.any("type", |wanted| wanted == self.kind)
            && filters.any("event", |wanted| *wanted == self.action || wanted == action)
            && filters.any("scope", |wanted| wanted == "local")
            && ["container", "network", "volume", "daemon", "plugin", "service", "node", "secret", "config"]
                .into_iter()
                .all(named)
            && image()
            && filters.labels("label", &self.attributes)
    }
}

/// Where events come together.
#[derive(Debug)]
pub struct Bus {
    ring: Mutex<VecDeque<Event>>,
    live: broadcast::Sender<Event>,
}

impl Default for Bus {
    fn default() -> Self {
        Self { ring: Mutex::new(VecDeque::with_capacity(RING)), live: broadcast::channel(RING).0 }
    }
}

impl Bus {
    /// Publishes an event that happens now.
    pub fn emit(&self, kind: &'static str, action: impl Into<String>, id: &str, attributes: BTreeMap<String, String>) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let event = Event { kind, action: action.into(), id: id.to_owned(), attributes, time: now() };
        tracing::debug!(kind, action = event.action, id, "event");
        if ring.len() == RING {
            ring.pop_front();
        }
        ring.push_back(event.clone());
        // Under the ring's lock, so that `subscribe` neither misses nor repeats one. No listener is no error.
        let _ = self.live.send(event);
    }

    /// Past events from `since` on (nanoseconds; `None`: none of the past), and those to come.
    pub fn subscribe(&self, since: Option<i64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let past =
            since.map_or_else(Vec::new, |since| ring.iter().filter(|event| event.time >= since).cloned().collect());
        (past, self.live.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(action: &str) -> Event {
        Event {
            kind: "container",
            action: action.into(),
            id: "abcdef".into(),
            attributes: BTreeMap::from([
                ("name".into(), "web".into()),
                ("image".into(), "busybox:latest".into()),
                ("tier".into(), "front".into()),
            ]),
            time: 1_500_000_000,
        }
    }

    #[test]
    fn filters_choose() {
        for (text, matches) in [
            (r#"{"container":["web"]}"#, true),
            (r#"{"container":["abc"]}"#, true),
            (r#"{"container":["other"]}"#, false),
            (r#"{"event":["exec_create"]}"#, true),
            (r#"{"event":["die"]}"#, false),
            (r#"{"type":["network"]}"#, false),
            (r#"{"label":["tier=front"]}"#, true),
            (r#"{"image":["busybox"]}"#, true),
            (r#"{"image":["alpine"]}"#, false),
            (r#"{"network":["web"]}"#, false),
        ] {
            let filters = Filters::parse(text).expect(text);
            assert_eq!(event("exec_create: sh").matches(&filters), matches, "{text}");
        }
    }

    #[test]
    fn the_wire_form_has_the_legacy_fields_first() {
        let text = event("die").to_json().to_string();
        assert!(
            text.starts_with(r#"{"status":"die","id":"abcdef","from":"busybox:latest","Type":"container""#),
            "{text}"
        );
        assert!(text.ends_with(r#""scope":"local","time":1,"timeNano":1500000000}"#), "{text}");
    }

    #[tokio::test]
    async fn the_past_and_the_present_meet_without_gap() {
        let bus = Bus::default();
        bus.emit("network", "create", "1", BTreeMap::new());
        let (past, mut live) = bus.subscribe(Some(0));
        bus.emit("network", "destroy", "1", BTreeMap::new());
        assert_eq!(past.len(), 1);
        assert_eq!(live.recv().await.expect("live").action, "destroy");
        assert!(bus.subscribe(None).0.is_empty());
    }
}
