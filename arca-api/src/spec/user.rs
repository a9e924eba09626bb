// SPDX-License-Identifier: Apache-2.0
//! `USER` and `--user`: names are looked up in the container's own /etc/passwd and /etc/group.
//!
//! The files are read from the host, through the container's writable folder and its layers, topmost first. A symbolic
//! link there could lead out of the container, so links are not followed: such a file counts as absent.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::SpecError;

/// A file larger than this is no account file.
const LARGEST: u64 = 4 << 20;

/// Greatest user or group id.
const MOST: u64 = 2_147_483_647;

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) additional: Vec<u32>,
    /// Home folder for `HOME`, "/" if unknown.
    pub(super) home: String,
}

struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Resolves `user[:group]` and `--group-add`.
pub(super) fn resolve(text: &str, group_add: &[String], root: &[PathBuf]) -> Result<User, SpecError> {
    let accounts = accounts(&read(root, Path::new("etc/passwd")));
    let groups = groups(&read(root, Path::new("etc/group")));
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let in_range = |text: &str| text.parse::<u64>().is_ok_and(|id| id > MOST);
    if in_range(user) || group.is_some_and(in_range) {
        return Err(SpecError(format!("uids and gids must be in range 0-{MOST}")));
    }
    let number = user.parse::<u32>().ok();
    let account = match (user, number) {
        ("", _) => accounts.iter().find(|account| account.uid == 0),
        (_, Some(uid)) => accounts.iter().find(|account| account.uid == uid),
        (name, None) => Some(
            accounts
                .iter()
                .find(|account| account.name == name)
                .ok_or_else(|| SpecError(format!("unable to find user {name}: no matching entries in passwd file")))?,
        ),
    };
    let uid = account.map_or(number.unwrap_or(0), |account| account.uid);
    let mut gid = account.map_or(0, |account| account.gid);
    if let Some(group) = group.filter(|group| !group.is_empty()) {
        gid = group_id(group, &groups)?;
    }
    // As Docker: memberships count only when no group was named.
    let mut additional: Vec<u32> = Vec::new();
    if let (Some(account), None) = (account, group) {
        let member = |group: &&Group| group.members.contains(&account.name);
        additional.extend(groups.iter().filter(member).map(|group| group.gid));
    }
    // Its own group too: a process that loses it by set-gid must not gain what is denied to that group.
    additional.push(gid);
    for group in group_add {
        additional.push(group_id(group, &groups)?);
    }
    additional.sort_unstable();
    additional.dedup();
    let home = account.map(|account| account.home.clone()).filter(|home| !home.is_empty());
    Ok(User { uid, gid, additional, home: home.unwrap_or_else(|| "/".to_owned()) })
}

fn group_id(text: &str, groups: &[Group]) -> Result<u32, SpecError> {
    if let Ok(gid) = text.parse() {
        return Ok(gid);
    }
    let found = groups.iter().find(|group| group.name == text).map(|group| group.gid);
    found.ok_or_else(|| SpecError(format!("unable to find group {text}: no matching entries in group file")))
}

fn accounts(text: &str) -> Vec<Account> {
    let parse = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or_default().to_owned() })
    };
    text.lines().filter_map(parse).collect()
}

fn groups(text: &str) -> Vec<Group> {
    let parse = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
        let gid = fields.nth(1)?.parse().ok()?;
        let members = fields.next().unwrap_or_default().split(',').filter(|m| !m.is_empty()).map(str::to_owned);
        Some(Group { name, gid, members: members.collect() })
    };
    text.lines().filter_map(parse).collect()
}

/// The topmost version of a file, or nothing.
fn read(root: &[PathBuf], path: &Path) -> String {
    for layer in root {
        let directory = layer.join(path.parent().unwrap_or(Path::new("")));
        let plain = |place: &Path| fs::symlink_metadata(place).map(|metadata| metadata.is_dir());
        match plain(&directory) {
            Ok(true) => {}
            Ok(false) => return String::new(), // a link, or hidden by a whiteout
            Err(_) => continue,
        }
        let place = layer.join(path);
        let Ok(metadata) = fs::symlink_metadata(&place) else { continue };
        if !metadata.is_file() {
            return String::new();
        }
        let open = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(&place);
        let mut text = Vec::new();
        let read = open.and_then(|file| file.take(LARGEST).read_to_end(&mut text));
        return read.map(|_| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default();
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, Vec<PathBuf>) {
        let root = tempfile::tempdir().expect("temporary directory");
        for (layer, passwd) in [("upper", None), ("lower", Some("root:x:0:0:r:/root:/bin/sh\nbob:x:7:8::/home/bob:\n"))]
        {
            let etc = root.path().join(layer).join("etc");
            fs::create_dir_all(&etc).expect("create");
            if let Some(passwd) = passwd {
                fs::write(etc.join("passwd"), passwd).expect("write");
                fs::write(etc.join("group"), "root:x:0:\nbobs:x:8:\naudio:x:29:bob,x\n:bad\nx\n").expect("write");
            }
        }
        let layers = vec![root.path().join("upper"), root.path().join("lower")];
        (root, layers)
    }

    #[test]
    fn names_numbers_and_groups() {
        let (_keep, root) = root();
        let user = |text: &str, add: &[&str]| {
            let add: Vec<String> = add.iter().map(|&text| text.to_owned()).collect();
            resolve(text, &add, &root)
        };
        let bob = User { uid: 7, gid: 8, additional: vec![8, 29], home: "/home/bob".into() };
        assert_eq!(user("bob", &[]), Ok(bob.clone()));
        assert_eq!(user("7", &[]), Ok(bob));
        assert_eq!(
            user("bob:audio", &["5"]),
            Ok(User { uid: 7, gid: 29, additional: vec![5, 29], home: "/home/bob".into() })
        );
        assert_eq!(user("4000", &[]), Ok(User { uid: 4000, gid: 0, additional: vec![0], home: "/".into() }));
        assert_eq!(user("", &[]).map(|user| user.home), Ok("/root".into()));
        assert_eq!(
            user("eve", &[]).expect_err("unknown").0,
            "unable to find user eve: no matching entries in passwd file"
        );
        assert_eq!(
            user("bob:x", &[]).expect_err("unknown").0,
            "unable to find group x: no matching entries in group file"
        );
    }

    #[test]
    fn a_link_that_leads_out_of_the_container_is_not_followed() {
        let (keep, root) = root();
        let secret = keep.path().join("secret");
        fs::write(&secret, "eve:x:0:0:::\n").expect("write");
        std::os::unix::fs::symlink(&secret, root[0].join("etc/passwd")).expect("link");
        assert!(resolve("eve", &[], &root).is_err());
    }
}
