//! Workers that are slower than their siblings: they get less, and what they are late with is asked elsewhere too.

use super::asking::{all_at, asking, batches, items, outputs};
use super::*;

const A: u32 = 4;
const B: u32 = 5;

/// A rank whose sequences go on for long.
fn roomy() -> WorkerConfig {
    let mut config = asking();
    config.rank.as_mut().unwrap().pages = 2048;
    WorkerConfig { waves: 1, ..config }
}

/// A rank with four sequences and two replicas of everything, and what each of them has not returned.
struct Two {
    b: Bench,
    peers: [Peer; 2],
    held: [Vec<Body>; 2],
}

impl Two {
    fn new() -> Self {
        let mut b = Bench::new(roomy());
        let peers = [A, B].map(|w| b.meet(w, false, Some(16)));
        b.place(1, [all_at(A), all_at(B)].concat());
        (1..=4).for_each(|r| drop(b.bind(bind(r, 1, 1000))));
        Self { b, peers, held: [vec![], vec![]] }
    }

    /// What goes out is held by who got it. Gives the number of items for each.
    fn take(&mut self, actions: &[Action]) -> [usize; 2] {
        let mut counts = [0, 0];
        for (to, batch) in batches(actions) {
            let i = usize::from(to == WorkerId(B));
            counts[i] += batch.items.len();
            self.held[i].push(outputs(items(batch), batch.rows.iter().map(|r| r.dst).collect()));
        }
        counts
    }

    /// Runs steps until all tokens are away.
    fn step(&mut self) -> [usize; 2] {
        let actions = self.b.run_until(|_| false);
        self.take(&actions)
    }

    /// One of them returns all that it holds.
    fn answer(&mut self, i: usize) {
        for body in std::mem::take(&mut self.held[i]) {
            let actions = self.b.hear(&mut self.peers[i], body);
            self.take(&actions);
        }
    }

    /// A step's tokens leave, and come back after so many cycles each.
    fn round(&mut self, cycles: [u64; 2]) -> [usize; 2] {
        let (start, counts) = (self.b.now, self.step());
        let order = if cycles[0] <= cycles[1] { [0, 1] } else { [1, 0] };
        for i in order.into_iter().filter(|i| counts[*i] > 0) {
            self.b.now = start + cycles[i] * CYCLE;
            self.answer(i);
        }
        counts
    }

    fn rounds(&mut self, n: u32, cycles: [u64; 2]) -> [usize; 2] {
        let mut sum = [0, 0];
        for _ in 0..n {
            let counts = self.round(cycles);
            (0..2).for_each(|i| sum[i] += counts[i]);
        }
        sum
    }

    fn counters(&self) -> Counters {
        *self.b.worker.counters()
    }
}

#[test]
fn what_a_worker_is_late_with_is_asked_of_its_sibling_and_whoever_is_first_is_heard() {
    let mut t = Two::new();
    let [a, b] = t.rounds(12, [1, 1]);
    assert_eq!(a, b, "each has its part");
    let (start, [a, b]) = (t.b.now, t.step());
    assert!(a > 0 && b > 0, "{a} {b}");
    t.b.now += CYCLE;
    t.answer(1);
    assert_eq!(t.counters().hedged, 0);
    assert_eq!(t.b.worker.wake(), Some(start + 4 * CYCLE));
    t.b.tick(start + 4 * CYCLE - 1);
    assert_eq!(t.counters().hedged, 0);
    t.b.now += 1;
    let actions = t.b.handle(Event::Tick);
    assert_eq!((t.take(&actions), t.counters().hedged), ([0, a], a as u64));
    let n = t.counters();
    assert_eq!((n.masked, n.redispatched, n.duplicate_returns), (0, 0, 0), "it is not taken for lost");
    t.answer(1);
    assert!(t.b.running.is_some(), "all are whole");
    assert_eq!(t.step()[0], 0, "it gets nothing before it has answered");
    t.answer(0);
    assert_eq!((t.counters().duplicate_returns, t.counters().duplicate_frames), (a as u64, 0));
    t.answer(1);
    let [a, b] = t.rounds(12, [1, 1]);
    assert!(a > 0 && a.abs_diff(b) <= 2, "once is no habit: {a} {b}");
}

#[test]
fn a_slow_worker_gets_a_probe_now_and_then_until_it_is_as_fast_as_the_others() {
    let mut t = Two::new();
    t.rounds(20, [3, 1]);
    let [a, b] = t.rounds(60, [3, 1]);
    assert!(a * 2 < b && b < a * 4, "three times as slow, a third: {a} {b}");
    let slow = |t: &Two| t.b.worker.pressure(t.b.now).slow;
    let shown = slow(&t);
    assert!(matches!(shown[..], [(WorkerId(A), share)] if share < 0.5), "{shown:?}");
    t.rounds(10, [9, 1]);
    let [a, b] = t.rounds(60, [9, 1]);
    assert!(a > 0 && a * 16 < b, "{a} {b}");
    // A probe every twenty cycles, and the median is of five.
    t.rounds(80, [1, 1]);
    let [a, b] = t.rounds(60, [1, 1]);
    assert!(a.abs_diff(b) <= 4, "{a} {b}");
    assert_eq!(slow(&t), []);
}

#[test]
fn who_has_had_slow_steps_of_late_is_waited_for_longer() {
    let mut t = Two::new();
    t.rounds(12, [1, 1]);
    // Now and then something long is in front, at either of them.
    t.rounds(1, [6, 6]);
    t.rounds(4, [1, 1]);
    let start = t.b.now;
    t.step();
    t.b.now += CYCLE;
    t.answer(1);
    t.b.tick(start + 12 * CYCLE);
    assert_eq!(t.counters().hedged, 0, "the sibling has taken six cycles, not long ago");
    t.b.tick(start + 24 * CYCLE);
    assert!(t.counters().hedged > 0);
}

#[test]
fn what_is_sent_back_unrun_is_no_time() {
    let mut t = Two::new();
    t.rounds(12, [1, 1]);
    for _ in 0..8 {
        t.step();
        // A lacks it all, and says so at once.
        for body in std::mem::take(&mut t.held[0]) {
            let Body::Returns(b) = body else { unreachable!() };
            let redirect = Redirect { items: b.items, freed: b.freed, slice: None };
            let actions = t.b.hear(&mut t.peers[0], Body::Redirect(redirect));
            t.take(&actions);
        }
        t.b.now += CYCLE;
        t.answer(1);
    }
    let rank = t.b.worker.rank.as_ref().unwrap();
    assert!(rank.dests[1..].iter().all(|d| d.pace.usual(t.b.now) >= Some(CYCLE)));
    assert_eq!(t.b.worker.pressure(0).slow.len(), 0);
    assert_eq!(t.counters().hedged, 0);
}

#[test]
fn a_rank_that_was_away_itself_takes_nobody_for_late() {
    let mut t = Two::new();
    t.rounds(12, [1, 1]);
    t.step();
    let later = t.b.now + 400 * CYCLE;
    t.b.tick(later);
    assert_eq!(t.counters().hedged, 0);
    t.answer(0);
    t.answer(1);
    assert!(t.b.running.is_some());
    assert_eq!(t.counters().duplicate_returns, 0);
}

#[test]
fn the_only_holder_is_asked_however_slow_it_is() {
    let mut b = Bench::new(roomy());
    let mut peer = b.meet(A, false, Some(16));
    b.place(1, all_at(A));
    b.bind(bind(1, 1, 1000));
    for _ in 0..20 {
        let actions = b.run_until(|_| false);
        let [(_, batch)] = batches(&actions)[..] else { panic!("{actions:?}") };
        b.tick(b.now + 50 * CYCLE);
        b.hear(&mut peer, outputs(items(batch), batch.rows.iter().map(|r| r.dst).collect()));
    }
    let n = b.worker.counters();
    assert_eq!((n.hedged, n.duplicate_returns, n.masked), (0, 0, 0));
}
