//! The deterministic simulator of the core: many workers and gateways on a virtual clock, over a network that delays,
//! reorders and duplicates. One u64 decides everything.
//!
//! The oracle is a model whose hidden states are digests (see [`symbol`]): every sequence's tokens must be those of
//! its evaluation alone. Beside it stand invariants that are checked at every event (see [`world`] and [`ledger`]).

pub mod client;
pub mod coverage;
pub mod device;
pub mod faults;
pub mod fleet;
pub mod heap;
pub mod ledger;
pub mod link;
pub mod operator;
pub mod out;
pub mod pairs;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod symbol;
pub mod table;
pub mod timing;
pub mod wire;
pub mod world;
