//! What to do, decided by pure functions of their arguments: no async, no IO, no clock, no log.
//!
//! [`classify`] says what an answer means, [`health`] what it means for the destination, [`retry`] what
//! becomes of the delivery, [`fairness`] who goes first, [`backlog_throttle`] who holds back. [`egress`],
//! [`signature`] and [`filter`] check and sign; [`keyring`] decrypts secrets.

pub mod backlog_throttle;
pub mod classify;
pub mod egress;
pub mod fairness;
pub mod filter;
pub mod health;
pub mod keyring;
pub mod retry;
pub mod signature;
