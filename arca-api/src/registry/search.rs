// SPDX-License-Identifier: Apache-2.0
//! `docker search`: Docker Hub's index, which is no registry and speaks a protocol of its own.

use serde::{Deserialize, Serialize};

use super::{error::unreachable, prepare};
use crate::http::{ApiError, ApiResult};

/// One repository found (Docker API, `ImageSearch`).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Found {
    /// Likes.
    pub star_count: i64,
    /// Curated by Docker.
    pub is_official: bool,
    /// Familiar name.
    pub name: String,
    /// Always false since Docker builds none.
    pub is_automated: bool,
    /// One line.
    pub description: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    results: Vec<Found>,
}

/// Asks the index for at most `limit` (1 to 100) repositories.
///
/// # Errors
/// Docker's text if the index cannot be asked.
pub async fn search(term: &str, limit: i64) -> ApiResult<Vec<Found>> {
    prepare();
    let base = "https://index.docker.io/v1/search";
    let query = [("q", term.to_owned()), ("n", limit.to_string())];
    let url = reqwest::Url::parse_with_params(base, &query).map_err(|error| ApiError::internal(error.to_string()))?;
    let sent = reqwest::get(url.clone()).await.map_err(|error| unreachable(&error, url.as_str()))?;
    if !sent.status().is_success() {
        return Err(ApiError::internal(format!("Unexpected status code {}", sent.status().as_u16())));
    }
    let answer: Answer = sent.json().await.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(answer.results)
}
