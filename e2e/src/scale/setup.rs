//! What one measurement runs: a deployment, its devices, its placement and where its tokens go.

use sluice_agent::backend::routing::{Routing, SkewedRouting};
use sluice_agent::model::bundled;
use sluice_core::config::Policy;
use sluice_core::ids::WorkerId;
use sluice_planner::Plan;
use sluice_sim::fleet::Setting;
use sluice_sim::fleet::cost::CostModel;

/// The devices: the cost file of the scheduler table.
const MIXTRAL: &str = include_str!("../../../agent/costs/mixtral-8x7b-h100.toml");
/// Positions that each token attends to, as in the scheduler table.
const CONTEXT: u32 = 1000;

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setup {
    /// Expert workers, and as many attention ranks.
    pub workers: u32,
    /// Sequences that decode at all times, for each expert worker.
    pub per_worker: u32,
    /// The scheduler of all workers.
    pub policy: Policy,
    /// The hottest expert's share of all assignments.
    pub hottest: f64,
    /// Whether the processes talk over mutual TLS.
    pub tls: bool,
    /// The devices are so many times slower than they would be.
    pub slow_down: f64,
    /// Decode waves.
    pub waves: u8,
    /// Decides the draws.
    pub seed: u64,
}

/// What of the served model decides how it is placed and how wide its rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Served {
    /// Blocks.
    #[serde(rename = "num_hidden_layers")]
    pub blocks: u16,
    #[serde(rename = "num_local_experts")]
    experts: u16,
    #[serde(rename = "num_experts_per_tok")]
    top_k: u8,
    #[serde(rename = "hidden_size")]
    hidden: u32,
    #[serde(rename = "vocab_size")]
    vocab: u32,
    /// Positions of the longest sequence.
    #[serde(rename = "max_position_embeddings")]
    pub positions: u32,
}

impl Served {
    /// tiny-moe, as it comes with the agent.
    ///
    /// # Errors
    /// It is not what this reads.
    pub fn tiny_moe() -> Result<Self, String> {
        let config = bundled::file("config.json").ok_or("the agent has no model in it")?;
        serde_json::from_slice(config).map_err(|e| format!("the bundled model's config.json: {e}"))
    }

    /// Every expert's share of all assignments if they are equally popular.
    pub fn even(&self) -> f64 {
        1.0 / f64::from(self.experts)
    }

    /// Bytes of a row that travels, which it does in f32.
    pub fn row_bytes(&self) -> u32 {
        4 * self.hidden
    }
}

impl Setup {
    /// Sequences of all workers.
    pub fn sequences(&self) -> u32 {
        self.workers * self.per_worker
    }

    /// The cost file: the shape of the scheduler table's model and its devices, with the blocks, the vocabulary and the
    /// rows of the model that is served.
    ///
    /// # Errors
    /// The bundled model is not what this reads.
    pub fn costs(&self) -> Result<String, String> {
        let served = Served::tiny_moe()?;
        let text = set(MIXTRAL, "slow_down", self.slow_down);
        let text = set(&text, "context", CONTEXT);
        let text = set(&text, "row_values", served.hidden);
        let text = set(&text, "blocks", served.blocks);
        let text = set(&text, "experts", served.experts);
        let text = set(&text, "top_k", served.top_k);
        let text = set(&text, "vocab", served.vocab);
        Ok(set(&text, "max_positions", served.positions))
    }

    /// Where tokens go, as the agents are told.
    pub fn routing(&self) -> Routing {
        Routing::Skew { share: self.hottest, seed: self.seed }
    }

    /// The same in the simulator, on devices that nothing holds up: no host, no wire. Workers have the numbers of the
    /// deployment: ranks first.
    ///
    /// # Errors
    /// A share that no routing can have.
    pub fn setting(&self) -> Result<Setting, String> {
        let costs = CostModel::parse(&self.costs()?)?;
        let m = &costs.model;
        let (blocks, experts, top_k) = (m.blocks, m.experts.into(), m.top_k.into());
        let routing = SkewedRouting::new(self.routing(), blocks.into(), experts, top_k, 1);
        let routing = routing.map_err(|e| e.to_string())?.ok_or("no routing")?;
        Ok(Setting {
            blocks,
            devices: 2 * self.workers,
            ranks: self.workers,
            tokens: self.sequences(),
            context: CONTEXT.into(),
            share: self.hottest,
            shares: Some((0..blocks).map(|b| routing.shares(b).to_vec()).collect()),
            jitter: 0.0,
            slices: 1,
            replicas: 1,
            waves: if self.policy == Policy::Sync { 1 } else { self.waves },
            policy: self.policy,
            hop: 0,
            bandwidth: 0.0,
            seed: self.seed,
            costs,
        })
    }
}

/// The most loaded expert worker's part of all assignments over the mean, over the blocks together.
pub fn imbalance(plan: &Plan, setting: &Setting) -> f64 {
    let skew = setting.skew();
    let mut loads = vec![0.0; setting.devices as usize];
    for (unit, WorkerId(worker)) in plan.held() {
        loads[worker as usize] += skew.shares(unit.block)[usize::from(unit.expert)];
    }
    let sum: f64 = loads.iter().sum();
    loads.iter().copied().fold(0.0, f64::max) * setting.hosts().len() as f64 / sum
}

/// A cost file with another value for one key, which may be a line of it, a comment, or neither.
fn set(text: &str, key: &str, value: impl std::fmt::Display) -> String {
    let begins = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} = "));
    let line = format!("{key} = {value}");
    if !text.lines().any(begins) {
        return format!("{line}\n{text}");
    }
    text.lines().map(|l| if begins(l) { line.as_str() } else { l }).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_agent::backend::modelled::CostModel as Agents;

    fn setup() -> Setup {
        Setup {
            workers: 4,
            per_worker: 16,
            policy: Policy::Frontier,
            hottest: 0.4,
            tls: false,
            slow_down: 50.5,
            waves: 1,
            seed: 3,
        }
    }

    #[test]
    fn the_cost_file_has_mixtrals_times_and_tiny_moes_blocks_and_rows() {
        let costs = Agents::parse(&setup().costs().unwrap()).unwrap();
        let mixtral = Agents::parse(MIXTRAL).unwrap();
        assert_eq!((costs.device, costs.model.hidden), (mixtral.device, mixtral.model.hidden));
        assert_eq!((costs.model.inner, costs.model.heads), (mixtral.model.inner, mixtral.model.heads));
        assert_eq!((costs.slow_down, costs.context, costs.row_values), (50.5, Some(1000), 256));
        assert_eq!((costs.model.blocks, costs.model.experts, costs.model.top_k), (6, 8, 2));
        assert_eq!((costs.model.vocab, costs.model.max_positions), (4096, 1024));
        assert_eq!(Served::tiny_moe().unwrap().row_bytes(), 1024);
    }

    #[test]
    fn simulator_and_agents_have_the_same_popularity() {
        let setting = setup().setting().unwrap();
        let (skew, plan) = (setting.skew(), setting.plan(&setting.skew()).unwrap());
        assert_eq!((setting.hosts(), setting.all_ranks(), setting.tokens), (4..8, 4, 64));
        for block in 0..6 {
            let hottest = skew.shares(block).iter().copied().fold(0.0, f64::max);
            assert!((hottest - 0.4).abs() < 1e-6);
        }
        assert!((1.0..3.2).contains(&imbalance(&plan, &setting)));
        let even = Setup { hottest: Served::tiny_moe().unwrap().even(), ..setup() }.setting().unwrap();
        let plan = even.plan(&even.skew()).unwrap();
        assert!((imbalance(&plan, &even) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_key_is_set_wherever_it_stands() {
        assert_eq!(set("a = 1\n[t]\nb = 2\n", "b", 3), "a = 1\n[t]\nb = 3");
        assert_eq!(set("# a = 1\n[t]", "a", 3), "a = 3\n[t]");
        assert_eq!(set("[t]\nab = 2", "b", 3), "b = 3\n[t]\nab = 2");
    }
}
