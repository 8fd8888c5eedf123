//! Fuzz targets of the connections between processes; see [`crate::fuzz`].

use std::sync::{Arc, Mutex};
use std::time::Instant;

use sluice_core::event::PeerUp;
use sluice_core::frame::{Channel, Frame};
use sluice_core::hello::{Hello, Members, Role, Schedule};
use sluice_core::ids::{Attempt, GatewayId, SeqKey, WorkerId};
use sluice_core::placement::PlacementSlice;
use sluice_core::sequence::Bind;
use sluice_identity::Identity;
use sluice_wire::WIRE;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;

use super::greet::{self, Book, Purpose};
use super::pages::{Pages, Shown};
use super::pair;
use crate::fuzz::{is_let_go, run};
use crate::runtime::{Door, FrontLink, PeerLink, Rows};
use crate::sampling::Draw;

/// Numbers in a row.
const ROW_LEN: usize = 2;
/// What a peer is told of an error, or the log, is never longer.
const LONGEST: usize = 2048;

/// The first byte says which connection it is, and what version of the wire it has.
pub(crate) fn stream(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else { return };
    let (channel, wire) = connection(*how);
    let ended = run(pair::receive(channel, wire, ROW_LEN, Arc::new(Worker), bytes));
    is_plain(&ended.to_string());
}

/// Each of both connections in each version, as a byte says it.
pub(crate) fn connection(how: u8) -> (Channel, u16) {
    let channel = if how & 1 == 0 { Channel::Data } else { Channel::Control };
    (channel, WIRE.min + u16::from(how >> 1) % (WIRE.max - WIRE.min + 1))
}

/// The first byte says who dials, and whether there are certificates.
pub(crate) fn hello(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else { return };
    let certificate = (how & 2 != 0).then(|| Identity {
        deployment: "default/sluice".into(),
        role: Role::Experts,
        worker: Some("e1".into()),
    });
    let members = Mutex::new(Members::new(rank()));
    run(is_let_go(bytes, true, async |mut stream| {
        let met = if how & 1 == 0 {
            greet::answer(&mut stream, certificate.as_ref(), &members, &Table).await
        } else {
            let purpose = Purpose::Data { epoch: 3 };
            greet::dial(&mut stream, certificate.as_ref(), &members, &Table, "e1", purpose).await
        };
        match met {
            Ok(met) => is_plain(&met.hello.name),
            Err(why) => is_plain(&why.to_string()),
        }
    }));
}

/// Whoever reads the log sees one line of it.
fn is_plain(text: &str) {
    assert!(text.len() <= LONGEST && !text.contains(char::is_control), "{text:?}");
}

/// The worker that is connected to.
pub(crate) fn rank() -> Hello {
    Hello {
        deployment: "default/sluice".into(),
        worker: Some(WorkerId(0)),
        name: "a0".into(),
        incarnation: 5,
        role: Role::Attention,
        wire: WIRE,
        numerics: Some("bits".into()),
        schedule: Some(Schedule { waves: 2, in_step: false }),
    }
}

/// Serves pages over what is no socket.
pub(crate) async fn serve_pages<S>(pages: Arc<Pages>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Shown::new(pages).serve(stream, None).await;
}

struct Table;

impl Book for Table {
    fn number(&self, name: &str) -> Option<WorkerId> {
        ["a0", "e1"].iter().position(|known| *known == name).map(|number| WorkerId(number as u32))
    }
}

/// Takes everything and does nothing.
pub(crate) struct Worker;

impl Door for Worker {
    fn frame(&self, _: WorkerId, _: Frame, _: Rows, held: Option<OwnedSemaphorePermit>) {
        assert!(held.is_some(), "what waits without a permit is not bounded");
    }
    fn peer_up(&self, _: PeerUp, _: Arc<dyn PeerLink>) {}
    fn peer_down(&self, _: WorkerId, _: Instant) {}
    fn placement(&self, _: Arc<PlacementSlice>) {}
    fn front_up(&self, _: GatewayId, _: Arc<dyn FrontLink>) {}
    fn front_down(&self, _: GatewayId) {}
    fn bind(&self, _: Bind, _: Draw) {}
    fn cancel(&self, _: SeqKey, _: Attempt) {}
    fn drain(&self, _: bool) {}
    fn report(&self) {}
    fn stop(&self) {}
}
