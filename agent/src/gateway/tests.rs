//! The gateway over real sockets, with a made-up engine.

mod api;
mod client;
mod clients;
mod errors;
mod fake;
mod shutdown;
mod structured;
mod traces;
mod work;
