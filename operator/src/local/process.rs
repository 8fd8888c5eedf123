//! One agent as a process of this machine.

use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::build::agent::Ports;

/// A process that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Its program.
    #[error("cannot start {}: {source}; build it, or give --agent", program.display())]
    Start {
        /// Which.
        program: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Its log.
    #[error("cannot write {}: {source}", path.display())]
    Log {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Its ports.
    #[error("no free port on 127.0.0.1: {0}")]
    Port(std::io::Error),
}

/// A process.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    /// It was told to stop.
    pub is_leaving: bool,
}

impl Process {
    /// Starts it.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn start(program: &Path, args: &[String], log: &Path) -> Result<Self, ProcessError> {
        let fail = |source| ProcessError::Log { path: log.into(), source };
        let out = File::options().create(true).append(true).open(log).map_err(fail)?;
        let err = out.try_clone().map_err(fail)?;
        let child = Command::new(program).args(args).stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.map_err(|source| ProcessError::Start { program: program.into(), source })?;
        Ok(Self { child, log: log.into(), is_leaving: false })
    }

    /// Tells it to drain and end.
    pub fn stop(&mut self) {
        self.is_leaving = true;
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // It may be gone: then there is nothing to stop.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The last that it said.
    pub fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        last.unwrap_or("it said nothing").to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ports that nobody has at this moment.
///
/// # Errors
/// There is none.
pub fn free_ports() -> Result<Ports, ProcessError> {
    // All at once, so that they are not the same.
    let held = [(); 2].map(|()| TcpListener::bind(("127.0.0.1", 0)));
    let mut ports = vec![];
    for listener in held {
        let address = listener.and_then(|l| Ok((l.local_addr()?, l))).map_err(ProcessError::Port)?;
        ports.push((i32::from(address.0.port()), address.1));
    }
    Ok(Ports { peer: ports[0].0, admin: ports[1].0, api: 0 })
}
