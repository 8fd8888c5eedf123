//! Times in heartbeats, from which each end of a connection learns how long the way there and back takes.
//!
//! The two clocks need not agree: a time is only ever compared with another of the same clock.

use sluice_core::ids::Nanos;

/// What a heartbeat carries since version 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// When it was sent, by its sender's clock.
    pub sent: Nanos,
    /// The newest heartbeat of its receiver that the sender has; none before the first.
    pub echo: Option<Echo>,
}

/// A heartbeat that goes back to who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// When it was sent, by the clock of who sent it.
    pub sent: Nanos,
    /// How long it has been held at the other end, by the clock there.
    pub held: Nanos,
}

/// A heartbeat that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// When it was sent, by its sender's clock.
    pub sent: Nanos,
    /// When it came, by the clock here.
    pub at: Nanos,
}

impl Times {
    /// Of a heartbeat that is sent now. `heard` is the other end's newest.
    pub fn new(now: Nanos, heard: Option<Heard>) -> Self {
        let echo = heard.map(|h| Echo { sent: h.sent, held: now.saturating_sub(h.at) });
        Self { sent: now, echo }
    }

    /// How long the way there and back took, for a heartbeat that came now. None without an echo, and none if the echo
    /// is of a time that has not been: the other end says what it likes.
    pub fn round_trip(&self, now: Nanos) -> Option<Nanos> {
        let echo = self.echo?;
        now.checked_sub(echo.sent)?.checked_sub(echo.held)
    }
}
