//! When a peer that sends heartbeats is taken for lost: after a silence that is long against the gaps it usually has.
//!
//! A crowded machine, a long step or a slow link makes gaps longer, and the patience with them; time in which nobody
//! here looked (this process was stopped, or had no processor) is nobody's silence.

use crate::ids::Nanos;

/// What silences are measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SilenceConfig {
    /// Heartbeats are sent so often, where nothing else is said.
    pub beat: Nanos,
    /// A shorter silence never counts.
    pub least: Nanos,
    /// A longer one always does.
    pub most: Nanos,
}

/// A peer is lost after so many times its usual gap.
const GAPS: u64 = 4;
/// Of the largest gap seen, one part in so many fades with each sign.
const FADING: u64 = 32;

/// The silence of one connection.
#[derive(Clone, Debug)]
pub struct Silence {
    config: SilenceConfig,
    heard: Nanos,
    /// The largest gap of late.
    gap: Nanos,
    looked: Nanos,
}

impl Silence {
    /// Of a connection that begins now.
    pub fn new(config: SilenceConfig, now: Nanos) -> Self {
        Self { config, heard: now, gap: config.beat, looked: now }
    }

    /// The peer gave a sign: anything that arrives is one.
    pub fn heard(&mut self, now: Nanos) {
        self.look(now);
        let gap = now.saturating_sub(self.heard);
        self.gap = gap.max(self.gap - self.gap / FADING).max(self.config.beat);
        self.heard = now;
    }

    /// How long it has been silent.
    pub fn lasts(&self, now: Nanos) -> Nanos {
        now.saturating_sub(self.heard)
    }

    /// How long it may be silent now.
    pub fn patience(&self) -> Nanos {
        GAPS.saturating_mul(self.gap).clamp(self.config.least, self.config.most.max(self.config.least))
    }

    /// Whether it has been silent for too long. To be asked about as often as a heartbeat is sent.
    pub fn is_lost(&mut self, now: Nanos) -> bool {
        self.look(now);
        self.lasts(now) >= self.patience()
    }

    /// When to ask next if nothing is heard before.
    pub fn next(&self) -> Nanos {
        self.heard.saturating_add(self.patience()).min(self.looked.saturating_add(self.config.beat))
    }

    /// Time in which nobody looked does not count, but for one heartbeat.
    fn look(&mut self, now: Nanos) {
        let away = now.saturating_sub(self.looked);
        if away > 2 * self.config.beat {
            self.heard = self.heard.saturating_add(away - self.config.beat).min(now);
        }
        self.looked = self.looked.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MILLI;
    use proptest::prelude::*;

    const CONFIG: SilenceConfig = SilenceConfig { beat: 50 * MILLI, least: 400 * MILLI, most: 5_000 * MILLI };

    /// Hears at each of the gaps, looking every beat between. The times at which it was found lost.
    fn hear(s: &mut Silence, mut now: Nanos, gaps: &[Nanos]) -> (Nanos, Vec<Nanos>) {
        let mut lost = vec![];
        for gap in gaps {
            let end = now + gap;
            while now + CONFIG.beat < end {
                now += CONFIG.beat;
                lost.extend(s.is_lost(now).then_some(now));
            }
            now = end;
            s.heard(now);
        }
        (now, lost)
    }

    #[test]
    fn a_regular_peer_is_lost_after_the_least_silence() {
        let mut s = Silence::new(CONFIG, 0);
        let (now, lost) = hear(&mut s, 0, &[50 * MILLI; 40]);
        assert_eq!((lost.len(), s.patience()), (0, 400 * MILLI));
        let (_, lost) = hear(&mut s, now, &[1_000 * MILLI]);
        assert_eq!(lost.first(), Some(&(now + 400 * MILLI)));
    }

    #[test]
    fn a_slow_peer_is_not_a_dead_one() {
        let mut s = Silence::new(CONFIG, 0);
        let (now, lost) = hear(&mut s, 0, &[300 * MILLI; 20]);
        assert_eq!((lost.len(), s.patience()), (0, 1_200 * MILLI), "four of its gaps");
        let (now, _) = hear(&mut s, now, &[50 * MILLI; 200]);
        assert_eq!(s.patience(), 400 * MILLI, "what was slow once fades");
        let (_, lost) = hear(&mut s, now, &[60_000 * MILLI]);
        assert_eq!(lost.first(), Some(&(now + 400 * MILLI)));
        assert_eq!(s.patience(), 5_000 * MILLI, "however long it was, there is an end to patience");
    }

    #[test]
    fn it_says_when_to_look() {
        let mut s = Silence::new(CONFIG, 100);
        assert_eq!(s.next(), 100 + 50 * MILLI);
        let mut now = 100;
        while !s.is_lost(now) {
            assert!(s.next() > now);
            now = s.next();
        }
        assert_eq!(now, 100 + 400 * MILLI);
    }

    proptest! {
        /// The one who was stopped blames nobody: after any time in which it did not look, its peers have a beat's
        /// silence more than before.
        #[test]
        fn time_in_which_nobody_looked_does_not_count(
            before in 0..390 * MILLI,
            away in 101 * MILLI..3_600_000 * MILLI,
        ) {
            let mut s = Silence::new(CONFIG, 0);
            let (now, _) = hear(&mut s, 0, &[50 * MILLI; 3]);
            let mut looked = now;
            while looked < now + before / 2 {
                looked += 50 * MILLI;
                prop_assert!(!s.is_lost(looked));
            }
            prop_assert!(!s.is_lost(looked + away));
        }

        /// A peer that sends nothing is found, whatever it did before.
        #[test]
        fn a_dead_peer_is_found(gaps in prop::collection::vec(1..20_000 * MILLI, 0..30)) {
            let mut s = Silence::new(CONFIG, 0);
            let (mut now, _) = hear(&mut s, 0, &gaps);
            let end = now + CONFIG.most + CONFIG.beat;
            while !s.is_lost(now) {
                now = s.next();
                prop_assert!(now <= end);
            }
        }
    }
}
