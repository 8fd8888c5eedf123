//! Read-only file mappings: the one place outside the kernels where unsafe is allowed.
//!
//! A mapping is as long as its file was when it was opened; a slice of it is checked against that length. Loading a
//! model reads each byte range once, so the hints here are for ranges: [`Mapping::will_need`] before a range is read,
//! [`Mapping::release`] after it has been copied elsewhere.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap};

/// A file mapped for reading.
#[derive(Debug)]
pub struct Mapping {
    path: PathBuf,
    file: File,
    /// `None` for an empty file, which cannot be mapped.
    map: Option<Mmap>,
}

/// Why bytes of a mapping could not be given.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    /// The range ends past the end of the file as it was opened.
    #[error("bytes {start}..{end} are asked of {path}, which has {length}; the file is truncated or its header is wrong", path = path.display(), start = range.start, end = range.end)]
    OutOfBounds {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        range: Range<usize>,
        /// Bytes of the file.
        length: usize,
    },
    /// The file has become shorter since it was opened: reading the mapping would kill the process.
    #[error("{path} had {opened} bytes when it was opened and now has {now}; do not change a model's files while it is served", path = path.display())]
    Shrunk {
        /// The file.
        path: PathBuf,
        /// Bytes when it was opened.
        opened: u64,
        /// Bytes now.
        now: u64,
    },
    /// The file's length could not be asked for.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
}

impl Mapping {
    /// Maps the whole file at `path` for reading.
    ///
    /// # Errors
    /// The operating system's, from opening or mapping; a directory is refused with [`io::ErrorKind::IsADirectory`].
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let map = if metadata.len() == 0 {
            None
        } else {
            // SAFETY: The mapping is read-only and private to this process's view. What Rust cannot rule out is another
            // process that writes to or truncates the file while it is mapped; model files are never modified in place
            // by this program, and `check_length` lets a loader look before it reads.
            Some(unsafe { Mmap::map(&file)? })
        };
        Ok(Self { path: path.to_owned(), file, map })
    }

    /// The file's path as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// The bytes of a range.
    ///
    /// # Errors
    /// [`RangeError::OutOfBounds`] when the file is too short for it.
    pub fn slice(&self, range: Range<usize>) -> Result<&[u8], RangeError> {
        self.bytes().get(range.clone()).ok_or_else(|| RangeError::OutOfBounds {
            path: self.path.clone(),
            range,
            length: self.bytes().len(),
        })
    }

    /// Asks the file system whether the file still has the length it was opened with.
    ///
    /// # Errors
    /// [`RangeError::Shrunk`], or [`RangeError::Io`] when the length cannot be read.
    pub fn check_length(&self) -> Result<(), RangeError> {
        let opened = self.bytes().len() as u64;
        let now =
            self.file.metadata().map_err(|source| RangeError::Io { path: self.path.clone(), source })?.len();
        if now < opened {
            return Err(RangeError::Shrunk { path: self.path.clone(), opened, now });
        }
        Ok(())
    }

    /// Hints that a range will be read soon and in order, so the kernel reads ahead. Ranges outside are ignored.
    pub fn will_need(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some((map, offset, length)) = self.clamp(&range) {
            // A hint: that it was not taken changes nothing but speed.
            let _ = map.advise_range(Advice::WillNeed, offset, length);
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Gives the pages of a range back to the kernel, after their content was copied elsewhere.
    /// Reading the range again is correct and reads the file again.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some((map, offset, length)) = self.clamp(&range) {
            // SAFETY: MADV_DONTNEED discards pages of a shared, read-only file mapping; the next access reads them from
            // the file again, so every reference into the mapping stays valid and sees the same bytes. That also holds
            // for the neighbours of the range that share a page with it.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, length) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    fn clamp(&self, range: &Range<usize>) -> Option<(&Mmap, usize, usize)> {
        let map = self.map.as_ref()?;
        let end = range.end.min(map.len());
        (range.start < end).then(|| (map, range.start, end - range.start))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;

    fn file_with(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        File::create(&path).unwrap().write_all(bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn gives_the_bytes_and_refuses_what_lies_beyond() {
        let (_dir, path) = file_with(b"0123456789");
        let mapping = Mapping::open(&path).unwrap();
        assert_eq!(mapping.slice(2..5).unwrap(), b"234");
        assert_eq!(mapping.slice(10..10).unwrap(), b"");
        assert!(matches!(mapping.slice(5..11), Err(RangeError::OutOfBounds { length: 10, .. })));
        #[expect(clippy::reversed_empty_ranges)]
        let reversed = mapping.slice(5..2);
        assert!(matches!(reversed, Err(RangeError::OutOfBounds { .. })));
    }

    #[test]
    fn an_empty_file_has_no_bytes() {
        let (_dir, path) = file_with(b"");
        let mapping = Mapping::open(&path).unwrap();
        assert_eq!(mapping.bytes(), b"");
        mapping.will_need(0..10);
        mapping.release(0..10);
    }

    #[test]
    fn notices_a_file_that_shrank() {
        let (_dir, path) = file_with(&[7; 8192]);
        let mapping = Mapping::open(&path).unwrap();
        mapping.check_length().unwrap();
        File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
        assert!(matches!(mapping.check_length(), Err(RangeError::Shrunk { opened: 8192, now: 100, .. })));
    }

    #[test]
    fn released_pages_read_the_same_again() {
        let content: Vec<u8> = (0..40_000u32).map(|i| (i % 251) as u8).collect();
        let (_dir, path) = file_with(&content);
        let mapping = Mapping::open(&path).unwrap();
        mapping.will_need(100..20_000);
        assert_eq!(mapping.bytes(), content);
        mapping.release(100..39_999);
        mapping.release(0..usize::MAX);
        assert_eq!(mapping.bytes(), content);
    }

    #[test]
    fn a_directory_and_a_missing_file_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Mapping::open(dir.path()).is_err());
        let missing = Mapping::open(&dir.path().join("none")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        fs::remove_dir(dir.path()).unwrap();
    }
}
