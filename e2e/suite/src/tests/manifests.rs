//! Manifests of tests.

use crate::cluster;

/// The example, under another name.
pub fn tiny(name: &str) -> String {
    let path = cluster::top().join("examples/tiny-moe.yaml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.replace("\n  name: tiny-moe\n", &format!("\n  name: {name}\n"))
}
