//! Every sample of crds/samples is admitted by the API server, and comes back with its defaults.

use crate::cluster;
use crate::objects::Space;
use anyhow::{Context, ensure};

pub async fn run(space: &Space<'_>) -> anyhow::Result<()> {
    let mut count = 0;
    for file in std::fs::read_dir(cluster::top().join("crds/samples"))? {
        let path = file?.path();
        let text = std::fs::read_to_string(&path)?;
        // One of them names a namespace of its own.
        let text: String = text
            .lines()
            .filter(|line| !line.starts_with("  namespace:"))
            .fold(String::new(), |all, line| all + line + "\n");
        let apply = space.kubectl(&["apply", "--server-side", "--dry-run=server", "-o", "name", "-f", "-"]);
        apply.input(text).text().await.with_context(|| path.display().to_string())?;
        count += 1;
    }
    ensure!(count >= 10, "only {count} samples");
    Ok(())
}
