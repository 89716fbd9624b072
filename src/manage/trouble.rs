//! Destinations in trouble, in words, for `posthaste check` and `/readyz`.

use super::why;
use crate::store::trouble::{self, Found, MOST_NAMED, Unwell, Who};
use crate::store::{Connection, StoreError};

/// Something that somebody should look at, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What it is.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// What there is of it: at most [`MOST_NAMED`] destinations of each kind are named.
///
/// # Errors
/// Whatever the database says.
pub async fn troubles(db: &mut Connection) -> Result<Vec<Trouble>, StoreError> {
    Ok(told(&trouble::find(db).await?))
}

fn told(found: &Found) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    let unwell = |one: &Unwell| {
        let disabled = (!one.enabled).then_some((one.disabled_at, one.disabled_reason.as_deref()));
        let (state, text) = why::health(disabled, &one.saved, found.now);
        let enable = match state {
            "disabled" => format!("; posthaste destinations enable {} --org {}", one.who.id, one.who.org),
            _ => String::new(),
        };
        let look = format!("posthaste destinations stats {} --org {}{enable}", one.who.id, one.who.org);
        Trouble { what: format!("{} is {text}", named(&one.who)), remedy: look }
    };
    add(&mut troubles, &found.unwell, unwell, "destinations are disabled, tripped, paused or failing");
    let late = |(who, since): &(Who, _)| Trouble {
        what: format!("{} has deliveries that wait since {}", named(who), why::second(*since)),
        remedy: listed(who, "pending,failed"),
    };
    add(&mut troubles, &found.late, late, "destinations have deliveries that wait for more than an hour");
    let dead = |(who, count): &(Who, i64)| Trouble {
        what: format!("{} has {count} deliveries that died in the last day", named(who)),
        remedy: listed(who, "dead"),
    };
    add(&mut troubles, &found.dead, dead, "destinations have deliveries that died in the last day");
    troubles
}

/// Tells of those that are named, and that there are more.
fn add<T>(troubles: &mut Vec<Trouble>, found: &[T], tell: impl Fn(&T) -> Trouble, more: &str) {
    troubles.extend(found.iter().take(MOST_NAMED).map(tell));
    if found.len() > MOST_NAMED {
        let remedy = "posthaste destinations list shows the health of each".into();
        troubles.push(Trouble { what: format!("more {more}"), remedy });
    }
}

fn named(who: &Who) -> String {
    format!("destination {:?} ({})", who.name, who.id)
}

fn listed(who: &Who, statuses: &str) -> String {
    format!(
        "posthaste deliveries list --destination {} --status {statuses} --org {} says why",
        who.id, who.org
    )
}
