//! How a worker chooses what runs next.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the workers of a role choose the μ-queue that runs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Scheduler {
    /// What runs next. `Frontier`: complete batches first, then the least advanced. `Defrag`: by tokens here and ahead.
    /// `Mtfs`: most tokens first. `Flfs`: first layer first. `Sync`: a barrier after every step, the baseline.
    pub policy: SchedulerPolicy,
    /// `Frontier`: an incomplete queue may run if at least this part of the step, in percent, need not be paid again
    /// when the rest comes.
    #[schemars(range(min = 1, max = 100))]
    pub useful_percent: i32,
    /// `Defrag`: blocks to look ahead.
    #[schemars(range(min = 1, max = 64))]
    pub look_ahead: i32,
    /// `Defrag`: the weight of each further block, in percent of the one before.
    #[schemars(range(min = 0, max = 100))]
    pub decay_percent: i32,
    /// Every policy but `Sync`: cycles after which a waiting token releases its μ-queue.
    #[schemars(range(min = 1, max = 1000))]
    pub urgent_cycles: i32,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self {
            policy: SchedulerPolicy::Frontier,
            useful_percent: 80,
            look_ahead: 8,
            decay_percent: 80,
            urgent_cycles: 4,
        }
    }
}

/// A scheduling policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SchedulerPolicy {
    /// What is complete first, then the least advanced.
    #[default]
    Frontier,
    /// Algorithm 1 of the AMoE paper: by tokens here and ahead.
    Defrag,
    /// Most tokens first.
    Mtfs,
    /// First layer first.
    Flfs,
    /// A barrier over all workers after every step: the baseline. Both roles or none.
    Sync,
}
