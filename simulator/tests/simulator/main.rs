//! The simulator against itself, and the market against the simulator. One binary, so that it links once.

mod cli;
mod determinism;
mod sabotage;
mod seeds;
mod sessions;
mod sold;
mod swarm;
mod trials;
