// SPDX-License-Identifier: Apache-2.0
//! Registries: pull, push, login (OCI distribution specification). Called by the image routes.
//!
//! Requests, challenges and tokens are `oci-client`'s; what comes and goes, the order of things and every word that a
//! client sees are decided here.

mod error;
mod login;
mod progress;
mod pull;
mod push;
mod receive;
mod search;

use std::{net::IpAddr, time::Duration};

use base64::Engine as _;
use oci_client::{
    Client, RegistryOperation,
    client::{ClientConfig, ClientProtocol},
    errors::OciDistributionError,
    secrets::RegistryAuth,
};
use serde::Deserialize;

pub use self::{
    login::{Credentials, login},
    progress::{Lines, stream},
    pull::{Platform, look, pull, tags},
    push::push,
    search::search,
};
use crate::{
    http::{ApiError, ApiResult},
    images::reference::Reference,
};

/// Docker's name of its own registry's API host.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// One repository of one registry. Clones share its tokens.
#[derive(Clone)]
pub struct Repository {
    client: Client,
    /// With the tag or digest that was asked for.
    place: oci_client::Reference,
    auth: RegistryAuth,
    /// Familiar name, without tag.
    name: String,
    /// `https://HOST`
    url: String,
    /// Whose login it is.
    signed_in: bool,
}

impl Repository {
    /// The same repository by another tag.
    #[must_use]
    pub fn of(&self, reference: &Reference) -> Self {
        let mut other = self.clone();
        if let (None, Some(tag)) = (&reference.digest, &reference.tag) {
            let (registry, path) = (self.place.registry().to_owned(), self.place.repository().to_owned());
            other.place = oci_client::Reference::with_tag(registry, path, tag.clone());
        }
        other
    }
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("place", &self.place).finish_non_exhaustive()
    }
}

/// `X-Registry-Auth`: what the client's store has for the registry.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Header {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

/// Reads the header `X-Registry-Auth`; one that cannot be read is none, as in Docker.
#[must_use]
pub fn credentials(header: Option<&str>) -> RegistryAuth {
    let text = header.unwrap_or_default().trim_end_matches('=');
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
    let header: Header = serde_json::from_slice(&bytes).unwrap_or_default();
    if !header.registrytoken.is_empty() {
        return RegistryAuth::Bearer(header.registrytoken);
    }
    if !header.identitytoken.is_empty() {
        // A refresh token is sent in the place of a password, under the name that registries know it by.
        return RegistryAuth::Basic("<token>".into(), header.identitytoken);
    }
    if !header.username.is_empty() {
        return RegistryAuth::Basic(header.username, header.password);
    }
    let pair = base64::engine::general_purpose::STANDARD.decode(&header.auth).unwrap_or_default();
    match String::from_utf8_lossy(&pair).split_once(':') {
        Some((name, word)) if !name.is_empty() => RegistryAuth::Basic(name.to_owned(), word.to_owned()),
        _ => RegistryAuth::Anonymous,
    }
}

/// TLS needs to be told once which cryptography it uses.
fn prepare() {
    #[cfg(target_os = "linux")]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        // Whoever was first: there is one kind only.
        ONCE.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    }
}

/// Registry and path of a familiar name: `busybox` is `registry-1.docker.io`, `library/busybox`.
fn split(name: &str) -> (&str, String) {
    match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
        Some(_) => (DOCKER_HUB, name.to_owned()),
        None => (DOCKER_HUB, format!("library/{name}")),
    }
}

/// Whether a registry is on this machine: then it may speak plain HTTP, and its certificate is not asked for.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn client(protocol: ClientProtocol, any_certificate: bool) -> Result<Client, OciDistributionError> {
    prepare();
    Client::try_from(ClientConfig {
        protocol,
        accept_invalid_certificates: any_certificate,
        use_monolithic_push: true,
        connect_timeout: Some(Duration::from_secs(30)),
        // A transfer that stands still for so long is tried again.
        read_timeout: Some(Duration::from_secs(60)),
        user_agent: concat!("arca/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
}

/// Finds out how a registry is spoken to, and signs in.
///
/// # Errors
/// Docker's text for a registry that cannot be reached or turns the user away.
pub async fn open(reference: &Reference, auth: RegistryAuth, operation: RegistryOperation) -> ApiResult<Repository> {
    let (host, path) = split(&reference.name);
    let (registry, path) = (host.to_owned(), path);
    let place = match (&reference.digest, &reference.tag) {
        (Some(digest), _) => oci_client::Reference::with_digest(registry, path, digest.clone()),
        (None, tag) => {
            oci_client::Reference::with_tag(registry, path, tag.clone().unwrap_or_else(|| "latest".to_owned()))
        }
    };
    let signed_in = auth != RegistryAuth::Anonymous;
    let mut secure = true;
    let mut client_now =
        client(ClientProtocol::Https, is_local(host)).map_err(|error| ApiError::internal(error.to_string()))?;
    let mut tried = client_now.auth(&place, &auth, operation).await;
    if is_local(host)
        && matches!(&tried, Err(OciDistributionError::RequestError(error)) if error.is_connect() || error.is_request())
    {
        secure = false;
        client_now = client(ClientProtocol::Http, false).map_err(|error| ApiError::internal(error.to_string()))?;
        tried = client_now.auth(&place, &auth, operation).await;
    }
    let url = format!("{}://{host}", if secure { "https" } else { "http" });
    if let Err(error) = tried {
        return Err(error::of_ping(&error, &url, &reference.name));
    }
    Ok(Repository { client: client_now, place, auth, name: reference.name.clone(), url, signed_in })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_which_registry_and_whether_it_is_local() {
        for (name, host, path) in [
            ("busybox", DOCKER_HUB, "library/busybox"),
            ("a/b", DOCKER_HUB, "a/b"),
            ("localhost:5000/x", "localhost:5000", "x"),
            ("quay.io/a/b/c", "quay.io", "a/b/c"),
            ("localhost/x", "localhost", "x"),
        ] {
            assert_eq!(split(name), (host, path.to_owned()));
        }
        for (host, local) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.1.2.3:443", true),
            ("[::1]:5000", true),
            ("10.0.0.1:5000", false),
            ("localhost.example.org", false),
            (DOCKER_HUB, false),
        ] {
            assert_eq!(is_local(host), local, "{host}");
        }
    }

    #[test]
    fn credentials_come_in_every_form_of_the_header() {
        let header = |text: &str| {
            let packed = base64::engine::general_purpose::URL_SAFE.encode(text);
            credentials(Some(&packed))
        };
        let basic = |name: &str, word: &str| RegistryAuth::Basic(name.into(), word.into());
        assert_eq!(header(r#"{"username":"u","password":"p"}"#), basic("u", "p"));
        assert_eq!(header(r#"{"auth":"dTpwOnE="}"#), basic("u", "p:q"));
        assert_eq!(header(r#"{"identitytoken":"t"}"#), basic("<token>", "t"));
        assert_eq!(header(r#"{"registrytoken":"t"}"#), RegistryAuth::Bearer("t".into()));
        for none in [None, Some(""), Some("!"), Some("e30="), Some("bnVsbA==")] {
            assert_eq!(credentials(none), RegistryAuth::Anonymous);
        }
    }
}
