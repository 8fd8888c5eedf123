use super::*;
use crate::ids::{GatewayId, MICRO};

mod choice;

type Out = Vec<Action<u16>>;

const LOAD: RankLoad =
    RankLoad { free_blocks: 100, pool_blocks: 100, block_tokens: 16, queue: 0, draining: false };
const A: WorkerId = WorkerId(1);
const B: WorkerId = WorkerId(2);

fn front(queue: usize) -> Front<u16> {
    Front::new(FrontConfig { queue, prefixes: 16, ..FrontConfig::new(GatewayId(0)) })
}

fn request(request: u64, prompt: usize, max_tokens: u32) -> Submit<u16> {
    Submit {
        request,
        choices: vec![0],
        prompt: (0..prompt as u32).map(|i| i + 1000 * request as u32).collect(),
        stop: StopRule { ids: vec![7], min_tokens: 0, max_tokens },
        deadline: None,
        salt: 0,
    }
}

fn key(request: u64) -> SeqKey {
    SeqKey { request, choice: 0 }
}

fn up(front: &mut Front<u16>, rank: WorkerId, cohort: u64) -> Out {
    let mut out = Vec::new();
    front.rank_up(0, rank, cohort, LOAD, &mut out);
    out
}

fn submit(front: &mut Front<u16>, request: Submit<u16>) -> Out {
    let mut out = Vec::new();
    front.submit(0, request, &mut out).unwrap();
    out
}

fn said(front: &mut Front<u16>, rank: WorkerId, seq: SeqKey, attempt: Attempt, event: RankEvent) -> Out {
    let mut out = Vec::new();
    front.rank_event(0, rank, seq, attempt, event, &mut out);
    out
}

/// The only bind among some actions.
fn bound(out: &Out) -> (WorkerId, Bind) {
    let mut binds = out.iter().filter_map(|action| match action {
        Action::Bind { rank, bind, .. } => Some((*rank, bind.clone())),
        _ => None,
    });
    let first = binds.next().unwrap();
    assert!(binds.next().is_none());
    first
}

fn ended(out: &Out) -> Vec<(SeqKey, Ending)> {
    out.iter()
        .filter_map(|action| match action {
            Action::End { seq, ending, .. } => Some((*seq, *ending)),
            _ => None,
        })
        .collect()
}

fn cancels(out: &Out) -> Vec<(WorkerId, SeqKey, Attempt)> {
    out.iter()
        .filter_map(|action| match action {
            Action::CancelAt { rank, seq, attempt } => Some((*rank, *seq, *attempt)),
            _ => None,
        })
        .collect()
}

const BUSY: RankEvent = RankEvent::Refused(Refusal::Busy);

#[test]
fn a_busy_rank_passes_the_sequence_to_the_next_and_then_to_the_queue() {
    let mut front = front(8);
    up(&mut front, A, 0);
    up(&mut front, B, 0);
    let (first, bind) = bound(&submit(&mut front, request(1, 3, 4)));
    let (second, again) = bound(&said(&mut front, first, key(1), bind.attempt, BUSY));
    assert_ne!(first, second);
    assert_eq!((again.attempt, again.replay), (bind.attempt + 1, false));
    assert!(said(&mut front, second, key(1), again.attempt, BUSY).is_empty());
    assert_eq!(front.waiting(), Waiting { replays: 0, fresh: 1 });

    let mut out = Vec::new();
    let at = front.next_tick().unwrap();
    front.tick(at - 1, &mut out);
    assert!(out.is_empty());
    front.rank_load(at - 1, second, LOAD, &mut out);
    assert_eq!(bound(&out).0, second);
}

#[test]
fn a_busy_rank_is_tried_again_after_a_while() {
    let mut front = front(8);
    up(&mut front, A, 0);
    let (_, bind) = bound(&submit(&mut front, request(1, 3, 4)));
    said(&mut front, A, key(1), bind.attempt, BUSY);
    let mut out = Vec::new();
    front.tick(front.next_tick().unwrap(), &mut out);
    assert_eq!(bound(&out).0, A);
}

#[test]
fn a_full_queue_refuses_all_choices_and_says_when_to_come_back() {
    let mut front = front(2);
    up(&mut front, A, 0);
    submit(&mut front, request(1, 3, 4));
    let two = Submit { choices: vec![0, 1], ..request(2, 3, 4) };
    let mut out = Vec::new();
    let refused = front.submit(0, two, &mut out).unwrap_err();
    assert!(matches!(refused, Refused::Busy { retry_after } if retry_after >= SECOND));
    assert!(out.is_empty());
    submit(&mut front, request(3, 3, 4));
    assert_eq!(front.counts().refused, 2);
    // Taken by a rank, a sequence frees its place in the queue.
    said(&mut front, A, key(1), 1, RankEvent::Accepted);
    submit(&mut front, request(4, 3, 4));
}

#[test]
fn retry_after_grows_with_the_queue_and_the_time_a_sequence_takes() {
    let mut front = front(100);
    up(&mut front, A, 0);
    let mut out = Vec::new();
    for i in 1..=50 {
        front.submit(i * 4 * SECOND, request(i, 3, 4), &mut out).unwrap();
        front.rank_event(i * 4 * SECOND, A, key(i), 1, RankEvent::Accepted, &mut out);
    }
    let wait = |front: &Front<u16>| front.retry_after();
    assert_eq!(wait(&front), SECOND);
    for i in 51..=55 {
        submit(&mut front, request(i, 3, 4));
    }
    let five = wait(&front);
    assert!(five > 10 * SECOND && five <= 20 * SECOND, "{five}");
    for i in 56..=150 {
        submit(&mut front, request(i, 3, 4));
    }
    assert_eq!(wait(&front), 60 * SECOND);
}

#[test]
fn too_large_is_refused_at_the_door_or_when_every_rank_has_said_so() {
    let mut front = front(8);
    up(&mut front, A, 0);
    let exact = LOAD.room();
    let refused = front.submit(0, request(1, 10, exact - 8), &mut Vec::new()).unwrap_err();
    assert_eq!(refused, Refused::TooLarge { need: exact + 1, room: exact });
    submit(&mut front, request(1, 10, exact - 9));
    up(&mut front, B, 0);
    let large = RankEvent::Refused(Refusal::TooLarge { room: 99 });
    let (_, next) = bound(&said(&mut front, A, key(1), 1, large));
    let out = said(&mut front, B, key(1), next.attempt, large);
    assert_eq!(ended(&out), [(key(1), Ending::Refused(Refused::TooLarge { need: exact, room: 99 }))]);
}

#[test]
fn a_lost_rank_is_replayed_from_the_journal_and_its_late_words_are_dropped() {
    let mut front = front(8);
    up(&mut front, A, 0);
    let (_, bind) = bound(&submit(&mut front, request(1, 2, 4)));
    assert_eq!((bind.attempt, bind.produced, bind.replay), (1, 0, false));
    said(&mut front, A, key(1), 1, RankEvent::Accepted);
    said(&mut front, A, key(1), 1, RankEvent::Token { index: 0, id: 50 });
    up(&mut front, B, 0);
    let mut out = Vec::new();
    front.rank_down(0, A, &mut out);
    let (rank, bind) = bound(&out);
    assert_eq!((rank, bind.attempt, bind.produced, bind.replay), (B, 2, 1, true));
    assert_eq!(*bind.ids, [1000, 1001, 50]);
    assert!(said(&mut front, A, key(1), 1, RankEvent::Token { index: 1, id: 51 }).is_empty());
    assert!(said(&mut front, A, key(1), 1, RankEvent::Finished(Finish::Stop)).is_empty());
    assert_eq!(front.counts().duplicates, 2);
    let out = said(&mut front, B, key(1), 2, RankEvent::Token { index: 1, id: 51 });
    assert!(matches!(out[..], [Action::Deliver { index: 1, id: 51, .. }]));
    // Whatever it still runs is dropped when it comes back.
    assert_eq!(cancels(&up(&mut front, A, 0)), [(A, key(1), 1)]);
    assert!(cancels(&up(&mut front, A, 0)).is_empty());
}

#[test]
fn a_journal_that_is_complete_is_not_replayed() {
    for (max_tokens, id, how) in [(1, 50, Complete::Length), (9, 7, Complete::Stop)] {
        let mut front = front(8);
        up(&mut front, A, 0);
        up(&mut front, B, 0);
        let (rank, _) = bound(&submit(&mut front, request(1, 2, max_tokens)));
        said(&mut front, rank, key(1), 1, RankEvent::Token { index: 0, id });
        let mut out = Vec::new();
        front.rank_down(0, rank, &mut out);
        assert_eq!(ended(&out), [(key(1), Ending::Complete(how))]);
        assert_eq!(out.len(), 1);
    }
}

#[test]
fn no_tokens_asked_for_needs_no_rank() {
    let mut front = front(8);
    let out = submit(&mut front, request(1, 2, 0));
    assert_eq!(ended(&out), [(key(1), Ending::Complete(Complete::Length))]);
    assert!(front.is_idle());
}

#[test]
fn a_missing_token_is_answered_with_a_replay() {
    let mut front = front(8);
    up(&mut front, A, 0);
    submit(&mut front, request(1, 2, 9));
    said(&mut front, A, key(1), 1, RankEvent::Accepted);
    let out = said(&mut front, A, key(1), 1, RankEvent::Token { index: 1, id: 5 });
    assert_eq!(cancels(&out), [(A, key(1), 1)]);
    let (_, bind) = bound(&out);
    assert_eq!((bind.attempt, bind.produced, bind.replay), (2, 0, true));
    assert_eq!(front.counts().gaps, 1);
}

#[test]
fn preempted_sequences_go_ahead_of_new_work_even_on_a_busy_rank() {
    let mut front = front(8);
    up(&mut front, A, 0);
    submit(&mut front, request(1, 2, 9));
    said(&mut front, A, key(1), 1, RankEvent::Accepted);
    submit(&mut front, request(2, 2, 9));
    said(&mut front, A, key(2), 1, BUSY);
    assert_eq!(front.waiting(), Waiting { replays: 0, fresh: 1 });
    let out = said(&mut front, A, key(1), 1, RankEvent::HandedBack);
    let order: Vec<_> = out
        .iter()
        .map(|action| match action {
            Action::Bind { bind, .. } => (bind.seq, bind.replay, bind.attempt),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(order, [(key(1), true, 2), (key(2), false, 2)]);
}

#[test]
fn cancels_and_stop_strings_and_deadlines_end_once() {
    let mut front = front(8);
    up(&mut front, A, 0);
    for (i, deadline) in [(1, None), (2, None), (3, Some(50))] {
        submit(&mut front, Submit { deadline, ..request(i, 2, 9) });
    }
    let mut out = Vec::new();
    front.cancel(0, key(1), CancelCause::Client, &mut out);
    front.cancel(0, key(1), CancelCause::Client, &mut out);
    front.cancel(0, key(2), CancelCause::StopString, &mut out);
    assert_eq!(front.next_tick(), Some(50));
    front.tick(49, &mut out);
    assert_eq!(front.live(), 1);
    front.tick(50, &mut out);
    assert_eq!(
        ended(&out),
        [(key(1), Ending::Cancelled), (key(2), Ending::Complete(Complete::Stop)), (key(3), Ending::Deadline)]
    );
    assert_eq!(cancels(&out).len(), 3);
    assert!(front.is_idle() && front.next_tick().is_none());
}

#[test]
fn a_request_stays_with_the_numerics_of_the_rank_that_took_it() {
    let mut front = front(8);
    up(&mut front, A, 1);
    let out = submit(&mut front, Submit { choices: vec![0, 1], ..request(1, 2, 9) });
    assert_eq!(out.len(), 2);
    up(&mut front, B, 2);
    // Nobody took a choice: it may still go anywhere once none is bound.
    let second = SeqKey { request: 1, choice: 1 };
    assert!(said(&mut front, A, second, 1, BUSY).is_empty());
    assert_eq!(front.cohort(1), None);
    said(&mut front, A, key(1), 1, RankEvent::Accepted);
    assert_eq!(front.cohort(1), Some(1));
    let mut out = Vec::new();
    front.rank_down(0, A, &mut out);
    assert!(out.is_empty(), "no rank of that numerics id is left: they wait");
    assert_eq!(front.waiting(), Waiting { replays: 1, fresh: 1 });
    // Others are not held up by them.
    assert_eq!(bound(&submit(&mut front, request(2, 2, 9))).0, B);
    assert_eq!(up(&mut front, WorkerId(3), 1).len(), 2);
}

#[test]
fn a_request_nobody_took_may_change_its_numerics() {
    let mut front = front(8);
    up(&mut front, A, 1);
    submit(&mut front, request(1, 2, 9));
    up(&mut front, B, 2);
    assert_eq!(bound(&said(&mut front, A, key(1), 1, BUSY)).0, B);
}

#[test]
fn the_rank_with_most_free_blocks_is_chosen_unless_another_has_the_prefix() {
    let mut front = front(8);
    up(&mut front, A, 0);
    up(&mut front, B, 0);
    let long = |n: u64| Submit { prompt: (0..100).collect(), ..request(n, 1, 9) };
    let (first, _) = bound(&submit(&mut front, long(1)));
    assert_eq!(bound(&submit(&mut front, long(2))).0, first, "same prefix, about as free");
    assert_ne!(bound(&submit(&mut front, Submit { salt: 1, ..long(3) })).0, first, "another key's prefix");
    let full = RankLoad { free_blocks: 20, ..LOAD };
    front.rank_load(0, first, full, &mut Vec::new());
    assert_ne!(bound(&submit(&mut front, long(4))).0, first, "not when it is much fuller");
}

#[test]
fn affinity_forgets_the_oldest() {
    let mut affinity = Affinity::new(2);
    let hash = |salt| affinity::prefixes(salt, &[5; 64]);
    for salt in 0..3 {
        affinity.note(&hash(salt), A);
    }
    assert_eq!(affinity.find(&hash(0)), None);
    assert_eq!(affinity.find(&hash(2)), Some(A));
    let long = affinity::prefixes(9, &[5; 300]);
    affinity.note(&long, B);
    assert_eq!([0, 1, 2].map(|i| affinity.find(&long[i..=i])), [None, Some(B), Some(B)]);
    assert!(affinity::prefixes(0, &[5; 63]).is_empty());
    assert_eq!(affinity::prefixes(0, &[5; 300]).len(), 3);
}

#[test]
fn a_full_rank_is_offered_new_work_one_by_one() {
    let mut front = front(8);
    let mut out = Vec::new();
    front.rank_up(0, A, 0, RankLoad { free_blocks: 0, ..LOAD }, &mut out);
    assert_eq!(submit(&mut front, request(1, 2, 9)).len(), 1);
    assert_eq!(submit(&mut front, request(2, 2, 9)).len(), 0);
    assert_eq!(bound(&said(&mut front, A, key(1), 1, RankEvent::Accepted)).1.seq, key(2));
}

#[test]
fn drain_refuses_new_work_and_halt_cuts_the_rest() {
    let mut front = front(8);
    up(&mut front, A, 0);
    submit(&mut front, request(1, 2, 9));
    front.drain();
    let refused = front.submit(0, request(2, 2, 9), &mut Vec::new()).unwrap_err();
    assert!(matches!(refused, Refused::Draining { .. }));
    assert!(!front.is_idle());
    let mut out = Vec::new();
    front.halt(&mut out);
    assert_eq!(ended(&out), [(key(1), Ending::Cut)]);
    assert!(front.is_idle());
}

#[test]
fn a_draining_rank_gets_nothing_until_it_reports_otherwise() {
    let mut front = front(8);
    up(&mut front, A, 0);
    submit(&mut front, request(1, 2, 9));
    assert!(said(&mut front, A, key(1), 1, RankEvent::Refused(Refusal::Draining)).is_empty());
    let mut out = Vec::new();
    front.tick(100 * SECOND, &mut out);
    assert!(out.is_empty());
    front.rank_load(100 * SECOND, A, LOAD, &mut out);
    assert_eq!(bound(&out).0, A);
}

#[test]
fn empty_and_repeated_requests_are_refused() {
    let mut front = front(8);
    let empty = front.submit(0, request(1, 0, 9), &mut Vec::new());
    assert_eq!(empty, Err(Refused::Empty));
    let none = front.submit(0, Submit { choices: vec![], ..request(1, 1, 9) }, &mut Vec::new());
    assert_eq!(none, Err(Refused::Empty));
    submit(&mut front, request(1, 1, 9));
    assert_eq!(front.submit(0, request(1, 1, 9), &mut Vec::new()), Err(Refused::Duplicate));
}

/// Random histories: ranks that refuse, preempt, drain, vanish and speak on, against what a client may rely on.
mod random {
    use super::*;
    use std::collections::VecDeque;

    struct Rng(u64);

    impl Rng {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut x = self.0;
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        }

        fn below(&mut self, n: usize) -> usize {
            (self.next() % n as u64) as usize
        }

        fn chance(&mut self, percent: u64) -> bool {
            self.next() % 100 < percent
        }
    }

    /// The model's next token is a function of all ids before it, so a wrong replay shows.
    fn next_id(ids: &[u32]) -> u32 {
        ids.iter().fold(17u32, |hash, id| (hash ^ id).wrapping_mul(0x0100_0193)) % 64
    }

    struct Held {
        bind: Bind,
        ids: Vec<u32>,
        accepted: bool,
    }

    #[derive(Default)]
    struct Rank {
        cohort: u64,
        load: RankLoad,
        linked: bool,
        held: Vec<Held>,
        wire: VecDeque<(SeqKey, Attempt, RankEvent)>,
    }

    struct Client {
        submit: Submit<u16>,
        delivered: Vec<u32>,
        attempt: Attempt,
        taken: bool,
        ending: Option<Ending>,
    }

    struct World {
        rng: Rng,
        now: Nanos,
        front: Front<u16>,
        ranks: BTreeMap<WorkerId, Rank>,
        clients: BTreeMap<SeqKey, Client>,
        said: Vec<(WorkerId, SeqKey, Attempt, RankEvent)>,
        requests: u64,
        calm: bool,
        refused: u64,
        queue: usize,
    }

    impl World {
        fn new(seed: u64) -> Self {
            let mut rng = Rng(seed);
            let queue = 1 + rng.below(12);
            let ranks = 1 + rng.below(4) as u32;
            let mut world = World {
                front: front(queue),
                rng,
                now: 1,
                ranks: BTreeMap::new(),
                clients: BTreeMap::new(),
                said: Vec::new(),
                requests: 0,
                calm: false,
                refused: 0,
                queue,
            };
            for id in 0..ranks {
                let pool_blocks = 2 + world.rng.below(6) as u32;
                let load = RankLoad {
                    free_blocks: pool_blocks,
                    pool_blocks,
                    block_tokens: 4,
                    queue: 0,
                    draining: false,
                };
                let cohort = u64::from(world.rng.chance(25));
                world.ranks.insert(WorkerId(id), Rank { cohort, load, ..Rank::default() });
            }
            world
        }

        fn call(&mut self, call: impl FnOnce(&mut Front<u16>, Nanos, &mut Out)) {
            let mut out = Vec::new();
            call(&mut self.front, self.now, &mut out);
            self.carry_out(out);
        }

        fn act(&mut self, action: Action<u16>) {
            match action {
                Action::Bind { rank, bind, handle } => {
                    assert_eq!(handle, bind.seq.choice);
                    let client = self.clients.get_mut(&bind.seq).unwrap();
                    assert_eq!(client.ending, None, "bound after its end");
                    assert_eq!(bind.attempt, client.attempt + 1);
                    client.attempt = bind.attempt;
                    assert_eq!(bind.replay, client.taken);
                    let journal: Vec<u32> =
                        client.submit.prompt.iter().chain(&client.delivered).copied().collect();
                    assert_eq!(*bind.ids, *journal);
                    assert_eq!(bind.produced as usize, client.delivered.len());
                    let state = self.ranks.get_mut(&rank).unwrap();
                    assert!(state.linked, "bound to a rank that is down");
                    state.held.retain(|held| held.bind.seq != bind.seq);
                    let ids = bind.ids.to_vec();
                    state.held.push(Held { bind, ids, accepted: false });
                }
                Action::CancelAt { rank, seq, attempt } => {
                    let state = self.ranks.get_mut(&rank).unwrap();
                    assert!(state.linked, "cancelled at a rank that is down");
                    state.held.retain(|held| held.bind.seq != seq || held.bind.attempt > attempt);
                }
                Action::Deliver { seq, index, id, .. } => {
                    let client = self.clients.get_mut(&seq).unwrap();
                    assert_eq!(client.ending, None, "a token after the end");
                    assert_eq!(index as usize, client.delivered.len());
                    let journal: Vec<u32> =
                        client.submit.prompt.iter().chain(&client.delivered).copied().collect();
                    assert_eq!(id, next_id(&journal));
                    client.delivered.push(id);
                    client.taken = true;
                }
                Action::End { seq, ending, .. } => {
                    let client = self.clients.get_mut(&seq).unwrap();
                    assert_eq!(client.ending, None, "a second end");
                    client.ending = Some(ending);
                    let stopped = client.delivered.last() == Some(&7);
                    match ending {
                        Ending::Complete(Complete::Stop) => assert!(stopped),
                        Ending::Complete(Complete::Length) => {
                            assert_eq!(client.delivered.len(), client.submit.stop.max_tokens as usize);
                        }
                        Ending::Deadline => assert!(client.submit.deadline.unwrap() <= self.now),
                        Ending::Refused(Refused::TooLarge { .. }) => assert!(!client.taken),
                        Ending::Cancelled => {}
                        other => panic!("nobody asked for {other:?}"),
                    }
                }
            }
        }

        /// What holds between any two events.
        fn check(&self) {
            let Waiting { fresh, replays } = self.front.waiting();
            assert!(fresh <= self.front.untaken && self.front.untaken <= self.queue, "the queue is bounded");
            let open = self.clients.values().filter(|client| client.ending.is_none()).count();
            assert_eq!(open, self.front.live());
            let bound: usize = self.ranks.keys().map(|rank| self.front.ranks.bound(*rank).count()).sum();
            assert_eq!(open, replays + fresh + bound, "every sequence is in one place");
            // A replay waits only if no linked rank of its numerics fits it (ranks here never refuse one for room).
            for key in self.front.replays.values() {
                let client = &self.clients[key];
                let cohort = self.front.cohort(key.request);
                let need = need(&client.submit.prompt, &client.submit.stop);
                for (id, rank) in &self.ranks {
                    let fits = rank.load.room() >= need && !self.front.seqs[key].too_large.contains_key(id);
                    let same = cohort.is_none_or(|cohort| cohort == rank.cohort);
                    let told =
                        self.front.ranks.candidates(None, 0, &BTreeMap::new()).any(|other| other == *id);
                    assert!(!(rank.linked && told && fits && same), "{key} waits beside {id}");
                }
            }
        }

        /// Carries out one call's actions: none of its new binds overtook an older sequence that wanted that rank.
        fn carry_out(&mut self, out: Out) {
            let binds: Vec<(WorkerId, u64)> = out
                .iter()
                .filter_map(|action| match action {
                    Action::Bind { rank, bind, .. } if !bind.replay => Some((*rank, bind.age)),
                    _ => None,
                })
                .collect();
            out.into_iter().for_each(|action| self.act(action));
            for (age, key) in &self.front.fresh {
                let seq = &self.front.seqs[key];
                let cohort = self.front.requests[&key.request].cohort;
                let wanted: Vec<WorkerId> =
                    self.front.ranks.candidates(cohort, seq.need(), &seq.too_large).collect();
                for (rank, other) in &binds {
                    assert!(other < age || !wanted.contains(rank), "{key} was overtaken at {rank}");
                }
            }
            self.check();
        }

        fn submit(&mut self) {
            self.requests += 1;
            let n = 1 + self.rng.below(3) as u16;
            let prompt = (0..1 + self.rng.below(12)).map(|_| self.rng.below(64) as u32).collect();
            let deadline = self.rng.chance(20).then(|| self.now + self.rng.next() % (3 * SECOND));
            let submit = Submit {
                request: self.requests,
                choices: (0..n).collect(),
                prompt,
                stop: StopRule { ids: vec![7], min_tokens: 0, max_tokens: self.rng.below(12) as u32 },
                deadline,
                salt: self.rng.next() % 2,
            };
            let mut out = Vec::new();
            match self.front.submit(self.now, submit.clone(), &mut out) {
                Ok(()) => {
                    for choice in 0..n {
                        let client = Client {
                            submit: submit.clone(),
                            delivered: Vec::new(),
                            attempt: 0,
                            taken: false,
                            ending: None,
                        };
                        self.clients.insert(SeqKey { request: submit.request, choice }, client);
                    }
                }
                Err(Refused::Busy { .. } | Refused::TooLarge { .. }) => {
                    assert!(out.is_empty());
                    self.refused += u64::from(n);
                }
                Err(other) => panic!("{other}"),
            }
            self.carry_out(out);
        }

        /// One thing a rank does by itself.
        fn work(&mut self, id: WorkerId) {
            let calm = self.calm;
            let rng = &mut self.rng;
            let rank = self.ranks.get_mut(&id).unwrap();
            if rank.held.is_empty() {
                return;
            }
            let at = rng.below(rank.held.len());
            let held = &mut rank.held[at];
            let (seq, attempt) = (held.bind.seq, held.bind.attempt);
            let mut gone = false;
            let event = if !held.accepted {
                // A rank may count more strictly than the gateway.
                let longest = held.bind.ids.len() as u32 - held.bind.produced + held.bind.stop.max_tokens;
                let tight = !held.bind.replay && longest > rank.load.room();
                gone = true;
                if tight {
                    RankEvent::Refused(Refusal::TooLarge { room: rank.load.room() })
                } else if !calm && !held.bind.replay && rng.chance(30) {
                    RankEvent::Refused(Refusal::Busy)
                } else if !calm && rng.chance(3) {
                    RankEvent::Refused(Refusal::Draining)
                } else {
                    gone = false;
                    held.accepted = true;
                    RankEvent::Accepted
                }
            } else {
                let produced = held.ids.len() - held.bind.ids.len() + held.bind.produced as usize;
                let stopped = produced > 0 && held.ids.last() == Some(&7);
                if stopped || produced >= held.bind.stop.max_tokens as usize {
                    gone = true;
                    RankEvent::Finished(if stopped { Finish::Stop } else { Finish::Length })
                } else if !calm && rng.chance(8) {
                    gone = true;
                    RankEvent::HandedBack
                } else {
                    let token = next_id(&held.ids);
                    held.ids.push(token);
                    RankEvent::Token { index: produced as u32, id: token }
                }
            };
            if gone {
                rank.held.remove(at);
            }
            rank.wire.push_back((seq, attempt, event));
        }

        fn hear(&mut self, id: WorkerId, calm: bool) {
            let rank = self.ranks.get_mut(&id).unwrap();
            if !rank.linked {
                return;
            }
            let Some((seq, attempt, event)) = rank.wire.pop_front() else { return };
            // A loss that no connection should allow, and that must not stall the sequence.
            if !calm && matches!(event, RankEvent::Token { .. }) && self.rng.chance(2) {
                // Not the last one: then only the end would be wrong, and no gap shows it.
                if self.ranks[&id]
                    .wire
                    .iter()
                    .any(|(s, a, e)| (*s, *a) == (seq, attempt) && matches!(e, RankEvent::Token { .. }))
                {
                    return;
                }
            }
            self.said.push((id, seq, attempt, event));
            if event == RankEvent::Accepted
                && let Some(client) = self.clients.get_mut(&seq)
                && self.front.seqs.get(&seq).is_some_and(|state| {
                    state.attempt == attempt && matches!(state.place, Place::Bound { rank, .. } if rank == id)
                })
            {
                client.taken = true;
            }
            if matches!(event, RankEvent::HandedBack | RankEvent::Token { .. })
                && let Some(client) = self.clients.get_mut(&seq)
                && self.front.seqs.get(&seq).is_some_and(|state| {
                    state.attempt == attempt && matches!(state.place, Place::Bound { rank, .. } if rank == id)
                })
            {
                client.taken = true;
            }
            self.call(|front, now, out| front.rank_event(now, id, seq, attempt, event, out));
        }

        fn step(&mut self) {
            self.now += self.rng.next() % (40_000 * MICRO);
            let ids: Vec<WorkerId> = self.ranks.keys().copied().collect();
            let id = ids[self.rng.below(ids.len())];
            match self.rng.below(100) {
                0..10 => self.submit(),
                10..45 => self.work(id),
                45..75 => self.hear(id, false),
                75..80 => {
                    // Something heard before is heard again.
                    if !self.said.is_empty() {
                        let (id, seq, attempt, event) = self.said[self.rng.below(self.said.len())];
                        let current = self.front.seqs.get(&seq).is_some_and(|state| state.attempt == attempt);
                        // Within an attempt a connection repeats tokens (a resume), never anything else.
                        if !current || matches!(event, RankEvent::Token { .. }) {
                            let before = self.front.counts().tokens;
                            self.call(|front, now, out| front.rank_event(now, id, seq, attempt, event, out));
                            assert_eq!(self.front.counts().tokens, before, "a repeated token was taken");
                        }
                    }
                }
                80..84 => {
                    let keys: Vec<SeqKey> = self.front.seqs.keys().copied().collect();
                    if let Some(key) = keys.iter().min() {
                        let key = *key;
                        if self.rng.chance(30) {
                            self.call(|front, now, out| front.cancel(now, key, CancelCause::Client, out));
                        }
                    }
                }
                84..88 => self.toggle(id),
                88..92 => self.report(id),
                _ => self.call(Front::tick),
            }
        }

        fn report(&mut self, id: WorkerId) {
            let rank = self.ranks.get_mut(&id).unwrap();
            if rank.linked {
                rank.load.free_blocks = self.rng.below(rank.load.pool_blocks as usize + 1) as u32;
                let load = rank.load;
                self.call(|front, now, out| front.rank_load(now, id, load, out));
            }
        }

        fn toggle(&mut self, id: WorkerId) {
            let rank = self.ranks.get_mut(&id).unwrap();
            if rank.linked {
                rank.linked = false;
                // A crash loses all; a partition leaves the rank running, and what it says may come later.
                if self.rng.chance(50) {
                    rank.held.clear();
                    rank.wire.clear();
                }
                self.call(|front, now, out| front.rank_down(now, id, out));
            } else {
                rank.linked = true;
                let (cohort, load) = (rank.cohort, rank.load);
                self.call(|front, now, out| front.rank_up(now, id, cohort, load, out));
            }
        }

        /// Faults stop; everything that can end does.
        fn settle(&mut self) {
            self.calm = true;
            let ids: Vec<WorkerId> = self.ranks.keys().copied().collect();
            for &id in &ids {
                if !self.ranks[&id].linked {
                    self.toggle(id);
                }
                self.report(id);
            }
            for round in 0..20_000 {
                if self.front.is_idle() {
                    break;
                }
                if round % 100 == 0 {
                    ids.iter().for_each(|id| self.report(*id));
                }
                self.now += 1000 * MICRO;
                for &id in &ids {
                    self.work(id);
                    self.hear(id, true);
                }
                self.call(Front::tick);
            }
            assert!(self.front.is_idle(), "stuck: {:?}", self.front.seqs);
            assert!(self.front.requests.is_empty() && self.front.deadlines.is_empty());
            assert_eq!(self.front.untaken, 0);
            let counts = self.front.counts();
            let ended = counts.complete + counts.cancelled + counts.failed + counts.deadline + counts.cut;
            assert_eq!((counts.admitted, counts.refused), (ended, self.refused));
            assert!(self.clients.values().all(|client| client.ending.is_some()));
        }
    }

    #[test]
    fn every_sequence_ends_once_and_its_tokens_are_contiguous() {
        let seeds = std::env::var("FRONT_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(400);
        let mut total = FrontCounts::default();
        for seed in 0..seeds {
            let run = std::panic::catch_unwind(|| {
                let mut world = World::new(seed);
                for _ in 0..600 {
                    world.step();
                }
                world.settle();
                world.front.counts()
            });
            let counts = run.unwrap_or_else(|_| panic!("seed {seed}"));
            for (sum, one) in [
                (&mut total.complete, counts.complete),
                (&mut total.cancelled, counts.cancelled),
                (&mut total.deadline, counts.deadline),
                (&mut total.duplicates, counts.duplicates),
                (&mut total.gaps, counts.gaps),
                (&mut total.replays, counts.replays),
                (&mut total.preempted, counts.preempted),
                (&mut total.busy, counts.busy),
                (&mut total.refused, counts.refused),
                (&mut total.failed, counts.failed),
            ] {
                *sum += one;
            }
        }
        // The histories must contain what the test is about.
        for count in [
            total.complete,
            total.cancelled,
            total.deadline,
            total.duplicates,
            total.gaps,
            total.replays,
            total.preempted,
            total.busy,
            total.refused,
            total.failed,
        ] {
            assert!(count >= seeds / 10, "{total:?}");
        }
    }
}
