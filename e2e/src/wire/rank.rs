//! The sending process: batches as an attention rank dispatches them, as far as credits reach.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use sluice_agent::runtime::{PeerLink, Slab};
use sluice_core::event::PeerUp;
use sluice_core::frame::{Body, Channel, Frame, Mark, ReturnTo, RowMove, TokenBatch, TokenItem};
use sluice_core::ids::{Class, Slice};

use super::connect::{DECODE, PREFILL, Setup, Side, connect};
use super::door::{Mail, door, next, peer};
use super::flow::{Flow, Load};
use crate::machine::{now, ran};

/// Experts that each token asks.
const TOP_K: u8 = 2;
/// Before a stream is measured.
const WARM: Duration = Duration::from_millis(400);
/// Between two small batches: long enough for everybody to have gone to sleep.
const PAUSE: Duration = Duration::from_micros(500);

/// What a rank is told to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Task {
    /// What to send.
    #[arg(long)]
    pub load: Load,
    /// For how long to stream.
    #[arg(long)]
    pub seconds: f64,
    /// How many small batches to send.
    #[arg(long)]
    pub batches: usize,
    /// Rows of a small batch.
    #[arg(long)]
    pub small: usize,
    /// Rows of a large batch.
    #[arg(long)]
    pub large: usize,
    /// The host's process.
    #[arg(long)]
    pub host: u32,
}

/// Sends, and gives what was measured: of small batches nothing, their times are the host's to tell.
///
/// # Errors
/// What could not be had, or a host that does not answer.
pub fn rank(setup: &Setup, task: &Task) -> Result<Flow, String> {
    if task.small + task.large > setup.ring as usize {
        return Err(format!(
            "a ring of {} rows is too small for batches of {} and {}",
            setup.ring, task.small, task.large
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let (door, inbox) = door();
    let _connected = runtime.block_on(connect(setup, Side::Rank, door, || ()))?;
    let (up, link) = peer(&inbox)?;
    let rows = Rows { slab: vec![1.0; setup.ring as usize * setup.row_len()], row_len: setup.row_len() };
    let mut rank = Rank { inbox, up, link, rows, free: VecDeque::new(), number: 0, credited: 0 };
    rank.wait_for(setup.ring as usize)?;
    match task.load {
        Load::Stream => rank.stream(setup, task),
        Load::Alone => rank.small(setup, task, false),
        Load::Behind => rank.small(setup, task, true),
    }
}

/// The rows that are sent, as a device on the CPU has them.
struct Rows {
    slab: Vec<f32>,
    row_len: usize,
}

impl Slab for Rows {
    fn payload(&mut self, frame: &Frame, into: &mut Vec<f32>) {
        let Body::Tokens(batch) = &frame.body else { return };
        for row in &batch.rows {
            into.extend_from_slice(&self.slab[row.src as usize * self.row_len..][..self.row_len]);
        }
    }
}

struct Rank {
    inbox: Receiver<Mail>,
    up: PeerUp,
    link: Arc<dyn PeerLink>,
    rows: Rows,
    /// Landing rows there is credit for.
    free: VecDeque<u32>,
    number: u64,
    /// Rows that came back, in all.
    credited: u64,
}

impl Rank {
    fn stream(&mut self, setup: &Setup, task: &Task) -> Result<Flow, String> {
        self.send_for(WARM, task)?;
        let cpu = || Ok::<_, String>([ran("self")?, ran(task.host)?]);
        let (start, credited, before) = (Instant::now(), self.credited, cpu()?);
        self.send_for(Duration::from_secs_f64(task.seconds), task)?;
        let (seconds, after) = (start.elapsed().as_secs_f64(), cpu()?);
        let cpu = [0, 1].map(|i| (after[i] - before[i]).as_secs_f64());
        Ok(Flow { bytes: (self.credited - credited) * setup.row_bytes as u64, seconds, cpu })
    }

    fn send_for(&mut self, time: Duration, task: &Task) -> Result<(), String> {
        let start = Instant::now();
        while start.elapsed() < time {
            self.wait_for(task.large)?;
            self.send(PREFILL, task.large);
        }
        Ok(())
    }

    fn small(&mut self, setup: &Setup, task: &Task, behind: bool) -> Result<Flow, String> {
        for _ in 0..task.batches {
            std::thread::sleep(PAUSE);
            if behind {
                self.send(PREFILL, task.large);
            }
            self.send(DECODE, task.small);
            self.wait_for(setup.ring as usize)?;
        }
        Ok(Flow::default())
    }

    /// Takes credits until there are at least so many.
    fn wait_for(&mut self, rows: usize) -> Result<(), String> {
        while self.free.len() < rows {
            match next(&self.inbox)? {
                Mail::Frame(Frame { body: Body::Credit(rows), .. }, ..) => {
                    self.credited += rows.len() as u64;
                    self.free.extend(rows);
                }
                Mail::Down => return Err("the host is gone".into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn send(&mut self, class: Class, rows: usize) {
        // When it was sent, for the host to say how long it took.
        let progress = now();
        let mark =
            Mark { class, order: self.number, progress, frames: 0, tokens: 1, blocked: false, cycle: 1 };
        let batch = TokenBatch {
            class,
            frames: self.number,
            block: 0,
            generation: 1,
            step_rows: rows as u32,
            progress,
            rows: self.free.drain(..rows).map(|dst| RowMove { src: dst, dst }).collect(),
            items: (0..rows as u32).flat_map(items).collect(),
            mark: Some(mark),
        };
        let body = Body::Tokens(batch);
        let frame = Frame { epoch: self.up.epoch, channel: Channel::Data, number: self.number, body };
        self.number += 1;
        self.link.send(frame, &mut self.rows, None);
    }
}

fn items(row: u32) -> impl Iterator<Item = TokenItem> {
    (0..TOP_K).map(move |k| TokenItem {
        row,
        expert: k.into(),
        slice: Slice { lo: 0, hi: 1 },
        back: ReturnTo { group: row, tag: 0, k },
    })
}
