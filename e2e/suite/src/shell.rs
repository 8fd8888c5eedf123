//! Programs that are run: with a time limit, and ended with all that they started when nobody waits for them any more.

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// A program and its arguments.
pub struct Run {
    command: Command,
    line: String,
    input: Option<String>,
    limit: Duration,
    forward: bool,
}

/// What a program printed, and whether it succeeded.
pub struct Output {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Both streams, the errors last.
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Ends a process group when it is dropped.
pub struct Group(Option<Pid>);

impl Group {
    pub fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(id.cast_signed())))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Nobody left in the group is what one hopes for.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Run {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(&program);
        command.process_group(0).kill_on_drop(true);
        let line = program.as_ref().to_string_lossy().into_owned();
        Self { command, line, input: None, limit: Duration::from_secs(120), forward: false }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        let _ = write!(self.line, " {}", arg.as_ref().to_string_lossy());
        self.command.arg(arg);
        self
    }

    pub fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    pub fn input(mut self, text: impl Into<String>) -> Self {
        self.input = Some(text.into());
        self
    }

    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Shows the errors as they come: for what takes minutes.
    pub fn forward_errors(mut self) -> Self {
        self.forward = true;
        self
    }

    /// Runs it to its end. What it left in the background is ended too.
    ///
    /// # Errors
    /// It could not be started, or took longer than its limit.
    pub async fn output(mut self) -> anyhow::Result<Output> {
        let errors = if self.forward { Stdio::inherit() } else { Stdio::piped() };
        let input = if self.input.is_some() { Stdio::piped() } else { Stdio::null() };
        self.command.stdin(input).stdout(Stdio::piped()).stderr(errors);
        let mut child = self.command.spawn().with_context(|| format!("cannot run {}", self.line))?;
        let group = Group::of(&child);
        let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let feed = async {
            if let (Some(mut pipe), Some(text)) = (child.stdin.take(), self.input) {
                // It may end without having read all.
                let _ = pipe.write_all(text.as_bytes()).await;
            }
            let status = child.wait().await;
            // Children in the background hold the pipes open.
            drop(group);
            status
        };
        let read_out = async {
            match &mut out {
                Some(pipe) => pipe.read_to_end(&mut stdout).await,
                None => Ok(0),
            }
        };
        let read_err = async {
            match &mut err {
                Some(pipe) => pipe.read_to_end(&mut stderr).await,
                None => Ok(0),
            }
        };
        let all = async { tokio::join!(feed, read_out, read_err) };
        let ended = tokio::time::timeout(self.limit, all).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match ended {
            Ok((status, _, _)) => {
                let ok = status.with_context(|| format!("cannot wait for {}", self.line))?.success();
                Ok(Output { ok, stdout: text(&stdout), stderr: text(&stderr) })
            }
            Err(_) => bail!("not within {:?}: {}\n{}{}", self.limit, self.line, text(&stdout), text(&stderr)),
        }
    }

    /// The standard output of a program that has to succeed.
    ///
    /// # Errors
    /// As [`Run::output`], and where it fails: with what it printed.
    pub async fn text(self) -> anyhow::Result<String> {
        let line = self.line.clone();
        let output = self.output().await?;
        if !output.ok {
            bail!("failed: {line}\n{}", output.all().trim_end());
        }
        Ok(output.stdout)
    }

    /// Starts it and leaves it running as long as the group lives. Its standard output can be read.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(mut self) -> anyhow::Result<(Child, Group)> {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = self.command.spawn().with_context(|| format!("cannot run {}", self.line))?;
        let group = Group::of(&child);
        Ok((child, group))
    }
}
