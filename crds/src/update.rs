//! How running workers are exchanged for others.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How running workers are exchanged when their pods must change: one after the other where the bits stay the same,
/// else by a second set of workers that new requests go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UpdateStrategy {
    /// Pods of a role beyond its replicas while one is exchanged. With 0 there is one less instead.
    #[schemars(range(min = 0, max = 1))]
    pub max_surge: i32,
}
