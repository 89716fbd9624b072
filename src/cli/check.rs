//! `posthaste check`: finds what would lose or delay deliveries.

use std::process::ExitCode;

use crate::config::DatabaseArgs;
use crate::model::Secret;
use crate::store::doctor::{Finding, Weight, examine};
use crate::store::{self, StoreError};

/// Arguments of `posthaste check`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub database: DatabaseArgs,
}

/// Runs the command. Exit code 1: something would lose or delay deliveries; 2: it was called wrongly.
pub fn run(args: &Args) -> ExitCode {
    let Some(url) = args.database.database_url.clone().filter(|url| !url.is_empty()) else {
        eprintln!("posthaste check: DATABASE_URL (or --database-url) must say which database");
        return ExitCode::from(super::EXIT_USAGE);
    };
    match super::block_on(findings(&Secret::new(url))) {
        Ok(findings) => print(&findings),
        Err(error @ StoreError::Url(_)) => {
            eprintln!("posthaste check: {error}");
            ExitCode::from(super::EXIT_USAGE)
        }
        Err(error) => {
            println!("fault: the database cannot be used: {error}");
            println!("       remedy: check the URL, that the server runs, and that this role may connect");
            ExitCode::FAILURE
        }
    }
}

async fn findings(url: &Secret) -> Result<Vec<Finding>, StoreError> {
    let mut conn = store::connect(&store::options(url)?).await?;
    Ok(examine(&mut conn).await?)
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
        (_, 0) => println!("Nothing would lose or delay deliveries."),
        (_, faults) => println!("{faults} of these would lose or delay deliveries."),
    }
    if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
