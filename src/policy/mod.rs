//! What to do, decided by pure functions of their arguments: no async, no IO, no clock, no log.

pub mod egress;
pub mod filter;
pub mod signature;
