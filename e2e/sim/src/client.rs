//! The clients: what they asked, what they got, and whether that is right.

use crate::symbol::{self, Expected, Request};
use sluice_core::config::Shape;
use sluice_core::front::{Complete, Ending, Refused};
use sluice_core::ids::Nanos;
use sluice_core::sequence::Finish;
use std::sync::Arc;

/// One choice of one request.
pub struct Client {
    /// What it asked.
    pub request: Arc<Request>,
    /// Its gateway.
    pub gateway: usize,
    deadline: Option<Nanos>,
    /// It went, or will have.
    pub cancelled: bool,
    expected: Option<Expected>,
    got: Vec<u32>,
    /// How it ended.
    pub ending: Option<Ending>,
}

impl Client {
    /// Has asked.
    pub fn new(request: Arc<Request>, gateway: usize, deadline: Option<Nanos>) -> Self {
        Self { request, gateway, deadline, cancelled: false, expected: None, got: vec![], ending: None }
    }

    /// Waits for an end.
    pub fn is_open(&self) -> bool {
        self.ending.is_none()
    }

    /// Tokens delivered.
    pub fn tokens(&self) -> usize {
        self.got.len()
    }

    fn expected(&mut self, shape: &Shape, hot: u64) -> &Expected {
        self.expected.get_or_insert_with(|| symbol::evaluate(shape, hot, &self.request))
    }

    /// Gets a token.
    ///
    /// # Errors
    /// It is not the next one, or another than the sequence gives when it is evaluated alone.
    pub fn deliver(&mut self, shape: &Shape, hot: u64, index: u32, id: u32) -> Result<(), String> {
        let (key, n) = (self.request.key, self.got.len());
        if self.ending.is_some() || index as usize != n {
            return Err(format!("{key} gets token {index} after {n} tokens, ended: {:?}", self.ending));
        }
        let due = self.expected(shape, hot).ids.get(n).copied();
        if due != Some(id) {
            return Err(format!("{key} gets {id} as token {index}, evaluated alone it is {due:?}"));
        }
        self.got.push(id);
        Ok(())
    }

    /// Is cut with its gateway.
    ///
    /// # Errors
    /// It is over already.
    pub fn cut(&mut self) -> Result<(), String> {
        match self.ending.replace(Ending::Cut) {
            Some(before) => Err(format!("{} is cut after it ended as {before:?}", self.request.key)),
            None => Ok(()),
        }
    }

    /// Is over.
    ///
    /// # Errors
    /// It was already, or for a reason that is none.
    pub fn end(
        &mut self,
        shape: &Shape,
        hot: u64,
        now: Nanos,
        ending: Ending,
        room: u32,
    ) -> Result<(), String> {
        let key = self.request.key;
        if let Some(before) = self.ending {
            return Err(format!("{key} ends as {ending:?} after it ended as {before:?}"));
        }
        self.ending = Some(ending);
        let nothing = self.request.stop.max_tokens == 0;
        let finish = match ending {
            Ending::Complete(Complete::Length) if nothing => return Ok(()),
            Ending::Complete(Complete::Stop) => Finish::Stop,
            Ending::Complete(Complete::Length) => Finish::Length,
            Ending::Refused(Refused::Aborted(why)) => Finish::Aborted(why),
            Ending::Cancelled if self.cancelled => return Ok(()),
            Ending::Deadline if self.deadline.is_some_and(|d| d <= now) => return Ok(()),
            Ending::Refused(Refused::TooLarge { need, .. }) if self.got.is_empty() && need > room => {
                return Ok(());
            }
            other => return Err(format!("{key} ends as {other:?}, which nobody asked for")),
        };
        let n = self.got.len();
        let due = self.expected(shape, hot);
        if (due.ids.len(), due.finish) != (n, finish) {
            return Err(format!("{key} ends as {ending:?} with {n} tokens, due is {due:?}"));
        }
        Ok(())
    }
}
