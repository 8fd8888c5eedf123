//! Pure placement decisions: which worker holds which unit, and which part of a unit's tokens each holder takes.
//!
//! [`plan`] is a function of its [`Request`] and nothing else. It
//! 1. packs the units' copies into the workers' slots, heaviest first, block by block (`pack`);
//! 2. with a load, adds copies while they shorten a block's busiest step (`copies`);
//! 3. plans the fractions of each unit's holders (`spread`);
//! 4. keeps the current placement, repaired where it must be, unless the new one is better by more than the
//!    tolerance.
//!
//! What it minimises is the predicted *pass*: the sum over blocks of the time of the busiest worker in that block.

//!
//! ```
//! use sluice_core::ids::WorkerId;
//! use sluice_planner::{Replicas, Request, Worker, plan};
//!
//! let workers = (0..4).map(|id| Worker { id: WorkerId(id), slots: u32::MAX }).collect();
//! let mut request = Request::new(vec![true; 2], 8, workers);
//! (request.segments, request.slices) = (8, 2);
//! request.replicas = Replicas::exactly(2);
//! let table = plan(&request)?.placement(2, 1, 1);
//! assert_eq!(table.len(), 2);
//! assert_eq!(table[0].replicas.len(), 8 * 2 * 2);
//! # Ok::<(), sluice_planner::PlanError>(())
//! ```

mod copies;
mod cost;
mod error;
mod moves;
mod pack;
mod plan;
mod request;
mod site;
mod spread;

pub use error::PlanError;
pub use moves::{Held, Move, NextTable, Situation, next_table};
pub use plan::{Changes, Holder, Plan, PlannedUnit, Reason, Source, plan};
pub use request::{Bounds, Load, Replicas, Request, Worker};
