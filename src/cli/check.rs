//! `posthaste check`: finds what would lose or delay deliveries.

use std::process::ExitCode;

use crate::actors::StartError;
use crate::config::{Config, DatabaseArgs, DispatchArgs};
use crate::manage::trouble::{self, Trouble};
use crate::model::Secret;
use crate::outbound::{Network, Target};
use crate::store::destinations::{self, Loaded, Unusable};
use crate::store::doctor::{Finding, Weight, examine};
use crate::store::{self, Connection, StoreError};

/// Arguments of `posthaste check`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub database: DatabaseArgs,
    /// Destinations are judged by the options that `serve` runs with.
    #[command(flatten)]
    pub dispatch: DispatchArgs,
}

/// Runs the command. Exit code 1: something would lose or delay deliveries; 2: it was called wrongly.
pub fn run(args: &Args) -> ExitCode {
    let Some(url) = args.database.database_url.clone().filter(|url| !url.is_empty()) else {
        eprintln!("posthaste check: DATABASE_URL (or --database-url) must say which database");
        return ExitCode::from(super::EXIT_USAGE);
    };
    let config = match args.dispatch.validate(Secret::new(url)) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("posthaste check: {faults}");
            return ExitCode::from(super::EXIT_USAGE);
        }
    };
    match super::block_on(findings(&config)) {
        Ok(findings) => print(&findings),
        Err(error @ (StartError::Store(StoreError::Url(_)) | StartError::Network(_))) => {
            eprintln!("posthaste check: {error}");
            ExitCode::from(super::EXIT_USAGE)
        }
        Err(StartError::Store(error)) => {
            println!("fault: the database cannot be used: {error}");
            println!("       remedy: check the URL, that the server runs, and that this role may connect");
            ExitCode::FAILURE
        }
    }
}

async fn findings(config: &Config) -> Result<Vec<Finding>, StartError> {
    let network = Network::new(config.egress_rules(), config.ca_file.as_deref())?;
    let options = match store::fitting(&store::options(&config.database_url)?).await {
        Err(error @ StoreError::Pooler) => return Ok(vec![pooled(&error)]),
        options => options?,
    };
    let mut conn = store::connect(&options).await?;
    let mut findings = examine(&mut conn).await.map_err(StoreError::from)?;
    match destinations::load_all(&mut conn, &config.secret_keys).await {
        Ok(loaded) => findings.extend(loaded.iter().filter_map(|loaded| finding(loaded, &network))),
        // Without the tables, or the right to read them, there is a finding already.
        Err(error) if findings.is_empty() => return Err(error.into()),
        Err(_) => return Ok(findings),
    }
    findings.extend(plain_secrets(&mut conn, config).await?);
    findings.extend(
        trouble::troubles(&mut conn).await?.into_iter().map(|Trouble { what, remedy }| Finding {
            weight: Weight::Warning,
            what,
            remedy,
        }),
    );
    Ok(findings)
}

/// Nothing else can be found out there.
fn pooled(error: &StoreError) -> Finding {
    let remedy = "give DATABASE_URL the address of PostgreSQL itself, or of a pool in session mode";
    Finding { weight: Weight::Fault, what: error.to_string(), remedy: remedy.into() }
}

/// Where there is a key, nothing needs to be readable by everyone who can read the table.
async fn plain_secrets(conn: &mut Connection, config: &Config) -> Result<Option<Finding>, StoreError> {
    if config.secret_keys.ids().next().is_none() {
        return Ok(None);
    }
    let plain = super::secrets::survey(conn, &config.secret_keys).await?.plain;
    Ok((plain > 0).then(|| Finding {
        weight: Weight::Warning,
        what: format!("{plain} secret(s) are stored as plain text although there is a key"),
        remedy: "run posthaste secrets encrypt".into(),
    }))
}

/// What keeps a destination from working.
fn finding(loaded: &Loaded, network: &Network) -> Option<Finding> {
    let (what, remedy) = match &loaded.destination {
        Ok(destination) => (
            Target::compile(destination, network).err()?.to_string(),
            "correct the destination: its deliveries fail",
        ),
        Err(Unusable::Unreadable(why)) => (
            format!("it cannot be read: {why}"),
            "mend what the message names: until then its deliveries wait",
        ),
        Err(Unusable::Locked(locked)) => (
            locked.to_string(),
            "give POSTHASTE_SECRET_KEY the key and start again, or write the secret anew: until then its \
             deliveries wait",
        ),
    };
    let what = format!("destination {}: {what}", loaded.id);
    Some(Finding { weight: Weight::Fault, what, remedy: remedy.into() })
}

fn print(findings: &[Finding]) -> ExitCode {
    for finding in findings {
        let weight = match finding.weight {
            Weight::Fault => "fault",
            Weight::Warning => "warning",
        };
        println!("{weight}: {}", finding.what);
        println!("{:indent$}  remedy: {}", "", finding.remedy, indent = weight.len());
    }
    let faults = findings.iter().filter(|finding| finding.weight == Weight::Fault).count();
    match (findings.len(), faults) {
        (0, _) => println!("All is well."),
        (1, 0) => println!("1 warning; the installation is all right."),
        (warnings, 0) => println!("{warnings} warnings; the installation is all right."),
        (_, faults) => println!("{faults} of these would lose or delay deliveries."),
    }
    if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
