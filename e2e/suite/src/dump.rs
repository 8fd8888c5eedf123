//! What a failed test leaves behind for a person: objects, events and logs.

use crate::install;
use crate::objects::Space;
use crate::world::World;
use std::fs;
use std::path::Path;

const KINDS: &str = "moe,rsc,xp,moeautoscalingpolicies,pods,services,deployments,replicasets,serviceaccounts,roles,\
                     rolebindings,networkpolicies,poddisruptionbudgets,pvc,events";

/// Writes all there is into a folder. Nothing fails here: what can't be had is said in its place.
pub async fn all(space: &Space<'_>, dir: &Path, error: &anyhow::Error) {
    if let Err(failed) = fs::create_dir_all(dir) {
        eprintln!("e2e: cannot make {}: {failed}", dir.display());
        return;
    }
    write(dir, "error.txt", &format!("{error:?}\n"));
    for namespace in [space.namespace.as_str(), install::NAMESPACE] {
        namespace_dump(space.world, namespace, dir).await;
    }
    let nodes = kubectl(space.world, &["get", "nodes,namespaces,crds", "-o", "wide"]).await;
    write(dir, "cluster.txt", &nodes);
    if let Some(logs) = space.world.cluster.logs() {
        daemons(&logs, dir);
    }
}

async fn namespace_dump(world: &World, namespace: &str, dir: &Path) {
    // Secrets by name only.
    for (file, args) in [
        ("objects.yaml", vec!["get", KINDS, "-o", "yaml"]),
        ("list.txt", vec!["get", KINDS, "-o", "wide"]),
        ("secrets.txt", vec!["get", "secrets"]),
        ("events.txt", vec!["get", "events", "--sort-by=.lastTimestamp"]),
    ] {
        let text = kubectl(world, &[&["--namespace", namespace], args.as_slice()].concat()).await;
        write(dir, &format!("{namespace}-{file}"), &text);
    }
    let names = kubectl(world, &["--namespace", namespace, "get", "pods", "-o", "name"]).await;
    for pod in names.lines().filter(|name| name.starts_with("pod/")) {
        let logs = ["--namespace", namespace, "logs", pod, "--all-containers", "--tail=5000"];
        let name = format!("{namespace}-{}", pod.trim_start_matches("pod/"));
        write(dir, &format!("{name}.log"), &kubectl(world, &logs).await);
        let before = kubectl(world, &[&logs[..], &["--previous"]].concat()).await;
        if !before.contains("previous terminated container") {
            write(dir, &format!("{name}.previous.log"), &before);
        }
    }
}

async fn kubectl(world: &World, args: &[&str]) -> String {
    match world.tools.kubectl(args).output().await {
        Ok(output) => output.all(),
        Err(error) => format!("{error:#}\n"),
    }
}

/// The last of each daemon's log.
fn daemons(logs: &Path, dir: &Path) {
    const TAIL: usize = 256 << 10;
    for machine in fs::read_dir(logs).into_iter().flatten().flatten() {
        for file in fs::read_dir(machine.path()).into_iter().flatten().flatten() {
            let path = file.path();
            if path.extension().is_some_and(|e| e == "log")
                && let Ok(text) = fs::read(&path)
            {
                let name = format!("{}-{}", machine.file_name().display(), file.file_name().display());
                let tail = &text[text.len().saturating_sub(TAIL)..];
                write(dir, &name, &String::from_utf8_lossy(tail));
            }
        }
    }
}

fn write(dir: &Path, file: &str, text: &str) {
    if let Err(error) = fs::write(dir.join(file), text) {
        eprintln!("e2e: cannot write {}: {error}", dir.join(file).display());
    }
}
