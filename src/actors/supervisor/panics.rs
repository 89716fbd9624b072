//! Panics that tests ask for.

use actix::prelude::*;

use super::Supervisor;
use crate::model::DestinationId;

/// From a test: let this destination panic.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors) struct LetPanic(pub(in crate::actors) DestinationId);

impl Handler<LetPanic> for Supervisor {
    type Result = ();

    fn handle(&mut self, LetPanic(id): LetPanic, _: &mut Self::Context) {
        self.children[&id].addr.do_send(crate::actors::Panic);
    }
}

impl Handler<crate::actors::Panic> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: crate::actors::Panic, _: &mut Self::Context) {
        panic!("a test asked for this");
    }
}
