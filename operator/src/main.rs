//! The controller of Sluice.

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use sluice_operator::local::{self, Options};
use sluice_operator::run::Settings;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// Serves Mixture-of-Experts models on Kubernetes by asynchronous expert parallelism.
#[derive(Parser)]
#[command(name = "sluice-operator", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reconcile the MoEDeployments of a cluster.
    Run(RunArgs),
    /// Serve a MoEDeployment on this machine: processes in place of pods. Ctrl-C drains them.
    Up(UpArgs),
    /// Take the finalizer off all MoEDeployments, before the operator goes for good.
    Release {
        /// A namespace; may be given more than once, or as a list with commas. [default: all]
        #[arg(long, env = "SLUICE_WATCH_NAMESPACE", value_name = "NAMESPACE", value_delimiter = ',')]
        namespace: Vec<String>,
    },
    /// Print the CustomResourceDefinitions, ready for `kubectl apply --server-side -f -`.
    Crds {
        /// Write one file per kind into this directory instead.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Print the reference of the API (Markdown).
    Api {
        /// Write it to this file instead.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// The flags of `run`.
#[derive(Args)]
struct RunArgs {
    /// The image of agents, where a MoEDeployment gives none.
    #[arg(long, env = "SLUICE_AGENT_IMAGE", value_name = "IMAGE")]
    agent_image: String,
    /// A namespace whose MoEDeployments are reconciled; may be given more than once, or as a list with commas.
    /// [default: all]
    #[arg(long, env = "SLUICE_WATCH_NAMESPACE", value_name = "NAMESPACE", value_delimiter = ',')]
    namespace: Vec<String>,
    /// The namespace that the operator runs in: of the CA and of the lease.
    #[arg(long, env = "SLUICE_OWN_NAMESPACE", default_value = "sluice-system", value_name = "NAMESPACE")]
    own_namespace: String,
    /// Who this is among the operators that may lead. [default: the host's name, which is the pod's]
    #[arg(long, env = "SLUICE_IDENTITY", value_name = "NAME")]
    identity: Option<String>,
    /// Where /healthz, /readyz and /metrics are.
    #[arg(long, env = "SLUICE_LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDR")]
    listen: SocketAddr,
    /// An operator that leads and does not renew its lease for so many seconds has lost it.
    #[arg(
        long,
        env = "SLUICE_LEASE_SECONDS",
        default_value_t = 15,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(3..=600)
    )]
    lease_seconds: u64,
    /// How logs are written.
    #[arg(long, env = "SLUICE_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,
}

/// How logs are written.
#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

/// The flags of `up`.
#[derive(Args)]
struct UpArgs {
    /// A file with one MoEDeployment. It is watched: an edit is carried out.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// The model directory. [default: the manifest's hostPath]
    #[arg(long, env = "SLUICE_MODEL", value_name = "DIR")]
    model: Option<PathBuf>,
    /// The agent's program. [default: sluice-agent beside this program, else in the PATH]
    #[arg(long, env = "SLUICE_AGENT", value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Where clients connect; more gateways take the ports after it.
    #[arg(long, env = "SLUICE_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDR")]
    listen: SocketAddr,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(args) => run(args),
        Command::Up(args) => up(args),
        Command::Release { namespace } => {
            let namespaces: Vec<String> = namespace.into_iter().filter(|n| !n.is_empty()).collect();
            let runtime = tokio::runtime::Runtime::new().context("cannot start the run time")?;
            let released = runtime.block_on(sluice_operator::release::release(&namespaces))?;
            print(&format!("{released} MoEDeployments are let go\n"))
        }
        Command::Crds { out } => crds(out.as_deref()),
        Command::Api { out } => match out {
            None => print(&sluice_crds::reference()),
            Some(path) => write(&path, &sluice_crds::reference()),
        },
    }
}

fn run(args: RunArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    // Spans of the library that say what every line says already.
    let filter = filter.add_directive("kube_runtime=warn".parse().context("a filter of logs")?);
    let to = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match args.log_format {
        LogFormat::Text => to.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => to.json().init(),
    }
    let host = || fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let settings = Settings {
        agent_image: args.agent_image,
        watched: args.namespace.into_iter().filter(|n| !n.is_empty()).collect(),
        namespace: args.own_namespace,
        identity: args.identity.unwrap_or_else(|| format!("{}-{}", host(), std::process::id())),
        listen: args.listen,
        lease: Duration::from_secs(args.lease_seconds),
    };
    let runtime = tokio::runtime::Runtime::new().context("cannot start the run time")?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let stop = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        };
        sluice_operator::run::run(settings, stop).await
    })
}

fn up(args: UpArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let own = std::env::current_exe().ok();
    let options = Options {
        file: args.file,
        model: args.model,
        agent: args.agent.unwrap_or_else(|| local::agent(own.as_deref())),
        listen: args.listen,
    };
    let runtime = tokio::runtime::Runtime::new().context("cannot start the run time")?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
        let stop = async || {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        Ok(local::up(options, stop, |line| println!("{line}")).await?)
    })
}

fn crds(out: Option<&Path>) -> anyhow::Result<()> {
    let mut text = String::new();
    for crd in sluice_crds::all() {
        let yaml = sluice_crds::to_yaml(&crd)?;
        match out {
            None => text += &format!("---\n{yaml}"),
            Some(dir) => {
                fs::create_dir_all(dir)
                    .with_context(|| format!("cannot make the directory {}", dir.display()))?;
                let path = dir.join(sluice_crds::file_name(&crd));
                write(&path, &yaml)?;
            }
        }
    }
    print(&text)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to the standard output"),
    }
}
