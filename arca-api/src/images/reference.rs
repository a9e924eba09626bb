// SPDX-License-Identifier: Apache-2.0
//! Image references as the docker CLI writes them (grammar of the OCI distribution specification).

use std::fmt;

use super::error::ImageError;

/// `name[:tag][@digest]`, the name in its familiar form (`busybox`, not `docker.io/library/busybox`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Repository, familiar form.
    pub name: String,
    /// Tag; "latest" when neither tag nor digest was given.
    pub tag: Option<String>,
    /// "sha256:..." if given.
    pub digest: Option<String>,
}

impl Reference {
    /// Parses a reference.
    ///
    /// # Errors
    /// Docker's text: `invalid reference format`.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let bad = || ImageError::invalid("invalid reference format");
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(bad()),
            None => (text, None),
        };
        // A colon behind the last slash starts the tag; one before it belongs to a registry's port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
            _ => (rest, None),
        };
        if tag.as_deref().is_some_and(|tag| !is_tag(tag)) {
            return Err(bad());
        }
        let name = familiar(name);
        if name.chars().any(char::is_uppercase) && is_name(&name.to_lowercase()) {
            let path = match name.split_once('/') {
                Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => path.to_owned(),
                Some(_) => name,
                None => format!("library/{name}"),
            };
            return Err(ImageError::Invalid(format!(
                "invalid reference format: repository name ({path}) must be lowercase"
            )));
        }
        if !is_name(&name) {
            return Err(bad());
        }
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { name, tag, digest })
    }

    /// Whether the text itself names a tag.
    #[must_use]
    pub fn has_tag(text: &str) -> bool {
        let name = text.split('@').next().unwrap_or(text);
        name.rsplit_once(':').is_some_and(|(_, tag)| !tag.contains('/'))
    }

    /// A familiar name with registry and all: `docker.io/library/busybox:latest`.
    #[must_use]
    pub fn canonical(familiar: &str) -> String {
        let host = familiar.split_once('/').map(|(host, _)| host);
        match host {
            Some(host) if host.contains(['.', ':']) || host == "localhost" => familiar.to_owned(),
            Some(_) => format!("docker.io/{familiar}"),
            None => format!("docker.io/library/{familiar}"),
        }
    }

    /// `name:tag`, the form kept in the index. None for a pure digest reference.
    #[must_use]
    pub fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.name))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn familiar(name: &str) -> String {
    let name = name.strip_prefix("docker.io/").or_else(|| name.strip_prefix("index.docker.io/")).unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name).to_owned()
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_tag(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    first && text.len() <= 128 && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_name(name: &str) -> bool {
    let mut parts = name.split('/').peekable();
    if name.contains('/') && parts.peek().is_some_and(|host| host.contains(['.', ':']) || *host == "localhost") {
        let host = parts.next().unwrap_or_default();
        if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':')) {
            return false;
        }
    }
    !name.is_empty() && name.len() <= 255 && parts.all(is_path_component)
}

/// Lower-case letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends_well = bytes.first().copied().is_some_and(alphanumeric) && bytes.last().copied().is_some_and(alphanumeric);
    let separators = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends_well && separators.into_iter().all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn familiar_names_and_default_tags() {
        for (text, expected) in [
            ("busybox", "busybox:latest"),
            ("docker.io/library/busybox:1", "busybox:1"),
            ("docker.io/a/b", "a/b:latest"),
            ("localhost:5000/x_y/z--w:T.1", "localhost:5000/x_y/z--w:T.1"),
        ] {
            assert_eq!(Reference::parse(text).expect(text).to_string(), expected);
        }
        let digest = format!("busybox@sha256:{}", "a".repeat(64));
        assert_eq!(Reference::parse(&digest).expect("digest").to_string(), digest);
    }

    #[test]
    fn what_docker_refuses_is_refused_in_its_words() {
        for bad in ["", ":", "a:", "a b", "-a", "a/", "/a", "a..b", "a___b", "a@sha256:12", "a:b:c/d@", "é"] {
            let error = Reference::parse(bad).expect_err(bad);
            assert_eq!(error.to_string(), "invalid reference format", "{bad}");
        }
        let error = Reference::parse("BusyBox").expect_err("upper case");
        assert_eq!(error.to_string(), "invalid reference format: repository name (library/BusyBox) must be lowercase");
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics_and_what_it_prints_parses_again(text in ".{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                proptest::prop_assert_eq!(Reference::parse(&reference.to_string()).ok(), Some(reference));
            }
        }
    }
}
