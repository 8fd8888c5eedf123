//! Peers of one host: a directory that they share, with a Unix socket for each of them under its name. Who can be reached
//! so is not dialled over TCP.
//!
//! No TLS: whoever may connect runs as the same user, or as root. Such a process could read this one's memory, and the
//! key of its certificate, so a certificate would prove nothing more.

use std::fs::{Permissions, metadata, remove_file, rename, set_permissions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// A socket that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("the peer socket {}: {source}; its directory must be there, for this user to write", path.display())]
pub struct SocketError {
    path: PathBuf,
    source: Error,
}

/// The directory of the sockets.
#[derive(Clone, Debug)]
pub struct Sockets {
    dir: PathBuf,
}

impl Sockets {
    /// Of a directory that this deployment has for itself.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{}.sock", name.replace('/', "_")))
    }

    /// Listens under a name. Of a process that is gone nothing is in the way.
    ///
    /// # Errors
    /// If there can be no socket.
    pub fn listen(&self, name: &str) -> Result<LocalListener, SocketError> {
        let path = self.path(name);
        let fail = |source| SocketError { path: path.clone(), source };
        // Nobody finds it before its mode is right, and it takes the place of an old one in one step.
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let _ = remove_file(&new);
        let listener = UnixListener::bind(&new).map_err(fail)?;
        let placed = set_permissions(&new, Permissions::from_mode(0o600))
            .and_then(|()| rename(&new, &path))
            .and_then(|()| metadata(&path));
        let inode = placed.inspect_err(|_| drop(remove_file(&new))).map_err(fail)?.ino();
        Ok(LocalListener { sockets: self.clone(), listener, path, inode })
    }

    /// Connects to the peer of this name, if it is on this host and listens here.
    pub(super) async fn dial(&self, name: &str) -> Option<UnixStream> {
        let dialled = UnixStream::connect(self.path(name)).await.and_then(trusted);
        match dialled {
            Ok(stream) => Some(stream),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => None,
            Err(e) => {
                tracing::debug!(peer = name, "not reached over its socket: {e}");
                None
            }
        }
    }
}

/// A socket that peers of this host connect to. Dropping it removes it.
#[derive(Debug)]
pub struct LocalListener {
    sockets: Sockets,
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl LocalListener {
    /// Where its peers are.
    pub(super) fn sockets(&self) -> Sockets {
        self.sockets.clone()
    }

    pub(super) async fn accept(&self) -> std::io::Result<UnixStream> {
        trusted(self.listener.accept().await?.0)
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        // A process that has taken its place keeps its own.
        if metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = remove_file(&self.path);
        }
    }
}

fn trusted(stream: UnixStream) -> std::io::Result<UnixStream> {
    let (user, own) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
    match is_trusted(user, own) {
        true => Ok(stream),
        false => Err(Error::new(
            ErrorKind::PermissionDenied,
            format!("at its other end is user {user}, and this process runs as {own}"),
        )),
    }
}

fn is_trusted(user: u32, own: u32) -> bool {
    user == own || user == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_same_user_are_trusted() {
        assert!(is_trusted(7, 7) && is_trusted(0, 7));
        assert!(!is_trusted(8, 7) && !is_trusted(7, 0));
    }

    #[tokio::test]
    async fn a_socket_is_its_owners_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(dir.path());
        assert!(sockets.dial("e0").await.is_none(), "nobody was there");
        let first = sockets.listen("e0").unwrap();
        let path = sockets.path("e0");
        assert_eq!(metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (dialled, accepted) = tokio::join!(sockets.dial("e0"), first.accept());
        assert!(dialled.is_some() && accepted.is_ok());

        // The next process of this name does not wait for the one before to leave.
        let second = sockets.listen("e0").unwrap();
        drop(first);
        let (dialled, accepted) = tokio::join!(sockets.dial("e0"), second.accept());
        assert!(dialled.is_some() && accepted.is_ok());
        drop(second);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }

    #[tokio::test]
    async fn what_a_dead_process_left_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(dir.path());
        drop(std::os::unix::net::UnixListener::bind(sockets.path("e0")).unwrap());
        assert!(sockets.path("e0").exists() && sockets.dial("e0").await.is_none());
        let listener = sockets.listen("e0").unwrap();
        let (dialled, _) = tokio::join!(sockets.dial("e0"), listener.accept());
        assert!(dialled.is_some());
        let why = Sockets::new(&dir.path().join("none")).listen("e0").unwrap_err().to_string();
        assert!(why.contains("none/e0.sock"), "{why}");
    }
}
