//! Versions of the wire.
//!
//! | version | since it |
//! | --- | --- |
//! | 1 | |
//! | 2 | heartbeats between workers carry [times](crate::beat::Times) |
//!
//! Everything else is the same in all of them, and so are the sessions between gateways and ranks. Each connection has
//! the newest version that both of its ends speak, which their hellos tell; so processes of two releases run together
//! for as long as it takes to replace one by the other.

use sluice_core::hello::WireVersions;

/// What this build speaks. The oldest is the newest of the release before.
pub const WIRE: WireVersions = WireVersions { min: 1, max: 2 };

/// The first version in which heartbeats carry times.
pub(crate) const TIMED_BEATS: u16 = 2;
