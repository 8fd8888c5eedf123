//! The cluster: made by e2e/cluster, or any other.

use crate::shell::Run;
use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The repository.
pub fn top() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn script() -> PathBuf {
    top().join("e2e/cluster/cluster")
}

/// Where the parts of e2e/cluster lie.
pub fn cache() -> PathBuf {
    match (std::env::var_os("SLUICE_CLUSTER_CACHE"), std::env::var_os("HOME")) {
        (Some(cache), _) => cache.into(),
        (None, home) => PathBuf::from(home.unwrap_or_else(|| "/root".into())).join(".cache/sluice-cluster"),
    }
}

/// How long a cluster lives that was not there before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// It is left running.
    Stays,
    /// It ends with this process, however that ends.
    Run,
}

/// A cluster to test on.
pub struct Cluster {
    pub kubeconfig: PathBuf,
    /// The name of one made by e2e/cluster, whose nodes and daemons can be stopped.
    pub own: Option<String>,
    guard: Option<Guard>,
}

/// Takes the cluster down when it is dropped: also after a failure, a panic or Ctrl-C.
struct Guard(String);

impl Drop for Guard {
    fn drop(&mut self) {
        // Not asynchronous: nothing runs any more that could wait for it.
        let ended = Command::new(script()).args(["--name", &self.0, "down"]).stdin(Stdio::null()).status();
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("e2e: the cluster {} could not be taken down: `e2e down --name {}`", self.0, self.0);
        }
    }
}

impl Cluster {
    /// Finds the cluster of this name, or makes it. One that was found running is left so.
    ///
    /// # Errors
    /// What the script says.
    pub async fn up(name: &str, lifetime: Lifetime) -> anyhow::Result<Self> {
        let found =
            Run::new(script()).args(["--name", name, "kubectl", "get", "--raw", "/readyz"]).output().await?;
        let mut guard = (!found.ok).then(|| Guard(name.into()));
        let up = Run::new(script()).args(["--name", name, "up"]).forward_errors();
        // The first time it builds Kubernetes.
        let kubeconfig =
            up.limit(Duration::from_secs(3600)).text().await.context("e2e/cluster/cluster up")?;
        if lifetime == Lifetime::Stays
            && let Some(guard) = guard.take()
        {
            std::mem::forget(guard);
        }
        Ok(Self { kubeconfig: kubeconfig.trim().into(), own: Some(name.into()), guard })
    }

    /// The cluster of KUBECONFIG.
    ///
    /// # Errors
    /// Without KUBECONFIG.
    pub fn existing() -> anyhow::Result<Self> {
        let path = std::env::var_os("KUBECONFIG").context("KUBECONFIG says which cluster, and is not set")?;
        Ok(Self { kubeconfig: path.into(), own: None, guard: None })
    }

    /// Ends a cluster and all in it.
    ///
    /// # Errors
    /// What the script says.
    pub async fn down(name: &str) -> anyhow::Result<()> {
        Run::new(script()).args(["--name", name, "down"]).text().await.map(drop)
    }

    /// A verb of e2e/cluster.
    ///
    /// # Errors
    /// What it says; another cluster has no verbs.
    pub async fn verb(&self, args: &[&str]) -> anyhow::Result<String> {
        let name = self.own.as_deref().context("this cluster was not made by e2e/cluster")?;
        Run::new(script()).args(["--name", name]).args(args).text().await
    }

    /// Where the daemons' logs are.
    pub fn logs(&self) -> Option<PathBuf> {
        self.own.as_ref().map(|name| cache().join("state").join(name))
    }

    /// Takes down a cluster that was made for this run, and looks whether anything is left of it.
    ///
    /// # Errors
    /// Something is left.
    pub async fn end(&self) -> anyhow::Result<()> {
        let (Some(_), Some(name)) = (&self.guard, &self.own) else { return Ok(()) };
        Self::down(name).await?;
        let left = leftovers(name);
        ensure!(left.is_empty(), "left of the cluster {name}: {left:?}");
        Ok(())
    }
}

/// What still is there of a cluster that ended: its folder, cgroups, mounts and processes.
fn leftovers(name: &str) -> Vec<String> {
    let state = cache().join("state").join(name);
    let mut left = Vec::new();
    if state.exists() {
        left.push(state.display().to_string());
    }
    let within = |text: &str| text.contains(&format!("{}/", state.display()));
    for group in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let path = group.path().join(format!("sluice-{name}"));
        if path.exists() {
            left.push(path.display().to_string());
        }
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    left.extend(mounts.lines().filter(|line| within(line)).map(Into::into));
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if within(&line) {
            left.push(line);
        }
    }
    left
}
