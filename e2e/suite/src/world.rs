//! What tests have in common: a client of the API server and the programs that a person would use.

use crate::cluster::{self, Cluster};
use crate::shell::Run;
use anyhow::{Context, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

/// Programs, and the cluster they speak to.
pub struct Tools {
    pub kubeconfig: PathBuf,
    /// Where kubectl and helm are.
    pub bin: PathBuf,
    path: String,
}

impl Tools {
    fn find(cluster: &Cluster) -> anyhow::Result<Self> {
        let path = std::env::var("PATH").unwrap_or_default();
        let built = cluster::cache().join("bin");
        let mut dirs = std::env::split_paths(&path);
        // Those of e2e/cluster first: their versions are known.
        let bin = if built.join("helm").exists() {
            built
        } else {
            dirs.find(|dir| dir.join("helm").exists()).context("no helm in the PATH")?
        };
        let path = format!("{}:{path}", bin.display());
        Ok(Self { kubeconfig: cluster.kubeconfig.clone(), bin, path })
    }

    /// A program with KUBECONFIG and the PATH of these tools, in the repository.
    pub fn run(&self, program: &str) -> Run {
        let found = self.bin.join(program);
        let run = if found.exists() { Run::new(found) } else { Run::new(program) };
        run.env("KUBECONFIG", &self.kubeconfig).env("PATH", &self.path).dir(cluster::top())
    }

    pub fn kubectl<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        self.run("kubectl").args(args)
    }

    pub fn helm<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        self.run("helm").args(args)
    }
}

/// The cluster, and all that tests ask of it.
pub struct World {
    pub cluster: Cluster,
    pub client: Client,
    pub tools: Tools,
    /// Where failed tests leave what they saw.
    pub out: PathBuf,
    /// Files of values for the chart.
    pub values: Vec<PathBuf>,
}

impl World {
    /// # Errors
    /// The kubeconfig can't be read, or there is no helm.
    pub async fn connect(cluster: Cluster, out: PathBuf, values: Vec<PathBuf>) -> anyhow::Result<Self> {
        let tools = Tools::find(&cluster)?;
        let read = Kubeconfig::read_from(&cluster.kubeconfig)
            .with_context(|| format!("cannot read {}", cluster.kubeconfig.display()))?;
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let values = values.iter().map(std::path::absolute).collect::<Result<_, _>>()?;
        Ok(Self { cluster, client, tools, out: std::path::absolute(out)?, values })
    }

    /// Makes the images and puts them into every node.
    ///
    /// # Errors
    /// What the scripts say.
    pub async fn load_images(&self) -> anyhow::Result<()> {
        let build = Run::new(cluster::top().join("e2e/images/build")).forward_errors();
        let archives = build.limit(Duration::from_secs(3600)).text().await.context("e2e/images/build")?;
        for archive in archives.lines() {
            self.cluster.verb(&["load", archive]).await?;
        }
        if archives.lines().count() == 0 {
            bail!("e2e/images/build made no image");
        }
        Ok(())
    }
}
