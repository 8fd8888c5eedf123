//! Where a model's files come from: a directory, or the executable itself.

use std::borrow::Cow;
use std::io;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use sluice_mapping::{Mapping, RangeError};

use super::bundled;

/// A file that exists but could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// The operating system's reason.
    pub source: io::Error,
}

/// The files of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelFiles {
    /// A directory in Hugging Face form.
    Directory(PathBuf),
    /// The model inside the executable, see [`bundled`].
    Bundled,
}

impl ModelFiles {
    /// The path of a file for messages; for the bundled model it does not exist on disk.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        match self {
            Self::Directory(directory) => directory.join(file),
            Self::Bundled => Path::new("(bundled)").join(bundled::NAME).join(file),
        }
    }

    /// The last component of the directory: the name a model is served under when none is given.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Directory(directory) => directory
                .canonicalize()
                .unwrap_or_else(|_| directory.clone())
                .file_name()
                .map_or_else(|| directory.display().to_string(), |name| name.to_string_lossy().into_owned()),
            Self::Bundled => bundled::NAME.to_owned(),
        }
    }

    /// The whole content of a file; `None` if there is no such file.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn read(&self, file: &str) -> Result<Option<Cow<'static, [u8]>>, FileError> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(file);
                match std::fs::read(&path) {
                    Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                    Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(FileError { path, source }),
                }
            }
            Self::Bundled => Ok(bundled::file(file).map(Cow::Borrowed)),
        }
    }

    /// Opens a large file without reading it; `None` if there is no such file.
    ///
    /// # Errors
    /// The file is there and cannot be opened or mapped.
    pub fn open(&self, file: &str) -> Result<Option<Data>, FileError> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(file);
                match Mapping::open(&path) {
                    Ok(mapping) => Ok(Some(Data::Mapped(mapping))),
                    Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(FileError { path, source }),
                }
            }
            Self::Bundled => Ok(bundled::file(file).map(Data::Static)),
        }
    }

    /// Names of the files directly in a sub-directory that end in `suffix`, sorted; empty if it does not exist.
    ///
    /// # Errors
    /// The directory is there and cannot be listed.
    pub fn list(&self, directory: &str, suffix: &str) -> Result<Vec<String>, FileError> {
        let Self::Directory(root) = self else { return Ok(Vec::new()) };
        let path = root.join(directory);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(source)
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                return Ok(Vec::new());
            }
            Err(source) => return Err(FileError { path, source }),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| FileError { path: path.clone(), source })?;
            if let Ok(name) = entry.file_name().into_string()
                && name.ends_with(suffix)
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// The bytes of an open file.
#[derive(Debug)]
pub enum Data {
    /// Mapped from disk.
    Mapped(Mapping),
    /// In the executable.
    Static(&'static [u8]),
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapping) => mapping.bytes(),
            Self::Static(bytes) => bytes,
        }
    }
}

impl Data {
    /// The file is as long as when it was opened, so that its bytes may be read.
    ///
    /// # Errors
    /// It has become shorter.
    pub fn check_length(&self) -> Result<(), RangeError> {
        match self {
            Self::Mapped(mapping) => mapping.check_length(),
            Self::Static(_) => Ok(()),
        }
    }

    /// See [`Mapping::will_need`].
    pub fn will_need(&self, range: Range<usize>) {
        if let Self::Mapped(mapping) = self {
            mapping.will_need(range);
        }
    }

    /// See [`Mapping::release`].
    pub fn release(&self, range: Range<usize>) {
        if let Self::Mapped(mapping) = self {
            mapping.release(range);
        }
    }
}
