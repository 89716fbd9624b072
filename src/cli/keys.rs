//! `posthaste keys`: keys of the HTTP API.

use std::process::ExitCode;

use uuid::Uuid;

use super::common::{self, Failure, PageArgs};
use super::destinations::once;
use crate::config::DatabaseArgs;
use crate::manage::List;
use crate::manage::keys::{self, CreatedView, New, Query, View};
use crate::manage::patch::Patch;
use crate::model::KeyId;
use crate::store::Connection;

/// Arguments of `posthaste keys`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do with them.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Create a key for an organization; it is shown once
    Create(CreateArgs),
    /// List keys, the newest first, without what makes them keys
    List(ListArgs),
    /// Revoke a key: from now on it is of no use
    Revoke(RevokeArgs),
}

/// Arguments of all of them.
#[derive(clap::Args, Debug)]
pub struct KeysArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub database: DatabaseArgs,
    /// Print JSON, for machines
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `create`.
#[derive(clap::Args, Debug)]
pub struct CreateArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeysArgs,
    /// The organization
    #[arg(long, env = "POSTHASTE_ORG", value_name = "UUID")]
    pub org: Uuid,
    /// What people call it
    #[arg(long)]
    pub name: String,
    /// What it allows: read or write
    #[arg(long, default_value = "read")]
    pub role: String,
}

/// Arguments of `list`.
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeysArgs,
    /// Only those of this organization
    #[arg(long, value_name = "UUID")]
    pub org: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub page: PageArgs,
}

/// Arguments of `revoke`.
#[derive(clap::Args, Debug)]
pub struct RevokeArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub keys: KeysArgs,
    /// The key, by its id
    pub id: Uuid,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    match &args.command {
        Command::Create(args) => {
            let new = New {
                org_id: Patch::Value(args.org.to_string()),
                name: Patch::Value(args.name.clone()),
                role: Patch::Value(args.role.clone()),
            };
            on(&args.keys, async |conn| Ok(keys::create(conn, new).await?), created)
        }
        Command::List(args) => {
            let (org_id, limit) = (args.org.clone(), args.page.limit.clone());
            let query = Query { org_id, limit, cursor: args.page.cursor.clone() };
            on(&args.keys, async |conn| Ok(keys::list(conn, &query).await?), list)
        }
        Command::Revoke(args) => {
            let revoke = async |conn: &mut Connection| {
                common::confirm(&format!("Revoke the key {}?", args.id), args.yes)?;
                Ok(keys::revoke(conn, None, KeyId(args.id)).await?)
            };
            on(&args.keys, revoke, show)
        }
    }
}

fn on<T: serde::Serialize>(
    args: &KeysArgs,
    work: impl AsyncFnOnce(&mut Connection) -> Result<T, Failure>,
    table: impl FnOnce(&T),
) -> ExitCode {
    common::run_for_all(&args.database, args.json, work, table)
}

fn created(created: &CreatedView) {
    show(&created.view);
    once("The key", created.key.0.reveal());
}

fn show(view: &View) {
    common::fields([
        ("key", Some(view.id.to_string())),
        ("name", Some(view.name.clone())),
        ("organization", Some(view.org_id.to_string())),
        ("role", Some(view.role.name().to_owned())),
        ("begins with", Some(view.prefix.clone())),
        ("state", Some(state(view))),
        ("created", Some(view.created_at.clone())),
        ("last used", view.last_used_at.clone()),
        ("revoked", view.revoked_at.clone()),
    ]);
}

fn state(view: &View) -> String {
    common::state(if view.revoked_at.is_some() { "revoked" } else { "active" })
}

fn list(page: &List<View>) {
    let row = |one: &View| {
        [
            one.id.to_string(),
            one.name.clone(),
            one.org_id.to_string(),
            one.role.name().to_owned(),
            one.prefix.clone(),
            state(one),
            one.created_at.clone(),
            one.last_used_at.clone().unwrap_or_default(),
        ]
    };
    let headings = ["ID", "NAME", "ORGANIZATION", "ROLE", "PREFIX", "STATE", "CREATED", "LAST USED"];
    common::table(headings, page.items.iter().map(row));
    common::next(page.next_cursor.as_ref());
}
