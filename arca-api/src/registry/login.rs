// SPDX-License-Identifier: Apache-2.0
//! `docker login`: whether a registry takes a name and password. Nothing is kept here; the client keeps it.

use reqwest::{StatusCode as Status, header::WWW_AUTHENTICATE};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{error::unreachable, is_local, prepare};
use crate::http::{ApiError, ApiResult};

/// Body of `POST /auth`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Credentials {
    /// Also `username`: keys are read in any case.
    #[serde(alias = "Username")]
    pub username: String,
    #[allow(missing_docs)]
    #[serde(alias = "Password")]
    pub password: String,
    #[allow(missing_docs)]
    #[serde(alias = "ServerAddress")]
    pub serveraddress: String,
    #[allow(missing_docs)]
    #[serde(alias = "IdentityToken")]
    pub identitytoken: String,
}

/// Asks the registry.
///
/// # Errors
/// 500 with Docker's text if it does not take them or cannot be asked.
pub async fn login(credentials: &Credentials) -> ApiResult<Value> {
    prepare();
    let host = host(&credentials.serveraddress);
    let build = |any| reqwest::Client::builder().danger_accept_invalid_certs(any).build();
    let client = build(is_local(&host)).map_err(|error| ApiError::internal(error.to_string()))?;
    let mut base = format!("https://{host}/v2/");
    let mut sent = client.get(&base).send().await;
    if is_local(&host) && sent.is_err() {
        base = format!("http://{host}/v2/");
        sent = client.get(&base).send().await;
    }
    let answer = sent.map_err(|error| unreachable(&error, &base))?;
    let challenges: Vec<String> = answer
        .headers()
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok().map(str::to_owned))
        .collect();
    let bearer = challenges.iter().find_map(|text| Bearer::parse(text));
    let pair = (&credentials.username, Some(&credentials.password));
    if bearer.is_none() && !challenges.is_empty() && credentials.username.is_empty() {
        return Err(ApiError::internal(format!("Get \"{base}\": no basic auth credentials")));
    }
    let asked = match &bearer {
        None => client.get(&base).basic_auth(pair.0, pair.1),
        Some(bearer) => {
            let mut query = vec![("account", credentials.username.as_str()), ("client_id", "docker")];
            query.push(("offline_token", "true"));
            query.extend(bearer.service.as_deref().map(|service| ("service", service)));
            let realm = reqwest::Url::parse_with_params(&bearer.realm, &query).map_err(|error| {
                ApiError::internal(format!("the registry's token service {}: {error}", bearer.realm))
            })?;
            client.get(realm).basic_auth(pair.0, pair.1)
        }
    };
    let url = bearer.as_ref().map_or(base.as_str(), |bearer| bearer.realm.as_str());
    let answer = asked.send().await.map_err(|error| unreachable(&error, url))?;
    let status = answer.status();
    if status.is_success() {
        let token: Value = answer.json().await.unwrap_or_default();
        let refresh = token["refresh_token"].as_str().unwrap_or_default();
        return Ok(json!({"IdentityToken": refresh, "Status": "Login Succeeded"}));
    }
    if matches!(status, Status::UNAUTHORIZED | Status::FORBIDDEN) {
        let body: Value = answer.json().await.unwrap_or_default();
        let told = body["errors"][0]["message"].as_str().or(body["details"].as_str()).unwrap_or_default().to_owned();
        let text = if bearer.is_none() || told.is_empty() {
            format!("login attempt to {base} failed with status: {status}")
        } else {
            format!("Get \"{base}\": unauthorized: {told}")
        };
        return Err(ApiError::internal(text));
    }
    Err(ApiError::internal(format!("login attempt to {base} failed with status: {status}")))
}

/// The API's host of what `docker login` was given.
fn host(address: &str) -> String {
    let bare = address.trim_start_matches("https://").trim_start_matches("http://");
    match bare.split('/').next().unwrap_or_default() {
        "" | "docker.io" | "index.docker.io" | "registry-1.docker.io" => super::DOCKER_HUB.to_owned(),
        host => host.to_owned(),
    }
}

/// A challenge that asks for a token (RFC 6750).
#[derive(Debug, PartialEq, Eq)]
struct Bearer {
    realm: String,
    service: Option<String>,
}

impl Bearer {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let value = |name: &str| {
            let start = rest.find(&format!("{name}=\""))? + name.len() + 2;
            let end = rest.get(start..)?.find('"')?;
            Some(rest.get(start..start + end)?.to_owned())
        };
        Some(Self { realm: value("realm")?, service: value("service") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_and_addresses() {
        let text = "Bearer realm=\"https://auth.x/token\",service=\"x\",scope=\"a:b:pull\"";
        let bearer = Bearer { realm: "https://auth.x/token".into(), service: Some("x".into()) };
        assert_eq!(Bearer::parse(text), Some(bearer));
        assert_eq!(Bearer::parse("Basic realm=\"x\""), None);
        assert_eq!(Bearer::parse("Bearer realm=\"x"), None);
        assert_eq!(host("https://index.docker.io/v1/"), super::super::DOCKER_HUB);
        assert_eq!(host("localhost:5000"), "localhost:5000");
    }
}
