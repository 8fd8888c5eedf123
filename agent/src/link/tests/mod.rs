//! Both ends of links over pipes that break, on a clock that does not wait.

mod breaks;
mod grammars;
mod loss;
mod messages;
mod net;
mod sides;
mod strangers;
