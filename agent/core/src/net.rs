//! The peers of a worker, itself first, and the actions it has decided on.

use crate::event::{Action, PeerUp};
use crate::frame::{Body, Channel};
use crate::ids::WorkerId;
use crate::link::Link;

/// The peer index of the worker itself.
pub(crate) const SELF: usize = 0;

#[derive(Debug)]
pub(crate) struct Peer {
    pub id: WorkerId,
    pub link: Link,
    pub is_rank: bool,
    /// It can be reached.
    pub is_up: bool,
}

#[derive(Debug)]
pub(crate) struct Net {
    pub peers: Vec<Peer>,
    /// Peer index + 1 by worker id; 0 for nobody.
    index: Vec<u32>,
    classes: usize,
    pub out: Vec<Action>,
}

impl Net {
    pub fn new(me: WorkerId, is_rank: bool, classes: u8) -> Self {
        let classes = classes as usize;
        let own = Peer { id: me, link: Link::new(0, classes), is_rank, is_up: true };
        let mut net = Self { peers: vec![own], index: vec![], classes, out: vec![] };
        net.know(me, SELF);
        net
    }

    pub fn find(&self, id: WorkerId) -> Option<usize> {
        (self.index.get(id.0 as usize).copied()? as usize).checked_sub(1)
    }

    fn know(&mut self, id: WorkerId, peer: usize) {
        let at = id.0 as usize;
        if self.index.len() <= at {
            self.index.resize(at + 1, 0);
        }
        self.index[at] = peer as u32 + 1;
    }

    /// A new connection pair with a peer, known or not. Gives its index.
    pub fn up(&mut self, hello: &PeerUp) -> usize {
        let link = Link::new(hello.epoch, self.classes);
        let peer = Peer { id: hello.worker, link, is_rank: hello.is_rank, is_up: true };
        match self.find(hello.worker) {
            Some(i) => {
                self.peers[i] = peer;
                i
            }
            None => {
                self.peers.push(peer);
                let i = self.peers.len() - 1;
                self.know(hello.worker, i);
                i
            }
        }
    }

    pub fn send(&mut self, to: usize, body: Body) {
        debug_assert!(to != SELF, "a worker does not send to itself");
        debug_assert!(self.peers[to].is_up, "a worker does not send to a peer that is gone");
        let channel = match body {
            Body::Tokens(_) | Body::Returns(_) => Channel::Data,
            _ => Channel::Control,
        };
        let peer = &mut self.peers[to];
        let frame = peer.link.send(channel, body);
        self.out.push(Action::Send { to: peer.id, frame });
    }
}
