//! A body that is handed over in pieces.
//!
//! awc copies what it is given into the buffer of the connection. Given a body of 5 MB as a whole, it would
//! hold it twice for as long as the receiver takes to answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_http::body::{BodySize, MessageBody};
use bytes::Bytes;

/// Bytes that are handed over at once.
const PIECE_BYTES: usize = 64 * 1024;

/// What is left of a body.
pub(super) struct Pieces(pub(super) Bytes);

impl MessageBody for Pieces {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.0.len() as u64)
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let left = self.0.len();
        Poll::Ready((left > 0).then(|| Ok(self.0.split_to(left.min(PIECE_BYTES)))))
    }
}
