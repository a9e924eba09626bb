// SPDX-License-Identifier: Apache-2.0
//! The store on a real disk: load, share, tag, remove, crash leftovers, bad input.

use std::io::Write as _;

use sha2::{Digest as _, Sha256};

use super::*;

fn layer_tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        builder.append_data(&mut header, path, *data).expect("append");
    }
    builder.into_inner().expect("in memory")
}

fn docker_archive(layers: &[Vec<u8>], tags: &[&str], cmd: &str) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", hex(&Sha256::digest(layer)))).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z", "config": {"Cmd": [cmd]},
        "rootfs": {"type": "layers", "diff_ids": ids}, "history": [],
    })
    .to_string();
    let names: Vec<String> = (0..layers.len()).map(|i| format!("{i}/layer.tar")).collect();
    let manifest = serde_json::json!([{"Config": "c.json", "RepoTags": tags, "Layers": names}]).to_string();
    let mut files: Vec<(&str, &[u8])> = vec![("manifest.json", manifest.as_bytes()), ("c.json", config.as_bytes())];
    files.extend(names.iter().map(String::as_str).zip(layers.iter().map(Vec::as_slice)));
    layer_tar(&files)
}

fn store() -> (tempfile::TempDir, Store) {
    let root = tempfile::tempdir().expect("temporary directory");
    let store = Store::open(root.path()).expect("open");
    (root, store)
}

fn load(store: &Store, archive: Vec<u8>) -> Result<Vec<String>, ImageError> {
    store.load(std::io::Cursor::new(archive), &mut |_| {})
}

#[test]
fn what_is_loaded_can_be_resolved_and_its_topmost_layer_comes_first() {
    let (root, store) = store();
    let archive = docker_archive(&[layer_tar(&[("a", b"1")]), layer_tar(&[("b", b"22")])], &["x:1"], "sh");
    assert_eq!(load(&store, archive).expect("load"), ["Loaded image: x:1"]);
    let image = store.resolve("x:1").expect("by name");
    assert_eq!(image.size, 3);
    assert_eq!(fs::read(image.layers[0].join("b")).expect("top layer"), b"22");
    assert_eq!(store.resolve(&image.id[7..19]).expect("by prefix").id, image.id);
    let again = Store::open(root.path()).expect("reopen");
    assert_eq!(again.resolve("x:1").expect("survives").id, image.id);
    assert_eq!(store.resolve("x").expect_err("no latest").to_string(), "No such image: x:latest");
}

#[test]
fn gzip_archives_and_oci_layouts_load_too() {
    let (_root, store) = store();
    let layer = layer_tar(&[("a", b"1")]);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    };
    load(&store, gzip(&docker_archive(std::slice::from_ref(&layer), &["gz:1"], "sh"))).expect("gzip");
    let digest = |bytes: &[u8]| format!("sha256:{}", hex(&Sha256::digest(bytes)));
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}})
    .to_string();
    let packed = gzip(&layer);
    let manifest = serde_json::json!({"config": {"digest": digest(config.as_bytes())},
        "layers": [{"digest": digest(&packed)}]})
    .to_string();
    let index = serde_json::json!({"manifests": [{"digest": digest(manifest.as_bytes()),
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "annotations": {"org.opencontainers.image.ref.name": "oci:2"}}]})
    .to_string();
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", &digest(bytes)[7..]);
    let (c, m, l) = (blob(config.as_bytes()), blob(manifest.as_bytes()), blob(&packed));
    let files: [(&str, &[u8]); 4] =
        [("index.json", index.as_bytes()), (&c, config.as_bytes()), (&m, manifest.as_bytes()), (&l, &packed)];
    load(&store, layer_tar(&files)).expect("oci");
    assert_eq!(store.resolve("oci:2").expect("named").diff_ids, store.resolve("gz:1").expect("named").diff_ids);
}

#[test]
fn a_layer_whose_content_is_not_what_the_config_says_adds_nothing() {
    let (root, store) = store();
    let mut archive = docker_archive(&[layer_tar(&[("a", b"original")])], &["x:1"], "sh");
    let at = archive.windows(8).position(|w| w == b"original").expect("content");
    archive[at] = b'O';
    let error = load(&store, archive).expect_err("mismatch");
    assert!(error.to_string().starts_with("layer digest mismatch"), "{error}");
    assert!(store.list().expect("list").is_empty());
    for folder in ["layers", "tmp", "blobs/sha256"] {
        assert_eq!(fs::read_dir(root.path().join(folder)).expect(folder).count(), 0, "{folder}");
    }
}

#[test]
fn removal_speaks_docker_and_shared_layers_stay() {
    let (root, store) = store();
    let (base, top) = (layer_tar(&[("a", b"1")]), layer_tar(&[("b", b"2")]));
    load(&store, docker_archive(std::slice::from_ref(&base), &["base:1"], "sh")).expect("base");
    load(&store, docker_archive(&[base, top], &["x:1", "x:2"], "sh")).expect("x");
    let id = store.resolve("x:1").expect("x").id;
    let short = id[7..19].to_owned();
    let user = |running| ImageUser { container_id: "c".repeat(64), image_id: id.clone(), running };
    let conflict = |reference: &str, force, users: &[ImageUser]| {
        store.remove(reference, force, true, users).expect_err("conflict").to_string()
    };
    assert_eq!(
        conflict(&short, false, &[]),
        format!("conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories")
    );
    assert!(conflict(&short, true, &[user(true)]).contains("(cannot be forced) - image is being used by running"));
    assert_eq!(store.remove("x:2", false, true, &[]).expect("untag"), [Removed::Untagged("x:2".to_owned())]);
    assert!(conflict("x:1", false, &[user(false)]).starts_with(
        "conflict: unable to remove repository reference \"x:1\" (must force) - container cccccccccccc is using"
    ));
    let removed = store.remove("x:1", false, true, &[]).expect("remove");
    assert_eq!(removed.len(), 3, "name, image, its own layer: {removed:?}");
    assert_eq!(fs::read_dir(root.path().join("layers")).expect("layers").count(), 1, "the shared layer stays");
    store.resolve("base:1").expect("untouched");
    assert_eq!(store.remove("x:1", false, true, &[]).expect_err("gone").status(), 404);
}

#[test]
fn an_imported_tar_is_an_image_with_its_changes() {
    let (_root, store) = store();
    let tar = layer_tar(&[("bin/sh", b"#!")]);
    let id = store
        .import(std::io::Cursor::new(tar), Some("imp"), "hello", None, &["CMD [\"sh\"]".to_owned()])
        .expect("import");
    let image = store.resolve("imp:latest").expect("named");
    assert_eq!(image.id, id);
    assert_eq!(image.raw_config().pointer("/config/Cmd/0").and_then(|c| c.as_str()), Some("sh"));
    store.tag("imp", "other:3").expect("tag");
    assert_eq!(store.resolve("other:3").expect("tagged").repo_tags, ["imp:latest", "other:3"]);
}

#[test]
fn what_was_loaded_is_saved_bit_for_bit_also_after_it_was_compressed() {
    let (_root, store) = store();
    let layers = [layer_tar(&[("a", b"1")]), layer_tar(&[("b", &[7; 9000])])];
    load(&store, docker_archive(&layers, &["x:1", "x:2"], "sh")).expect("load");
    let id = store.resolve("x:1").expect("there").id;
    let save = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut archive = Vec::new();
        store.save(&store.to_save(&names).expect("found"), &mut archive).expect("save");
        archive
    };
    let plain = save(&["x"]);
    let top = store.resolve("x:1").expect("there").diff_ids[1].clone();
    let (packed, file) = store.compressed_blob(&top).expect("compress");
    assert_eq!(packed.compression, Compression::Gzip);
    assert_eq!(format!("sha256:{}", hex(&Sha256::digest(fs::read(file).expect("blob")))), packed.digest);
    assert_eq!(store.compressed_blob(&top).expect("again").0, packed, "compressed once");
    assert_eq!(save(&["x:1", "x:2"]), plain, "all tags of a repository");
    let (other_root, other) = self::store();
    assert_eq!(load(&other, plain).expect("it is an archive"), ["Loaded image: x:1", "Loaded image: x:2"]);
    assert_eq!(other.resolve("x:2").expect("there").id, id);
    other.remove("x", true, true, &[]).expect_err("no latest");
    drop(other_root);
    let nameless = save(&[&id]);
    let (_root, third) = self::store();
    assert_eq!(load(&third, nameless).expect("without a name"), [format!("Loaded image ID: {id}")]);
    assert!(store.to_save(&["nope".to_owned()]).is_err());
}

#[test]
fn a_tar_that_the_format_cannot_say_is_refused_and_attributes_and_links_arrive() {
    let (_root, store) = store();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("GNU.sparse.major", &b"1"[..])]).expect("extension");
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_uid(0);
    header.set_gid(0);
    builder.append_data(&mut header, "GNUSparseFile.0/f", &b"x"[..]).expect("append");
    let sparse = builder.into_inner().expect("in memory");
    let error = store.import(std::io::Cursor::new(sparse), None, "", None, &[]).expect_err("sparse");
    assert!(error.to_string().contains("sparse form"), "{error}");

    let long = format!("d/{}", "n".repeat(200));
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("SCHILY.xattr.user.mark", &b"yes"[..])]).expect("extension");
    header.set_mode(0o4755);
    header.set_uid(0);
    header.set_gid(0);
    builder.append_data(&mut header, &long, &b"x"[..]).expect("append");
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Link);
    builder.append_link(&mut header, "second", &long).expect("link");
    let tar = builder.into_inner().expect("in memory");
    let id = store.import(std::io::Cursor::new(tar), Some("attrs"), "", None, &[]).expect("import");
    let layer = store.resolve(&id).expect("there").layers[0].clone();
    let (one, two) =
        (fs::metadata(layer.join(&long)).expect("long"), fs::metadata(layer.join("second")).expect("link"));
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!((one.ino(), one.mode() & 0o7777), (two.ino(), 0o4755));
    let mark = xattr::get(layer.join(&long), "user.mark").expect("attributes");
    assert_eq!(mark.as_deref(), Some(&b"yes"[..]));
}

#[test]
fn parents_go_with_their_child_and_a_removed_image_stays_for_its_containers() {
    let (root, store) = store();
    load(&store, docker_archive(&[layer_tar(&[("a", b"1")])], &["base:1"], "sh")).expect("base");
    let base = store.resolve("base:1").expect("base");
    let child = |cmd: &str, parent: &str| {
        let mut config = base.raw_config().clone();
        config["config"]["Cmd"] = serde_json::json!([cmd]);
        let text = config.to_string();
        let new = NewImage { config: text.as_bytes(), parent: parent.to_owned(), ..NewImage::default() };
        store.add_image(&new).expect("child")
    };
    let (one, two) = {
        let one = child("one", &base.id);
        let two = child("two", &one);
        (one, two)
    };
    let error = store.remove(&one, true, true, &[]).expect_err("has a child").to_string();
    assert!(error.ends_with("(cannot be forced) - image has dependent child images"), "{error}");
    let user = ImageUser { container_id: "c".repeat(64), image_id: two.clone(), running: false };
    let removed = store.remove(&two, true, true, std::slice::from_ref(&user)).expect("forced");
    assert_eq!(removed, [Removed::Deleted(two.clone()), Removed::Deleted(one)], "the nameless parent goes too");
    assert_eq!(store.resolve(&two).expect_err("gone").status(), 404);
    store.remove("base:1", false, true, std::slice::from_ref(&user)).expect("nobody uses this one");
    let count = |folder: &str| fs::read_dir(root.path().join(folder)).expect(folder).count();
    assert_eq!((count("layers"), count("blobs/sha256")), (1, 1), "the container still stands on it");
    store.sweep(&[user]).expect("sweep");
    assert_eq!(count("layers"), 1);
    store.sweep(&[]).expect("sweep");
    assert_eq!((count("layers"), count("blobs/sha256")), (0, 0));
}

#[test]
fn leftovers_of_a_crash_are_cleared_when_the_store_opens() {
    let (root, store) = store();
    drop(store);
    fs::create_dir(root.path().join("tmp/half")).expect("leftover");
    fs::create_dir_all(root.path().join("layers/unnamed/diff")).expect("leftover");
    fs::write(root.path().join("blobs/sha256/unnamed"), "{}").expect("leftover");
    fs::write(root.path().join("partial/begun"), "x").expect("partial");
    Store::open(root.path()).expect("open");
    for folder in ["tmp", "layers", "blobs/sha256"] {
        assert_eq!(fs::read_dir(root.path().join(folder)).expect(folder).count(), 0, "{folder}");
    }
    assert!(root.path().join("partial/begun").exists(), "the next pull goes on with it");
}
