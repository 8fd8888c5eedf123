//! The controller of Sluice.

use anyhow::Context;
use clap::{Parser, Subcommand};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Serves Mixture-of-Experts models on Kubernetes by asynchronous expert parallelism.
#[derive(Parser)]
#[command(name = "sluice-operator", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Crds { out } => crds(out.as_deref()),
        Command::Api { out } => match out {
            None => print(&sluice_crds::reference()),
            Some(path) => write(&path, &sluice_crds::reference()),
        },
    }
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
