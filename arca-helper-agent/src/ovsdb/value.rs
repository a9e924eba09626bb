// SPDX-License-Identifier: Apache-2.0
//! Atoms and values of OVSDB (RFC 7047 section 5.1) and their JSON form.
//!
//! A column holds a set or a map; a plain value is a set of one, and is written as the bare atom on the wire.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde_json::{Value as Json, json};

use super::Error;

/// Identity of a row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid(u128);

impl Uuid {
    /// The all-zero id, default of a mandatory reference column.
    pub const ZERO: Self = Self(0);

    /// From its 128 bits.
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let h = format!("{:032x}", self.0);
        write!(f, "{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let bad = || Error::Protocol(format!("not a uuid: {s:?}"));
        let b = s.as_bytes();
        if b.len() != 36 {
            return Err(bad());
        }
        let mut bits = 0u128;
        for (i, c) in b.iter().enumerate() {
            if matches!(i, 8 | 13 | 18 | 23) {
                if *c != b'-' {
                    return Err(bad());
                }
                continue;
            }
            let digit = char::from(*c).to_digit(16).ok_or_else(bad)?;
            bits = bits << 4 | u128::from(digit);
        }
        Ok(Self(bits))
    }
}

/// A single value.
#[derive(Clone, Debug)]
pub enum Atom {
    /// Signed 64-bit integer.
    Integer(i64),
    /// Floating point number.
    Real(f64),
    /// Truth value.
    Boolean(bool),
    /// Text.
    String(String),
    /// Reference to a row.
    Uuid(Uuid),
    /// Reference to a row that an insert of the same transaction names so.
    Named(String),
}

impl Atom {
    /// Reference to the row an earlier or later insert of the same transaction calls `name`.
    pub fn named(name: impl Into<String>) -> Self {
        Self::Named(name.into())
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Integer(_) => 0,
            Self::Real(_) => 1,
            Self::Boolean(_) => 2,
            Self::String(_) => 3,
            Self::Uuid(_) => 4,
            Self::Named(_) => 5,
        }
    }

    /// JSON form.
    pub fn to_json(&self) -> Json {
        match self {
            Self::Integer(i) => json!(i),
            Self::Real(r) => json!(r),
            Self::Boolean(b) => json!(b),
            Self::String(s) => json!(s),
            Self::Uuid(u) => json!(["uuid", u.to_string()]),
            Self::Named(n) => json!(["named-uuid", n]),
        }
    }

    /// From its JSON form.
    pub fn from_json(json: &Json) -> Result<Self, Error> {
        let bad = || Error::Protocol(format!("not an atom: {json}"));
        Ok(match json {
            Json::String(s) => Self::String(s.clone()),
            Json::Bool(b) => Self::Boolean(*b),
            Json::Number(n) => match n.as_i64() {
                Some(i) => Self::Integer(i),
                None => Self::Real(n.as_f64().ok_or_else(bad)?),
            },
            Json::Array(pair) => match pair.as_slice() {
                [Json::String(kind), Json::String(text)] if kind == "uuid" => Self::Uuid(text.parse()?),
                [Json::String(kind), Json::String(text)] if kind == "named-uuid" => Self::Named(text.clone()),
                _ => return Err(bad()),
            },
            Json::Null | Json::Object(_) => return Err(bad()),
        })
    }
}

impl PartialEq for Atom {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Atom {}
impl PartialOrd for Atom {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Atom {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            (Self::Real(a), Self::Real(b)) => a.total_cmp(b),
            (Self::Boolean(a), Self::Boolean(b)) => a.cmp(b),
            (Self::String(a), Self::String(b)) | (Self::Named(a), Self::Named(b)) => a.cmp(b),
            (Self::Uuid(a), Self::Uuid(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl From<&str> for Atom {
    fn from(s: &str) -> Self {
        Self::String(s.to_owned())
    }
}
impl From<String> for Atom {
    fn from(s: String) -> Self {
        Self::String(s)
    }
}
impl From<&String> for Atom {
    fn from(s: &String) -> Self {
        Self::String(s.clone())
    }
}
impl From<i64> for Atom {
    fn from(i: i64) -> Self {
        Self::Integer(i)
    }
}
impl From<bool> for Atom {
    fn from(b: bool) -> Self {
        Self::Boolean(b)
    }
}
impl From<Uuid> for Atom {
    fn from(u: Uuid) -> Self {
        Self::Uuid(u)
    }
}

/// Content of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A set; a plain value is a set of one.
    Set(BTreeSet<Atom>),
    /// A map.
    Map(BTreeMap<Atom, Atom>),
}

impl Value {
    /// The empty set, also "no value" of an optional column.
    pub fn empty() -> Self {
        Self::Set(BTreeSet::new())
    }

    /// A set of atoms.
    pub fn set<A: Into<Atom>>(atoms: impl IntoIterator<Item = A>) -> Self {
        Self::Set(atoms.into_iter().map(Into::into).collect())
    }

    /// A map of atoms.
    pub fn map<K: Into<Atom>, V: Into<Atom>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self::Map(pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }

    /// The only element of a set of one.
    pub fn as_atom(&self) -> Option<&Atom> {
        match self {
            Self::Set(set) if set.len() == 1 => set.first(),
            _ => None,
        }
    }

    /// The text of a plain string.
    pub fn as_str(&self) -> Option<&str> {
        match self.as_atom() {
            Some(Atom::String(s)) => Some(s),
            _ => None,
        }
    }

    /// A plain integer.
    pub fn as_integer(&self) -> Option<i64> {
        match self.as_atom() {
            Some(Atom::Integer(i)) => Some(*i),
            _ => None,
        }
    }

    /// A plain truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self.as_atom() {
            Some(Atom::Boolean(b)) => Some(*b),
            _ => None,
        }
    }

    /// A plain reference.
    pub fn as_uuid(&self) -> Option<Uuid> {
        match self.as_atom() {
            Some(Atom::Uuid(u)) => Some(*u),
            _ => None,
        }
    }

    /// The strings of a set.
    pub fn strings(&self) -> impl Iterator<Item = &str> {
        self.atoms().filter_map(|a| match a {
            Atom::String(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// The references of a set.
    pub fn uuids(&self) -> impl Iterator<Item = Uuid> {
        self.atoms().filter_map(|a| match a {
            Atom::Uuid(u) => Some(*u),
            _ => None,
        })
    }

    /// The elements of a set; nothing for a map.
    pub fn atoms(&self) -> impl Iterator<Item = &Atom> {
        match self {
            Self::Set(set) => Some(set.iter()),
            Self::Map(_) => None,
        }
        .into_iter()
        .flatten()
    }

    /// The text at `key` of a map of strings.
    pub fn get(&self, key: &str) -> Option<&str> {
        match self {
            Self::Map(map) => match map.get(&Atom::from(key)) {
                Some(Atom::String(s)) => Some(s),
                _ => None,
            },
            Self::Set(_) => None,
        }
    }

    /// The pairs of a map of strings.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        match self {
            Self::Map(map) => Some(map.iter()),
            Self::Set(_) => None,
        }
        .into_iter()
        .flatten()
        .filter_map(|pair| match pair {
            (Atom::String(k), Atom::String(v)) => Some((k.as_str(), v.as_str())),
            _ => None,
        })
    }

    /// True for an empty set and an empty map.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Set(set) => set.is_empty(),
            Self::Map(map) => map.is_empty(),
        }
    }

    /// JSON form.
    pub fn to_json(&self) -> Json {
        match self {
            Self::Set(set) => match self.as_atom() {
                Some(atom) => atom.to_json(),
                None => json!(["set", set.iter().map(Atom::to_json).collect::<Vec<_>>()]),
            },
            Self::Map(map) => {
                json!(["map", map.iter().map(|(k, v)| json!([k.to_json(), v.to_json()])).collect::<Vec<_>>()])
            }
        }
    }

    /// From its JSON form.
    pub fn from_json(json: &Json) -> Result<Self, Error> {
        if let Json::Array(pair) = json
            && let [Json::String(kind), Json::Array(items)] = pair.as_slice()
        {
            match kind.as_str() {
                "set" => return Ok(Self::Set(items.iter().map(Atom::from_json).collect::<Result<_, _>>()?)),
                "map" => {
                    let pair = |item: &Json| match item.as_array().map(Vec::as_slice) {
                        Some([k, v]) => Ok((Atom::from_json(k)?, Atom::from_json(v)?)),
                        _ => Err(Error::Protocol(format!("not a pair of a map: {item}"))),
                    };
                    return Ok(Self::Map(items.iter().map(pair).collect::<Result<_, _>>()?));
                }
                _ => {}
            }
        }
        Ok(Self::Set(BTreeSet::from([Atom::from_json(json)?])))
    }

    /// Applies the symmetric difference that `update2` and `update3` send for sets and maps: an element that is there
    /// goes, one that is not comes; a key with another value gets the new one.
    pub fn apply_diff(&mut self, diff: &Self) -> Result<(), Error> {
        match (self, diff) {
            (Self::Set(set), Self::Set(diff)) => {
                for atom in diff {
                    if !set.remove(atom) {
                        set.insert(atom.clone());
                    }
                }
            }
            (Self::Map(map), Self::Map(diff)) => {
                for (key, value) in diff {
                    if map.get(key) == Some(value) {
                        map.remove(key);
                    } else {
                        map.insert(key.clone(), value.clone());
                    }
                }
            }
            _ => return Err(Error::Protocol("a difference of another type than its column".into())),
        }
        Ok(())
    }
}

impl<A: Into<Atom>> From<A> for Value {
    fn from(atom: A) -> Self {
        Self::Set(BTreeSet::from([atom.into()]))
    }
}
impl From<&BTreeMap<String, String>> for Value {
    fn from(map: &BTreeMap<String, String>) -> Self {
        Self::map(map)
    }
}
