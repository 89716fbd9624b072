//! `posthaste destinations`: created, shown, changed, deleted; switched on and off; tried out.

mod show;
mod write;

use std::cell::Cell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

pub(super) use self::show::once;
use self::show::{created, deleted, enabled, list, rotated, show, stats, tested};
use self::write::WriteArgs;
use super::common::{self, CommonArgs, Failure, PageArgs};
use crate::config::{Outbound, OutboundArgs};
use crate::manage::Principal;
use crate::manage::destinations::{self, DeletedView, Disable, Query, Rotate, Setup, UpdatedView};
use crate::manage::patch::Patch;
use crate::model::DestinationId;
use crate::outbound::Network;
use crate::policy::keyring::KeyRing;

/// How long one part of a deletion may take; there are as many as are needed.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a file with a secret.
const MAX_SECRET_BYTES: u64 = 1_024;

/// Arguments of `posthaste destinations`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do with them.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// List destinations, the newest first
    List(ListArgs),
    /// Show a destination
    Show(OneArgs),
    /// Create a destination; without a signing secret, one is made and shown once
    Create(CreateArgs),
    /// Change what is given of a destination, and leave the rest
    Update(UpdateArgs),
    /// Delete a destination and its deliveries; its events stay
    Delete(DeleteArgs),
    /// Queue and send events again, and say what was missed
    Enable(OneArgs),
    /// Queue and send nothing any more
    Disable(DisableArgs),
    /// Send a signed event of type webhook.test, and show the answer. Exit code 1: it would not count as
    /// delivered
    Test(TestArgs),
    /// Change the signing secret; the old one signs beside the new one for a while
    RotateSecret(RotateArgs),
    /// Show how a destination does
    Stats(OneArgs),
}

/// Arguments of `list`.
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub page: PageArgs,
}

/// Arguments of `show`, `enable` and `stats`.
#[derive(clap::Args, Debug)]
pub struct OneArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
    /// The destination
    pub id: Uuid,
}

/// Arguments of `create`.
#[derive(clap::Args, Debug)]
pub struct CreateArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub write: WriteArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub outbound: OutboundArgs,
}

/// Arguments of `update`.
#[derive(clap::Args, Debug)]
pub struct UpdateArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
    /// The destination
    pub id: Uuid,
    /// Only if it is still of this version, as it was shown
    #[arg(long, value_name = "VERSION")]
    pub if_version: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub write: WriteArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub outbound: OutboundArgs,
}

/// Arguments of `delete`.
#[derive(clap::Args, Debug)]
pub struct DeleteArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub one: OneArgs,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// Arguments of `disable`.
#[derive(clap::Args, Debug)]
pub struct DisableArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub one: OneArgs,
    /// Why, for whoever looks at it later [default: by hand]
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// Arguments of `test`.
#[derive(clap::Args, Debug)]
pub struct TestArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub one: OneArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub outbound: OutboundArgs,
}

/// Arguments of `rotate-secret`.
#[derive(clap::Args, Debug)]
pub struct RotateArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub one: OneArgs,
    /// For how many seconds the old secret signs, too [default: 86400]
    #[arg(long, value_name = "SECONDS")]
    pub overlap_seconds: Option<i64>,
    /// File with the new secret, - for standard input; without, one is made
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub outbound: OutboundArgs,
}

/// What destinations are checked against, ready to use.
struct Ready {
    keys: KeyRing,
    network: Arc<Network>,
}

impl Ready {
    fn new(args: &OutboundArgs) -> Result<Ready, Failure> {
        let Outbound { rules, ca_file, secret_keys } = args.validate()?;
        Ok(Ready { keys: secret_keys, network: Arc::new(Network::new(rules, ca_file.as_deref())?) })
    }

    fn setup(&self) -> Setup<'_> {
        // Only keys have a limit.
        Setup { keys: &self.keys, network: &self.network, max_destinations: u32::MAX }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let operator = Principal::Operator;
    match &args.command {
        Command::List(args) => {
            let query = Query { limit: args.page.limit.clone(), cursor: args.page.cursor.clone() };
            let read = async |conn: &mut _, org| Ok(destinations::list(conn, org, operator, &query).await?);
            common::run(&args.common, read, list)
        }
        Command::Show(args) => {
            let id = DestinationId(args.id);
            let read = async |conn: &mut _, org| Ok(destinations::one(conn, org, operator, id).await?);
            common::run(&args.common, read, show)
        }
        Command::Create(args) => {
            let create = async |conn: &mut _, org| {
                let ready = Ready::new(&args.outbound)?;
                let changes = args.write.changes()?;
                Ok(destinations::create(conn, org, operator, changes, ready.setup()).await?)
            };
            common::run(&args.common, create, created)
        }
        Command::Update(args) => {
            let (id, expected) = (DestinationId(args.id), args.if_version.as_deref());
            let update = async |conn: &mut _, org| {
                let ready = Ready::new(&args.outbound)?;
                let (changes, setup) = (args.write.changes()?, ready.setup());
                Ok(destinations::update(conn, org, operator, id, changes, expected, setup).await?)
            };
            common::run(&args.common, update, |updated: &UpdatedView| show(&updated.destination))
        }
        Command::Delete(args) => delete(args),
        Command::Enable(args) => {
            let id = DestinationId(args.id);
            let enable = async |conn: &mut _, org| {
                Ok(destinations::enable(conn, org, operator, id, common::COUNTING).await?)
            };
            common::run(&args.common, enable, enabled)
        }
        Command::Disable(args) => {
            let id = DestinationId(args.one.id);
            let asked = Disable { reason: args.reason.clone().into() };
            let disable =
                async |conn: &mut _, org| Ok(destinations::disable(conn, org, operator, id, asked).await?);
            common::run(&args.one.common, disable, show)
        }
        Command::Test(args) => test(args),
        Command::RotateSecret(args) => rotate(args),
        Command::Stats(args) => {
            let id = DestinationId(args.id);
            let read =
                async |conn: &mut _, org| Ok(destinations::stats(conn, org, operator, id, None).await?);
            common::run(&args.common, read, stats)
        }
    }
}

fn delete(args: &DeleteArgs) -> ExitCode {
    let id = DestinationId(args.one.id);
    let delete = async |conn: &mut _, org| {
        let name = destinations::one(conn, org, Principal::Operator, id).await?.name;
        common::confirm(&format!("Delete the destination {name:?} with all its deliveries?"), args.yes)?;
        let mut all = DeletedView { deleted: false, deliveries: 0 };
        while !all.deleted {
            let part = destinations::delete(conn, org, id, PATIENCE).await?;
            all = DeletedView { deleted: part.deleted, deliveries: all.deliveries + part.deliveries };
        }
        Ok(all)
    };
    common::run(&args.one.common, delete, deleted)
}

fn test(args: &TestArgs) -> ExitCode {
    let id = DestinationId(args.one.id);
    let delivered = Cell::new(None);
    let test = async |conn: &mut _, org| {
        let ready = Ready::new(&args.outbound)?;
        let answer = destinations::prepare(conn, org, id, ready.setup()).await?.run().await;
        delivered.set(Some(answer.delivered));
        Ok(answer)
    };
    let code = common::run(&args.one.common, test, tested);
    if delivered.get() == Some(false) { ExitCode::FAILURE } else { code }
}

fn rotate(args: &RotateArgs) -> ExitCode {
    let id = DestinationId(args.one.id);
    let rotate = async |conn: &mut _, org| {
        let ready = Ready::new(&args.outbound)?;
        let mut asked = Rotate { overlap_seconds: args.overlap_seconds.into(), ..Rotate::default() };
        if let Some(file) = &args.secret_file {
            asked.signing_secret = Patch::Value(secret(common::input(Some(file), MAX_SECRET_BYTES)?)?);
        }
        Ok(destinations::rotate(conn, org, Principal::Operator, id, asked, ready.setup()).await?)
    };
    common::run(&args.one.common, rotate, rotated)
}

/// The secret in a file. What was quoted, or has more than one word, was meant for a shell or another
/// program: as a secret it would be taken as it stands, and no signature would verify.
fn secret(file: Vec<u8>) -> Result<String, Failure> {
    let text = String::from_utf8(file).map_err(|_| Failure::Input("the secret is not UTF-8".into()))?;
    let secret = text.trim();
    let why = match secret.chars().next() {
        None => "the file of the secret is empty",
        Some('"' | '\'') => "the secret is in quotes, which would be part of it: write it without",
        _ if secret.contains(char::is_whitespace) => "the secret has spaces or several lines: write it alone",
        _ if secret.contains(char::is_control) => "the secret has control characters",
        _ => return Ok(secret.to_owned()),
    };
    Err(Failure::Input(why.into()))
}
