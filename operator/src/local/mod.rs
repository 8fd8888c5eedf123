//! `up`: a MoEDeployment on this machine, with processes in place of pods. Decisions and command lines are those of a
//! cluster ([`crate::pods`], [`crate::placing`], [`crate::build::agent`]); only what is observed and applied is another.

mod health;
mod manifest;
mod process;
mod state;
mod table;

use manifest::Manifest;
use state::State;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use manifest::ManifestError;
pub use process::ProcessError;

/// How often everything is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What `up` is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The manifest.
    pub file: PathBuf,
    /// The model directory, where the manifest's source is none of this machine.
    pub model: Option<PathBuf>,
    /// The agent's program.
    pub agent: PathBuf,
    /// Where the first gateway takes clients' requests; others take the ports after it.
    pub listen: SocketAddr,
}

/// A deployment that cannot be brought up, or not any further.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its certificates.
    #[error(transparent)]
    Certificate(#[from] crate::certificates::CertificateError),
    /// Its model is not on this machine.
    #[error("the model of {} comes from a volume of a cluster: give its directory here with --model DIR", file.display())]
    NoModel {
        /// The manifest.
        file: PathBuf,
    },
    /// A file of its own.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// Serves until `stop` resolves for the first time, then drains; the second time it waits no longer. `say` is given a
/// line whenever there is something new to say.
///
/// # Errors
/// What the deployment cannot begin without.
pub async fn up(options: Options, mut stop: impl AsyncFnMut(), say: impl Fn(&str)) -> Result<(), UpError> {
    let mut manifest = Manifest::read(&options.file)?;
    if options.model.is_none() && manifest.moe.spec.model.source.host_path.is_none() {
        return Err(UpError::NoModel { file: options.file });
    }
    let mut state = State::new(&options, &manifest)?;
    say(&format!("logs are in {}", state.logs().display()));
    let (mut said, mut complaint) = (String::new(), String::new());
    loop {
        match manifest.again() {
            Ok(false) => complaint.clear(),
            Ok(true) => say(&format!("{} has changed", options.file.display())),
            Err(why) => {
                let why = why.to_string();
                if why != complaint {
                    say(&format!("{why}; what was there before stays"));
                }
                complaint = why;
            }
        }
        let news = state.step(&manifest).await?;
        news.iter().for_each(|line| say(line));
        let line = state.line(&manifest);
        if line != said {
            say(&line);
            said = line;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop() => break,
        }
    }
    say("draining: once more to end at once");
    tokio::select! {
        () = state.drain() => {}
        () = stop() => state.kill(),
    }
    Ok(())
}

/// The agent's program: beside this one, or somewhere in the path.
pub fn agent(own: Option<&Path>) -> PathBuf {
    let beside = own.and_then(Path::parent).map(|dir| dir.join("sluice-agent"));
    beside.filter(|path| path.exists()).unwrap_or_else(|| "sluice-agent".into())
}
