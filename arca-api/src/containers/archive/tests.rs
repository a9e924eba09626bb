// SPDX-License-Identifier: Apache-2.0
//! Paths, facts and hostile archives; the thread that enters a container is tested end to end.

use super::*;

fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, text) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().expect("gnu").name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o640 });
        header.set_mtime(5);
        header.set_uid(u64::from(nix::unistd::getuid().as_raw()));
        header.set_gid(u64::from(nix::unistd::getgid().as_raw()));
        header.set_size(0);
        let data = if kind.is_symlink() {
            header.set_link_name_literal(text).expect("link");
            &b""[..]
        } else {
            header.set_size(text.len() as u64);
            text.as_bytes()
        };
        header.set_cksum();
        builder.append(&header, data).expect("append");
    }
    builder.into_inner().expect("in memory")
}

#[test]
fn paths_are_taken_as_in_go() {
    for (path, whole, through) in [
        ("etc/passwd", "/etc/passwd", false),
        ("/a/../../b", "/b", false),
        ("/a/./b/", "/a/b", true),
        ("/a/.", "/a", true),
        ("/", "/", true),
        ("", "/", true),
    ] {
        assert_eq!((clean(path), follows(path)), (PathBuf::from(whole), through), "{path}");
    }
    assert_eq!(base(Path::new("/")), "/");
}

#[test]
fn facts_are_those_of_the_last_name() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    fs::create_dir(at("d")).expect("folder");
    fs::write(at("d/f"), "12345").expect("file");
    std::os::unix::fs::symlink("d", at("l")).expect("link");
    let facts_of = |name: &str| facts(&at(name)).expect("facts");
    let file = facts_of("d/f");
    assert_eq!(
        (file["name"].as_str(), file["size"].as_u64(), file["linkTarget"].as_str()),
        (Some("f"), Some(5), Some(""))
    );
    let link = facts_of("l");
    assert_eq!(link["mode"].as_u64().expect("mode") & 1 << 27, 1 << 27);
    assert!(link["linkTarget"].as_str().expect("target").ends_with("/d"));
    let through = facts_of("l/");
    assert_eq!((through["name"].as_str(), through["mode"].as_u64().expect("mode") >> 31), (Some("l"), 1));
    assert!(facts(&at("nope")).is_err() && facts(&at("d/f/")).is_err());
}

#[test]
fn an_archive_is_unpacked_and_what_it_replaces_goes() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let root = fs::canonicalize(folder.path()).expect("path");
    let file = tar::EntryType::Regular;
    let good =
        archive(&[("d/", tar::EntryType::Directory, ""), ("d/f", file, "one"), ("l", tar::EntryType::Symlink, "d/f")]);
    unpack(&good[..], &root, false, None).expect("unpack");
    assert_eq!(fs::read_to_string(root.join("l")).expect("through the link"), "one");
    assert_eq!(fs::metadata(root.join("d/f")).expect("file").mtime(), 5);
    // Another file takes the link's place, not that of what it leads to.
    unpack(&archive(&[("l", file, "two")])[..], &root, false, None).expect("unpack");
    assert_eq!(fs::read_to_string(root.join("d/f")).expect("file"), "one");
    assert_eq!(fs::read_to_string(root.join("l")).expect("file"), "two");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&archive(&[("z", file, "three")])).expect("compress");
    unpack(&packed.finish().expect("compress")[..], &root, false, None).expect("unpack");
    assert_eq!(fs::read_to_string(root.join("z")).expect("file"), "three");
}

#[test]
fn what_must_not_be_replaced_or_left_is_refused() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let root = fs::canonicalize(folder.path()).expect("path").join("in");
    fs::create_dir_all(root.join("d")).expect("folder");
    fs::write(root.join("f"), "").expect("file");
    let refused = |entries: &[(&str, tar::EntryType, &str)]| {
        unpack(&archive(entries)[..], &root, true, None).expect_err("must be refused")
    };
    let file = tar::EntryType::Regular;
    assert!(refused(&[("d", file, "x")]).starts_with("cannot overwrite directory"));
    assert!(refused(&[("f/", tar::EntryType::Directory, "")]).starts_with("cannot overwrite non-directory"));
    assert!(refused(&[("../evil", file, "x")]).ends_with(&format!("is outside of {root:?}")));
    refused(&[("out", tar::EntryType::Symlink, "/tmp"), ("out/evil-of-a-test", file, "x")]);
    assert!(!Path::new("/tmp/evil-of-a-test").exists() && !folder.path().join("evil").exists());
    assert!(unpack(&[7u8; 2000][..], &root, false, None).is_err());
}

#[test]
fn names_travel_as_they_are() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let long = "long-name-".repeat(12);
    fs::create_dir(folder.path().join("d")).expect("folder");
    fs::write(folder.path().join("d").join(&long), "text").expect("file");
    std::os::unix::fs::symlink(format!("/{long}"), folder.path().join("d/link")).expect("link");
    let (pieces, mut stream) = mpsc::channel(64);
    let path = format!("{}/d/.", folder.path().display());
    send(&pieces, |out| pack(out, &path));
    let mut bytes = Vec::new();
    while let Ok(piece) = stream.try_recv() {
        bytes.extend(piece.expect("no error"));
    }
    let mut archive = tar::Archive::new(&bytes[..]);
    let mut seen = Vec::new();
    for entry in archive.entries().expect("entries") {
        let mut entry = entry.expect("entry");
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let link = entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned()).unwrap_or_default();
        let mut text = String::new();
        entry.read_to_string(&mut text).expect("data");
        seen.push((name, link, text));
    }
    let of = |name: &str, link: &str, text: &str| (name.to_owned(), link.to_owned(), text.to_owned());
    assert_eq!(seen, [of("./", "", ""), of("./link", &format!("/{long}"), ""), of(&format!("./{long}"), "", "text")]);
}
