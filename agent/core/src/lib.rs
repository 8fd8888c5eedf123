//! The sans-IO core of the node agent: events in, actions out.
//!
//! No clock, no socket, no thread, no GPU. Everything hard is decided here, deterministically: the same code runs in
//! the agent and in the simulator.

pub mod clock;
pub mod config;
pub mod cost;
pub mod event;
pub mod frame;
pub mod front;
pub mod frontier;
pub mod ids;
pub mod kv;
pub mod link;
pub mod placement;
pub mod pool;
pub mod routing;
pub mod sequence;
pub mod slab;
pub mod step;
