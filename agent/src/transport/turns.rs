//! Connections whose hello is not over: there is room for so many, and whoever comes always finds some. The oldest makes
//! room, so that strangers who connect and say nothing keep nobody out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Connections in all, and of one address, at most. Several processes may share an address.
const MOST: [usize; 2] = [256, 64];

/// All who wait for the end of their hello.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// In the order in which they came.
    by_number: BTreeMap<u64, One>,
    came: u64,
}

#[derive(Debug)]
struct One {
    /// None: a process of this host, over a socket of its own.
    from: Option<IpAddr>,
    /// It has shown a certificate.
    is_known: bool,
    over: Arc<Notify>,
}

impl Waiting {
    /// Whom to let go: a stranger before who has a certificate, then the oldest.
    fn crowd_out(&mut self, most: usize, is_meant: impl Fn(&One) -> bool) -> bool {
        let meant = || self.by_number.iter().filter(|(_, one)| is_meant(one));
        if meant().count() < most {
            return false;
        }
        let first = meant().min_by_key(|(number, one)| (one.is_known, **number)).map(|(number, _)| *number);
        let gone = first.and_then(|number| self.by_number.remove(&number));
        gone.is_some_and(|one| {
            one.over.notify_one();
            true
        })
    }
}

/// One connection's turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    number: u64,
    over: Arc<Notify>,
    /// Somebody else had to make room.
    pub crowds: bool,
}

impl Turns {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection has come.
    pub(super) fn take(self: &Arc<Self>, from: Option<IpAddr>) -> Turn {
        let mut waiting = self.waiting();
        let crowds =
            waiting.crowd_out(MOST[1], |one| one.from == from) || waiting.crowd_out(MOST[0], |_| true);
        let (number, over) = (waiting.came, Arc::new(Notify::new()));
        waiting.came += 1;
        waiting.by_number.insert(number, One { from, is_known: false, over: Arc::clone(&over) });
        Turn { turns: Arc::clone(self), number, over, crowds }
    }
}

impl Turn {
    /// It has shown a certificate.
    pub(super) fn is_known(&self) {
        if let Some(one) = self.turns.waiting().by_number.get_mut(&self.number) {
            one.is_known = true;
        }
    }

    /// Resolves when it has to make room.
    pub(super) async fn over(&self) {
        self.over.notified().await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.waiting().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn from(n: usize) -> Option<IpAddr> {
        Some(Ipv4Addr::from(n as u32).into())
    }

    /// Which of them have to make room.
    fn over(turns: &[Turn]) -> Vec<usize> {
        let is_over = |turn: &Turn| {
            let mut over = std::pin::pin!(turn.over());
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            over.as_mut().poll(&mut cx).is_ready()
        };
        (0..turns.len()).filter(|i| is_over(&turns[*i])).collect()
    }

    #[test]
    fn the_oldest_stranger_makes_room() {
        let turns = Arc::new(Turns::default());
        let mut all: Vec<Turn> = (0..MOST[0]).map(|i| turns.take(from(i))).collect();
        assert!(over(&all).is_empty() && !all.iter().any(|turn| turn.crowds));
        all[0].is_known();
        all.push(turns.take(from(1000)));
        assert!(all[MOST[0]].crowds);
        assert_eq!(over(&all), [1], "the oldest has a certificate");
        all.truncate(MOST[0]);
        all.push(turns.take(from(1001)));
        assert_eq!(over(&all), [0usize; 0], "one had gone by itself");
    }

    #[test]
    fn with_certificates_alone_the_oldest_goes_too() {
        let turns = Arc::new(Turns::default());
        let all: Vec<Turn> = (0..MOST[0]).map(|i| turns.take(from(i))).collect();
        all.iter().for_each(Turn::is_known);
        let _new = turns.take(from(1000));
        assert_eq!(over(&all), [0]);
    }

    #[test]
    fn one_address_crowds_out_itself_alone() {
        let turns = Arc::new(Turns::default());
        let mut all = vec![turns.take(from(7)), turns.take(None)];
        all.extend((0..3 * MOST[1]).map(|_| turns.take(from(8))));
        let gone = over(&all);
        assert_eq!((gone.len(), gone[0]), (2 * MOST[1], 2));
    }
}
