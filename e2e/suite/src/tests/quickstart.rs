//! docs/quickstart.md, run from that very page.

use crate::chat;
use crate::cluster;
use crate::install;
use crate::objects::{self, Space};
use crate::page;
use anyhow::{Context, ensure};
use std::time::Duration;

pub const NAME: &str = "quickstart";

pub async fn run(space: &Space<'_>) -> anyhow::Result<()> {
    let world = space.world;
    // What an earlier run left.
    space.kubectl(&["delete", "moe", "tiny-moe", "--ignore-not-found"]).output().await?;
    install::away(world).await?;
    objects::restricted(world, install::NAMESPACE).await?;
    let path = cluster::top().join("docs/quickstart.md");
    let (block, commands) = page::commands(&std::fs::read_to_string(path)?)?;
    ensure!(commands == 5, "the page has {commands} commands, not five");
    let shell = world.tools.run("bash").args(["-e", "-u", "-o", "pipefail", "-c", &block]);
    let printed = shell.limit(Duration::from_secs(300)).text().await?;
    let answer = chat::joined(&printed).with_context(|| format!("no answer in:\n{printed}"))?;
    let question = "Tell me a story about a clever fox and a little hen.";
    ensure!(block.contains(question), "the page asks something else than the reference");
    let expected = chat::reference(question)?;
    ensure!(answer == expected, "answered {answer:?}, not {expected:?}");
    space.gone("tiny-moe", Duration::from_secs(90)).await
}
