//! Whether a destination can work as it is written, and its secrets on their way into the database.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::changes::Touched;
use super::{FILTER_FIELD, Setup};
use crate::manage::input::Faults;
use crate::manage::{Fault, FieldFault};
use crate::model::{Destination, OrgId, Secret};
use crate::outbound::{Fault as TargetFault, Target};
use crate::policy::keyring::{CannotSeal, Field, KeyRing, Stored};
use crate::store::destinations::managed::{self, Written};
use crate::store::{Connection, StoreError, secrets};

/// Bytes of a secret that is made here, as Standard Webhooks recommends.
const SECRET_BYTES: usize = 32;

/// A new signing secret.
pub(super) fn signing_secret() -> Secret {
    Secret::new(format!("whsec_{}", STANDARD.encode(secrets::random::<SECRET_BYTES>())))
}

/// Notes everything that is wrong with `after` and was not with `before`.
pub(super) async fn check(
    db: &mut Connection,
    after: &Written,
    before: Option<&Written>,
    touched: Touched,
    setup: Setup<'_>,
    faults: &mut Faults,
) -> Result<(), Fault> {
    if touched.filter && !faults.has(FILTER_FIELD) {
        match managed::filter_fault(db, after.event_filter.as_deref().unwrap_or("{}")).await {
            Ok(fault) => fault.into_iter().for_each(|fault| faults.add(FILTER_FIELD, fault)),
            Err(error) if error.is_about_data() => faults.add(FILTER_FIELD, error.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
    refuse_ciphertext(&after.destination, touched, faults);
    let open = |written: &Written| setup.keys.open_all(written.destination.clone());
    let known = before.and_then(|before| open(before).ok());
    let known = known.map(|before| Target::faults(&before, setup.network)).unwrap_or_default();
    let of_secrets = ["signing_secret", "auth_config", "settings.tls_client_key"];
    let after = match of_secrets.iter().any(|field| faults.has(field)) {
        // What would be said about it is said already.
        true => without_secrets(&after.destination),
        false => open(after).map_err(|locked| Fault::Conflict(locked.to_string()))?,
    };
    for fault in Target::faults(&after, setup.network) {
        let field = field(&fault);
        if !known.contains(&fault) && !faults.has(&field) {
            faults.add(&field, fault.to_string());
        }
    }
    Ok(())
}

/// The same without what has a fault already.
fn without_secrets(destination: &Destination) -> Destination {
    let mut bare = destination.clone();
    (bare.auth_type, bare.auth_config, bare.signing_secret) = ("none".into(), Secret::new("{}"), None);
    (bare.settings.tls_client_cert, bare.settings.tls_client_key) = (None, None);
    bare.settings.previous_signing_secret = None;
    bare
}

/// Where the API has what `fault` is about.
fn field(fault: &TargetFault) -> String {
    let column = fault.field();
    match column.split('.').next() {
        Some("url" | "auth_type" | "auth_config" | "signing_secret") => column.to_owned(),
        _ => format!("settings.{column}"),
    }
}

/// A secret that begins like an encrypted one could never be told from one.
fn refuse_ciphertext(destination: &Destination, touched: Touched, faults: &mut Faults) {
    for (field, text) in secrets_of(destination, touched) {
        if Stored::of(text.reveal()) == Stored::Malformed {
            faults.add(&name(field), "must not begin like an encrypted secret");
        }
    }
}

/// The secrets that were touched.
fn secrets_of(destination: &Destination, touched: Touched) -> Vec<(Field, Secret)> {
    let mut secrets = Vec::new();
    if touched.signing_secret {
        secrets.extend(destination.signing_secret.clone().map(|secret| (Field::SigningSecret, secret)));
    }
    if touched.client_key {
        let key = destination.settings.tls_client_key.clone();
        secrets.extend(key.map(|secret| (Field::TlsClientKey, secret)));
    }
    if touched.auth {
        let members = members(&destination.auth_config);
        let member = |field| match field {
            Field::Auth(name) => members.get(name).map(|text| (field, Secret::new(text.clone()))),
            _ => None,
        };
        secrets.extend(Field::ALL.into_iter().filter_map(member));
    }
    secrets
}

fn members(config: &Secret) -> BTreeMap<String, String> {
    serde_json::from_str(config.reveal()).unwrap_or_default()
}

/// Encrypts the secrets that were touched, where there is a key.
pub(super) fn seal(destination: &mut Destination, touched: Touched, keys: &KeyRing, faults: &mut Faults) {
    for (field, plain) in secrets_of(destination, touched) {
        if plain.reveal().is_empty() || Stored::of(plain.reveal()) != Stored::Plain {
            continue;
        }
        let sealed = match keys.seal(destination.id, field, &plain, secrets::random()) {
            Ok(sealed) => sealed,
            Err(CannotSeal::NoKey) => return,
            Err(fault) => {
                if !faults.has(&name(field)) {
                    faults.add(&name(field), fault.to_string());
                }
                continue;
            }
        };
        match field {
            Field::SigningSecret => destination.signing_secret = Some(sealed),
            Field::TlsClientKey => destination.settings.tls_client_key = Some(sealed),
            Field::Auth(member) => {
                let mut members = members(&destination.auth_config);
                members.insert(member.to_owned(), sealed.reveal().to_owned());
                let text = serde_json::to_string(&members).expect("a map of texts can be written");
                destination.auth_config = Secret::new(text);
            }
            Field::PreviousSigningSecret => {}
        }
    }
}

fn name(field: Field) -> String {
    match field {
        Field::TlsClientKey | Field::PreviousSigningSecret => format!("settings.{field}"),
        Field::SigningSecret | Field::Auth(_) => field.to_string(),
    }
}

/// What the trigger of `webhook_destinations` has against a filter, which it says as `event_filter of
/// destination "x" is refused: it has …`. Some limits are those of all destinations of an organization, so
/// they can be exceeded by enabling one as well.
pub(super) fn refused_by_trigger(error: &StoreError) -> Option<FieldFault> {
    let text = error.to_string();
    let (before, why) = text.split_once(" is refused: ")?;
    let says = |field: &&str| before.contains(&format!("{field} of destination \""));
    let field = [FILTER_FIELD, "event_types"].into_iter().find(says)?;
    // The line of PostgreSQL's own source that raised it.
    let detail = why.rsplit_once(" at line ").map_or(why, |(why, _)| why);
    Some(FieldFault { field: field.to_owned(), detail: detail.to_owned() })
}

/// What PostgreSQL has against what was to be written.
pub(super) fn refused(org: OrgId, name: &str, error: StoreError) -> Fault {
    if error.is_about_uniqueness() {
        return Fault::Conflict(format!("the organization has another destination called {name:?}"));
    }
    if !error.is_about_data() {
        return error.into();
    }
    if let Some(fault) = refused_by_trigger(&error) {
        return Fault::Invalid(vec![fault]);
    }
    let constraint = error.constraint().unwrap_or_default();
    if constraint.contains("org_id") {
        return Fault::NotFound(format!("organization {org}"));
    }
    // An application's own constraint, or a trigger of it.
    let field = match constraint.trim_end_matches("_check") {
        "" => "destination".to_owned(),
        own => match own.strip_prefix("posthaste_destination_settings_") {
            Some(column) => format!("settings.{column}"),
            None => own.trim_start_matches("webhook_destinations_").to_owned(),
        },
    };
    Fault::Invalid(vec![FieldFault { field, detail: error.to_string() }])
}
