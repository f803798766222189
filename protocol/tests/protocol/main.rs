//! Peers against each other, and against what a hostile one may send. One binary, so that it links once.

mod admission;
mod common;
mod directory;
mod discovery;
mod hedging;
mod market;
mod offers;
mod selling;
mod sessions;
mod wire;
