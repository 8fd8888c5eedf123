//! The sans-IO core of the node agent: events in, actions out.
//!
//! No clock, no socket, no thread, no GPU. Everything hard is decided here, deterministically: the same code runs in
//! the agent and in the simulator.

mod barrier;
pub mod clock;
pub mod config;
pub mod cost;
pub mod counters;
mod cycle;
pub mod event;
pub mod frame;
pub mod front;
pub mod frontier;
pub mod hello;
mod host;
pub mod ids;
pub mod kv;
pub mod lease;
pub mod link;
mod median;
mod net;
pub mod placement;
pub mod plant;
pub mod pool;
pub mod pressure;
mod rank;
pub mod routing;
pub mod sched;
pub mod sequence;
pub mod session;
pub mod silence;
pub mod slab;
pub mod step;
pub mod worker;
