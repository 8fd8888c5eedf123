//! The receiving process: what a worker with experts does with what arrives, but the experts.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use sluice_agent::runtime::{PeerLink, Slab};
use sluice_core::frame::{Body, Channel, Frame};

use super::connect::{DECODE, Setup, Side, connect};
use super::door::{Mail, door, next, peer};
use crate::machine::now;

/// Runs until its standard input ends, then gives the nanoseconds that each small batch took, in order.
///
/// # Errors
/// What could not be had.
pub fn host(setup: &Setup, ready: impl FnOnce()) -> Result<Vec<u64>, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let (door, inbox) = door();
    let connected = runtime.block_on(connect(setup, Side::Host, door, ready))?;
    let (row_len, ring) = (setup.row_len(), setup.ring);
    let worker = std::thread::Builder::new().name("worker".into());
    let worker = worker.spawn(move || take(&inbox, row_len, ring)).map_err(|e| e.to_string())?;
    // Whoever started this process says so when there is nothing more to come, or is gone.
    let _ = std::io::stdin().read_to_end(&mut vec![]);
    drop(connected);
    drop(runtime);
    worker.join().unwrap_or_else(|_| Err("the worker's thread failed".into()))
}

/// Rows that nobody asks for.
struct NoRows;

impl Slab for NoRows {
    fn payload(&mut self, _frame: &Frame, _into: &mut Vec<f32>) {}
}

/// Lands what comes until the peer is gone.
fn take(inbox: &Receiver<Mail>, row_len: usize, ring: u32) -> Result<Vec<u64>, String> {
    let (up, link) = peer(inbox)?;
    let mut landing = vec![0f32; ring as usize * row_len];
    let mut took = vec![];
    let mut number = 0;
    let mut credit = |rows: Vec<u32>, link: &Arc<dyn PeerLink>| {
        let body = Body::Credit(rows);
        link.send(Frame { epoch: up.epoch, channel: Channel::Control, number, body }, &mut NoRows, None);
        number += 1;
    };
    credit((0..ring).collect(), &link);
    loop {
        let (frame, payload, _held) = match next(inbox)? {
            Mail::Frame(frame, payload, held) => (frame, payload, held),
            Mail::Up(..) => continue,
            Mail::Down => return Ok(took),
        };
        let Body::Tokens(batch) = frame.body else { continue };
        let rows: Vec<u32> = batch.rows.iter().map(|r| r.dst).collect();
        for (row, values) in rows.iter().zip(payload.values().chunks_exact(row_len)) {
            landing[*row as usize * row_len..][..row_len].copy_from_slice(values);
        }
        if batch.class == DECODE {
            took.push(now().saturating_sub(batch.progress));
        }
        credit(rows, &link);
    }
}
