//! Members of an input that may be absent, null, or of the wrong type: all faults of a document can then be
//! told at once, and not one for each try.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::input::Faults;

/// A member as it was given. `Debug` does not show its value, which may be a secret.
#[derive(Clone, Default)]
pub enum Patch<T> {
    /// Not given: at creation the default, in an update what it is already.
    #[default]
    Absent,
    /// Null: back to the default.
    Null,
    /// A value.
    Value(T),
    /// Something of another type.
    Wrong,
}

/// A type that a member can have.
pub trait Form: DeserializeOwned {
    /// What it must be, for people.
    const FORM: &'static str;
}

macro_rules! forms {
    ($($name:ty: $form:literal),+) => {
        $(impl Form for $name {
            const FORM: &'static str = $form;
        })+
    };
}

forms!(
    String: "a string",
    i64: "a whole number",
    f64: "a number",
    bool: "true or false",
    Vec<String>: "an array of strings",
    BTreeMap<String, String>: "an object of strings",
    Map<String, Value>: "an object",
    Box<RawValue>: "an object"
);

impl<T: Form> Patch<T> {
    /// The value, `default` for null, `None` where nothing is to change; notes a wrong type as a fault of
    /// `field`.
    pub fn take(self, field: &str, default: T, faults: &mut Faults) -> Option<T> {
        match self {
            Patch::Absent => None,
            Patch::Null => Some(default),
            Patch::Value(value) => Some(value),
            Patch::Wrong => {
                faults.add(field, format!("must be {}", T::FORM));
                None
            }
        }
    }

    /// The same for what may be nothing: null is nothing.
    pub fn take_optional(self, field: &str, faults: &mut Faults) -> Option<Option<T>> {
        match self {
            Patch::Null => Some(None),
            Patch::Absent => None,
            Patch::Value(value) => Some(Some(value)),
            Patch::Wrong => {
                faults.add(field, format!("must be {} or null", T::FORM));
                None
            }
        }
    }

    /// Whether nothing was given.
    pub fn is_absent(&self) -> bool {
        matches!(self, Patch::Absent)
    }

    /// Whether null was given.
    pub fn is_null(&self) -> bool {
        matches!(self, Patch::Null)
    }

    /// Whether there is nothing, said or not.
    pub fn is_nothing(&self) -> bool {
        self.is_absent() || self.is_null()
    }
}

impl<T> From<Option<T>> for Patch<T> {
    fn from(value: Option<T>) -> Patch<T> {
        value.map_or(Patch::Absent, Patch::Value)
    }
}

impl<T> fmt::Debug for Patch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Patch::Absent => "absent",
            Patch::Null => "null",
            Patch::Value(_) => "***",
            Patch::Wrong => "wrong",
        })
    }
}

impl<'de, T: Form> Deserialize<'de> for Patch<T> {
    /// Never fails where the JSON itself is right. As text, so that no number loses its digits on the way.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Patch<T>, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        Ok(match text.get() {
            "null" => Patch::Null,
            text => serde_json::from_str(text).map_or(Patch::Wrong, Patch::Value),
        })
    }
}
