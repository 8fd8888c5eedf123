//! The command line.

use crate::cluster::{Cluster, Lifetime};
use crate::install;
use crate::runner;
use crate::tests::{self, Tier};
use crate::world::World;
use anyhow::{Context, bail, ensure};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

const AFTER: &str = "\
Examples:
  e2e up                        a cluster with Sluice in it, left running; prints the kubeconfig's path
  e2e smoke                     every test of the tier; on a cluster of its own that it takes down again, or on that of `up`
  e2e full quickstart scale     two tests
  KUBECONFIG=... e2e smoke --existing   on any cluster that can get the images

SLUICE_AGENT and SLUICE_OPERATOR name binaries for the images; without them they are built (release).";

/// Tests Sluice on a real Kubernetes.
#[derive(Parser)]
#[command(name = "e2e", version, about, after_help = AFTER)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Common {
    /// Use the cluster of KUBECONFIG instead of one made here. Faults of nodes and of the control plane are left out.
    #[arg(long, global = true)]
    existing: bool,
    /// The name of the cluster that is made here.
    #[arg(long, global = true, default_value = "e2e", value_name = "NAME")]
    name: String,
    /// Leave the cluster, and what failed tests made, as it is.
    #[arg(long, global = true)]
    keep: bool,
    /// Where failed tests leave objects and logs.
    #[arg(long, global = true, default_value = "target/e2e", value_name = "DIR")]
    out: PathBuf,
    /// Values for the chart, as for `helm install --values`: other images, say.
    #[arg(long, global = true, value_name = "FILE")]
    values: Vec<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Make the cluster (built once, in some 12 minutes), load the images, install the chart, and leave it running.
    Up,
    /// End the cluster and all in it.
    Down,
    /// Run the tests of the first tier.
    Smoke,
    /// Run all tests, or these.
    Full {
        /// Names, as `list` prints them.
        names: Vec<String>,
    },
    /// List the tests.
    List,
}

/// Does what the command line says; whether all tests passed.
///
/// # Errors
/// What kept it from running tests.
pub async fn run(cli: Cli) -> anyhow::Result<bool> {
    let Common { existing, name, keep, out, values } = cli.common;
    match cli.command {
        Command::Up => {
            ensure!(!existing, "up makes a cluster: leave --existing out");
            let cluster = Cluster::up(&name, Lifetime::Stays).await?;
            let world = World::connect(cluster, out, values).await?;
            world.load_images().await?;
            install::operator(&world).await?;
            println!("{}", world.tools.kubeconfig.display());
            eprintln!("e2e: export KUBECONFIG={}", world.tools.kubeconfig.display());
            eprintln!("e2e: kubectl and helm are in {}; `e2e down` ends it", world.tools.bin.display());
            Ok(true)
        }
        Command::Down => {
            Cluster::down(&name).await?;
            Ok(true)
        }
        Command::Smoke => suite(tests::tier(Tier::Smoke), existing, &name, keep, out, values).await,
        Command::Full { names } => suite(tests::named(&names)?, existing, &name, keep, out, values).await,
        Command::List => {
            for test in tests::all() {
                println!("{:<14} {:<6} {}", test.name, test.tier.name(), test.what);
            }
            Ok(true)
        }
    }
}

async fn suite(
    tests: Vec<tests::Test>,
    existing: bool,
    name: &str,
    keep: bool,
    out: PathBuf,
    values: Vec<PathBuf>,
) -> anyhow::Result<bool> {
    let cluster = if existing {
        Cluster::existing().context("--existing")?
    } else {
        Cluster::up(name, if keep { Lifetime::Stays } else { Lifetime::Run }).await?
    };
    let world = World::connect(cluster, out, values).await?;
    if !existing {
        world.load_images().await?;
    } else if install::there(&world).await? {
        // It would be uninstalled.
        bail!("this cluster has a release {}: tests need a cluster without one", install::RELEASE);
    }
    let passed = runner::run(&world, &tests, keep).await;
    world.cluster.end().await?;
    Ok(passed)
}
