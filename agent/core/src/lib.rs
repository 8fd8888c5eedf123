//! The sans-IO core of the node agent: events in, actions out
