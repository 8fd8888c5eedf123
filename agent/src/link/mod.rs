//! The link between a gateway and an attention rank of another process.
//!
//! The gateway dials. Behind the hellos, which the transport exchanges, it opens a *session*
//! ([`sluice_core::session`]) that outlives the connection: both sides number their messages and keep them until the
//! other has them, so a connection that breaks is dialled anew and nothing is lost, doubled or reordered. A session
//! that cannot go on is over as a whole: the gateway replays what it had bound, the rank cancels it.
//!
//! | part | bytes |
//! | --- | --- |
//! | length | `u32`, of what follows, little-endian as all numbers |
//! | acknowledgement | `u64`: the number of the newest message that the sender has |
//! | number | `u64`, from 1; 0 for a heartbeat, which carries nothing else |
//! | message | [`message::ToRank`] or [`message::ToGateway`] in postcard's encoding |
//!
//! Before the first of these each side sends one that has neither acknowledgement nor number: [`message::Open`] by the
//! gateway, [`message::Answer`] by the rank. postcard does not describe itself, so a change to any of these types, or to
//! what they contain, is a new version of the wire, which the hellos agree on. Versions 1 and 2 are the same here. What
//! is kept for a connection that breaks may go out on the next, since that has the same version: a process that starts
//! anew, and may speak another, knows none of the sessions of the one before.
//!
//! Neither side knows the run time: [`gateway::GatewaySide`] and [`rank::RankSide`] are what they call.

mod carry;
mod end;
mod frame;
pub mod gateway;
mod grammars;
pub mod message;
mod outbox;
pub mod rank;
#[cfg(test)]
mod tests;
mod ticks;

use std::time::Duration;

use sluice_core::ids::{MILLI, Nanos, SECOND};
use sluice_core::session::SessionLimits;
use sluice_core::silence::SilenceConfig;

pub use end::{Broken, End, Garbage, Lost};

/// What both sides of a link are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkConfig {
    /// Heartbeats, and how long one that sends none is waited for.
    pub silence: SilenceConfig,
    /// What is kept for a peer that does not acknowledge.
    pub limits: SessionLimits,
    /// How long a rank keeps what a gateway that is silent bound to it.
    pub lease: Nanos,
    /// How long opening a session may take on a new connection.
    pub opening: Duration,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            silence: SilenceConfig { beat: 50 * MILLI, least: 400 * MILLI, most: 5 * SECOND },
            // Some seconds of a busy rank's tokens, or a gateway's whole queue of long prompts.
            limits: SessionLimits { messages: 1 << 16, bytes: 256 << 20 },
            lease: 10 * SECOND,
            opening: Duration::from_secs(5),
        }
    }
}
