// SPDX-License-Identifier: Apache-2.0
//! What of the host the guest sees: one virtiofs share with a folder for each thing exposed. The set may grow while the
//! machine runs. Pure but for the links of single files.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Tag of the share.
pub const TAG: &str = "arca";
/// Where the guest mounts it.
const GUEST: &str = "/arca";

/// One folder of the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Folder {
    /// On the host.
    pub path: PathBuf,
    /// The guest may not write.
    pub read_only: bool,
}

/// All that is exposed.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    names: BTreeMap<Folder, u64>,
    next: u64,
    /// Folders of links to single files.
    files: PathBuf,
}

impl Shares {
    /// None yet; `files` is a folder of the machine's own, made when it is needed.
    #[must_use]
    pub fn new(files: PathBuf) -> Self {
        Self { names: BTreeMap::new(), next: 0, files }
    }

    /// By name in the share.
    pub fn folders(&self) -> impl Iterator<Item = (String, &Folder)> {
        self.names.iter().map(|(folder, name)| (name.to_string(), folder))
    }

    /// Exposes a folder or a file; gives its path in the guest. The same thing asked for twice is there once.
    ///
    /// # Errors
    /// It is not there, or is a file that cannot be linked to.
    pub fn expose(&mut self, path: &Path, read_only: bool) -> io::Result<PathBuf> {
        let path = fs::canonicalize(path)?;
        if path.is_dir() {
            return Ok(self.folder(Folder { path, read_only }));
        }
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let folder = self.folder_of(&path, &name)?;
        Ok(self.folder(Folder { path: folder, read_only }).join(name))
    }

    fn folder(&mut self, folder: Folder) -> PathBuf {
        let next = &mut self.next;
        let name = self.names.entry(folder).or_insert_with(|| {
            *next += 1;
            *next
        });
        Path::new(GUEST).join(name.to_string())
    }

    /// The framework shares folders only. A file is linked into one of its own: what lies beside it stays unseen, and as with a
    /// bind mount it is the file that is meant, not its name. Across file systems there are no links; then the folder it lies in
    /// must do.
    fn folder_of(&self, path: &Path, name: &std::ffi::OsStr) -> io::Result<PathBuf> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = fs::metadata(path)?;
        let own = self.files.join(format!("{:x}-{:x}", metadata.dev(), metadata.ino()));
        fs::create_dir_all(&own)?;
        match fs::hard_link(path, own.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(own),
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
                tracing::warn!(path = %path.display(), "the guest gets to see the whole folder of a file on another volume");
                Ok(parent.to_path_buf())
            }
            linked => linked.map(|()| own),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_there_once_and_files_without_their_neighbours() {
        let host = tempfile::tempdir().expect("folder");
        let (a, b) = (host.path().join("a"), host.path().join("b"));
        for folder in [&a, &b] {
            fs::create_dir(folder).expect("make");
        }
        for name in ["file", "secret"] {
            fs::write(a.join(name), name).expect("write");
        }
        let mut shares = Shares::new(host.path().join("files"));
        let first = shares.expose(&a, false).expect("a folder");
        assert_eq!(first, Path::new("/arca/1"));
        assert_eq!(shares.expose(&a, false).expect("again"), first);
        assert_eq!(shares.expose(&a, true).expect("read-only beside it"), Path::new("/arca/2"));
        assert_eq!(shares.expose(&b, false).expect("another"), Path::new("/arca/3"));
        let file = shares.expose(&a.join("file"), false).expect("a file");
        assert_eq!(file, Path::new("/arca/4/file"));
        assert_eq!(shares.expose(&a.join("file"), false).expect("again"), file);
        let (_, folder) = shares.folders().find(|(name, _)| name == "4").expect("its folder");
        let names: Vec<_> =
            fs::read_dir(&folder.path).expect("read").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["file"]);
        // The file itself, not a copy.
        fs::write(folder.path.join("file"), "changed").expect("write");
        assert_eq!(fs::read_to_string(a.join("file")).expect("read"), "changed");
        assert!(shares.expose(&host.path().join("nothing"), false).is_err());
    }
}
