//! What workers say to each other, in bytes. No socket: bytes in, messages out, and back.
//!
//! A [`message`] is one [`Frame`](sluice_core::frame::Frame) with the rows that travel with it, or a heartbeat. It
//! travels in [`fragment`]s of at most 64 KiB, so that decode batches and marks never wait behind a prefill batch. All
//! numbers are little-endian. Every length is checked against the bytes that are there before anything is allocated
//! for it, so a peer that speaks garbage costs what it sends and no more. What differs between [versions](version) of the
//! wire is decided here and nowhere else.

pub mod beat;
pub mod fragment;
pub mod message;
mod record;
pub mod version;

pub use fragment::{Assembly, Lane, Outgoing, Whole};
pub use message::{Message, decode, encode};
pub use version::WIRE;
