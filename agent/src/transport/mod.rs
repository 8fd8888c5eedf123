//! The data plane between processes: mutual TLS, hellos, and for each pair of workers a data and a control connection.
//!
//! ```text
//! worker thread --PeerLink--> outbox --writer task--> TLS/TCP --reader task--> Door --> worker thread
//! ```
//!
//! Who is taken is decided in `sluice_core::hello`, when a peer is silent for too long in `sluice_core::silence`, what
//! follows from the loss of one in `sluice_core`'s worker. Here are sockets, tasks and clocks.

mod ask;
mod beat;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod greet;
mod local;
mod masks;
mod mesh;
mod observe;
mod outbox;
mod pages;
mod pair;
mod stream;
mod tls;
mod turns;

pub use ask::{AskError, Asker, Line};
pub use greet::{Card, GreetError, Purpose};
pub use local::{LocalListener, SocketError, Sockets};
pub use masks::{Masked, Masks};
pub use mesh::{Dialer, Gateways, Mesh, MeshConfig};
pub use observe::Observer;
pub use pages::{Pages, listen as listen_for_pages};
pub use pair::{Ended, Format, LONGEST_MESSAGE, run as run_pair};
pub use sluice_wire::WIRE;
pub use stream::{Connection, Stream};
pub use tls::{Security, TlsError};
