//! What people manage: one function for each thing that can be done, used by the API and by the command line
//! alike. Input is text as it came; it is checked here, all of it at once, and what is shown is made here.

pub mod deliveries;
pub mod destinations;
pub mod events;
pub mod input;
pub mod jobs;
pub mod keys;
pub mod patch;
mod principal;
pub mod trouble;
mod why;

use std::fmt;

pub use self::principal::Principal;
use crate::model::Secret;
use crate::store::StoreError;

/// What is wrong with one field of the input.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct FieldFault {
    /// Its name, as it is written: `payload`, `events[3].id`.
    pub field: String,
    /// A sentence about it.
    pub detail: String,
}

impl fmt::Display for FieldFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.detail)
    }
}

/// Why something was not done. Whichever it is, nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// There is no such thing, or it belongs to somebody else.
    #[error("not found: {0}")]
    NotFound(String),
    /// The input is wrong, for each of these reasons.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldFault>),
    /// What is there does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// It is not what the one who asked takes it for.
    #[error("it was changed since it was read: read it again")]
    Stale,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A list as it is shown.
#[derive(Clone, Debug, serde::Serialize, utoipa::ToSchema)]
pub struct List<T> {
    /// A page of it. It may be shorter than asked for although there is more.
    pub items: Vec<T>,
    /// What to ask the next page with; null: there is none.
    pub next_cursor: Option<String>,
}

impl<T> List<T> {
    /// The same page with `change` made to each of its items.
    pub fn map<U>(self, change: impl FnMut(T) -> U) -> List<U> {
        List { items: self.items.into_iter().map(change).collect(), next_cursor: self.next_cursor }
    }
}

/// A secret that is shown this once, to whoever caused it to be made. `Debug` does not show it.
#[derive(Clone, Debug)]
pub struct Once(pub Secret);

impl serde::Serialize for Once {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.reveal())
    }
}
