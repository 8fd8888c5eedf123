//! Two sides, connections that lose their tails, and what must come out all the same.

use super::*;
use proptest::prelude::*;

const LIMITS: SessionLimits = SessionLimits { messages: 1000, bytes: 1_000_000 };

/// What travels: what the sender has, and perhaps a message with its number.
type Packet = (u64, Option<(u64, u32)>);

/// One side: what it said, what it was told, and what is on its way from it.
struct Side {
    session: Session<u32>,
    said: Vec<u32>,
    told: Vec<u32>,
    on_the_way: VecDeque<Packet>,
}

impl Side {
    fn new() -> Self {
        Self { session: Session::new(LIMITS), said: vec![], told: vec![], on_the_way: VecDeque::new() }
    }

    fn say(&mut self) {
        let message = self.said.len() as u32;
        self.session.push(message, 10).unwrap();
        self.said.push(message);
    }

    /// Puts one packet on its way; one without a message if there is none.
    fn send(&mut self) {
        let message = self.session.give().map(|(number, message)| (number, *message));
        self.on_the_way.push_back((self.session.has(), message));
    }

    fn take(&mut self, (has, message): Packet) {
        self.session.acked(has).unwrap();
        if let Some((number, message)) = message
            && self.session.receive(number).unwrap() == Arrival::New
        {
            self.told.push(message);
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Say(bool),
    Send(bool),
    Deliver(bool),
    /// The connection breaks. What was on its way is lost, or still read after the next one has begun.
    Cut {
        lost: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => any::<bool>().prop_map(Op::Say),
        4 => any::<bool>().prop_map(Op::Send),
        4 => any::<bool>().prop_map(Op::Deliver),
        1 => any::<bool>().prop_map(|lost| Op::Cut { lost }),
    ]
}

fn reconnect(sides: &mut [Side; 2], lost: bool) {
    // Each names what it has before it reads what is left of the old connection.
    let has = [sides[0].session.has(), sides[1].session.has()];
    let left = [0, 1].map(|from| std::mem::take(&mut sides[from].on_the_way));
    sides[0].session.resume(has[1]).unwrap();
    sides[1].session.resume(has[0]).unwrap();
    if !lost {
        for (from, packets) in left.into_iter().enumerate() {
            packets.into_iter().for_each(|packet| sides[1 - from].take(packet));
        }
    }
}

proptest! {
    /// Whatever breaks, each message arrives once and in order, and in the end nothing is kept.
    #[test]
    fn every_message_arrives_once_and_in_order(ops in prop::collection::vec(op(), 0..400)) {
        let mut sides = [Side::new(), Side::new()];
        for op in ops {
            match op {
                Op::Say(from) => sides[usize::from(from)].say(),
                Op::Send(from) => sides[usize::from(from)].send(),
                Op::Deliver(from) => {
                    if let Some(packet) = sides[usize::from(from)].on_the_way.pop_front() {
                        sides[usize::from(!from)].take(packet);
                    }
                }
                Op::Cut { lost } => reconnect(&mut sides, lost),
            }
            for from in 0..2 {
                let (said, told) = (&sides[from].said, &sides[1 - from].told);
                prop_assert_eq!(told.as_slice(), &said[..told.len()]);
                // What is kept is what the peer has not said that it has.
                let kept = sides[from].session.kept();
                prop_assert!(kept >= said.len() - told.len());
                prop_assert_eq!(sides[from].session.kept_bytes(), 10 * kept);
            }
        }
        reconnect(&mut sides, true);
        for from in [0, 1, 0, 1] {
            // One packet more than messages: the last acknowledgement.
            for _ in 0..=sides[from].session.kept() {
                sides[from].send();
            }
            while let Some(packet) = sides[from].on_the_way.pop_front() {
                sides[1 - from].take(packet);
            }
        }
        for from in 0..2 {
            prop_assert_eq!(&sides[from].said, &sides[1 - from].told);
            prop_assert_eq!((sides[from].session.kept(), sides[from].session.kept_bytes()), (0, 0));
        }
    }

    /// Numbers of a peer that talks nonsense are errors or duplicates, and never move anything they should not.
    #[test]
    fn nonsense_is_refused(
        pushed in 0..20u64,
        given in 0..20u64,
        acked in 0..25u64,
        number in any::<u64>(),
        has in prop_oneof![0..30u64, any::<u64>()],
    ) {
        let mut s = Session::new(LIMITS);
        (0..pushed).for_each(|i| s.push(i, 1).unwrap());
        let given = (0..given).take_while(|_| s.give().is_some()).count() as u64;
        prop_assert_eq!(s.acked(acked).is_ok(), acked <= given);
        let freed = if acked <= given { acked } else { 0 };
        prop_assert_eq!(s.kept() as u64, pushed - freed);
        match s.receive(number) {
            Ok(Arrival::New) => prop_assert_eq!(number, 1),
            Ok(Arrival::Duplicate) => prop_assert_eq!(number, 0),
            Err(e) => prop_assert_eq!(e, SessionError::Gap { number, due: 1 }),
        }
        match s.resume(has) {
            Ok(()) => {
                prop_assert!((freed..=given).contains(&has));
                let next = s.give().map(|(number, message)| (number, *message));
                prop_assert_eq!(next, (has < pushed).then_some((has + 1, has)));
            }
            Err(SessionError::Behind { .. }) => prop_assert!(has < freed),
            Err(SessionError::Ahead { .. }) => prop_assert!(has > given),
            Err(e) => prop_assert!(false, "{e}"),
        }
    }
}

#[test]
fn what_is_kept_is_bounded_by_count_and_by_bytes() {
    let mut s = Session::new(SessionLimits { messages: 3, bytes: 100 });
    s.push('a', 60).unwrap();
    assert_eq!(s.push('b', 41), Err(SessionError::Full { messages: 1, bytes: 60 }));
    s.push('b', 40).unwrap();
    s.push('c', 0).unwrap();
    assert_eq!(s.push('d', 0), Err(SessionError::Full { messages: 3, bytes: 100 }));
    assert_eq!(s.push('d', usize::MAX), Err(SessionError::Full { messages: 3, bytes: 100 }));
    // An acknowledgement makes room; what was only sent is still kept.
    while s.give().is_some() {}
    assert_eq!((s.kept(), s.kept_bytes()), (3, 100));
    s.acked(1).unwrap();
    s.push('d', 60).unwrap();
    assert_eq!(s.give(), Some((4, &'d')));
}

#[test]
fn an_old_connections_last_word_may_come_after_the_new_one_began() {
    let mut s = Session::new(LIMITS);
    for message in ['a', 'b', 'c'] {
        s.push(message, 1).unwrap();
    }
    while s.give().is_some() {}
    s.resume(1).unwrap();
    // The peer has read on in the meantime: it is not sent again what it has.
    s.acked(2).unwrap();
    assert_eq!(s.give(), Some((3, &'c')));
    s.acked(1).unwrap();
    assert_eq!(s.give(), None);
    assert_eq!(s.kept(), 1, "an acknowledgement that was overtaken takes nothing back");
}

#[test]
fn a_newer_session_is_greater() {
    let id = |incarnation, number| SessionId { incarnation, number };
    assert!(id(1, 2) > id(1, 1) && id(2, 0) > id(1, 9));
    assert_eq!(id(7, 3).to_string(), "session 3 of incarnation 7");
}
