//! Runs tests one after the other, each in a namespace of its own.

use crate::objects::{self, Space};
use crate::tests::{Needs, Test};
use crate::world::World;
use crate::{dump, install};
use std::time::{Duration, Instant};

/// Agents of a failed test may take all of their grace period.
const REMOVED: Duration = Duration::from_secs(360);

/// Whether all passed. A failed test does not keep others from running.
pub async fn run(world: &World, tests: &[Test], keep: bool) -> bool {
    let begin = Instant::now();
    let mut failed = Vec::new();
    let mut skipped = 0;
    for test in tests {
        if test.needs == Needs::Node && world.cluster.own.is_none() {
            println!("skip  {:<14}           {}: not on a cluster of others", test.name, test.what);
            skipped += 1;
            continue;
        }
        let start = Instant::now();
        if let Err(error) = one(world, test, keep).await {
            let dir = world.out.join(test.name);
            println!("FAIL  {:<14} {:>6.1} s  {error:#}", test.name, start.elapsed().as_secs_f64());
            println!("      objects and logs: {}", dir.display());
            failed.push(test.name);
        } else {
            println!("ok    {:<14} {:>6.1} s  {}", test.name, start.elapsed().as_secs_f64(), test.what);
        }
    }
    let seconds = begin.elapsed().as_secs();
    let passed = tests.len() - failed.len() - skipped;
    println!("{passed} passed, {} failed, {skipped} skipped, {seconds} s", failed.len());
    failed.is_empty()
}

async fn one(world: &World, test: &Test, keep: bool) -> anyhow::Result<()> {
    let space = Space { world, namespace: test.namespace() };
    let limited = async {
        match test.needs {
            Needs::Nothing => {}
            Needs::Chart => install::chart(world).await?,
            Needs::Operator | Needs::Node => install::operator(world).await?,
        }
        if test.own_namespace() || world.cluster.own.is_some() {
            objects::restricted(world, &space.namespace).await?;
        }
        (test.run)(&space).await
    };
    let result = match tokio::time::timeout(test.limit, limited).await {
        Ok(result) => result,
        Err(_) => Err(anyhow::anyhow!("not within {:?}", test.limit)),
    };
    if let Err(error) = &result {
        let dir = world.out.join(test.name);
        // Of an earlier run.
        let _ = std::fs::remove_dir_all(&dir);
        dump::all(&space, &dir, error).await;
    }
    if keep && result.is_err() {
        return result;
    }
    let removed = match test.own_namespace() {
        true => objects::remove(world, &space.namespace, REMOVED).await,
        false => Ok(()),
    };
    match (result, removed) {
        (Err(error), Err(stays)) => Err(error.context(format!("{stays:#}, and before that"))),
        (result, removed) => result.and(removed),
    }
}
