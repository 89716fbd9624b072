//! Where the demo takes place: a database of its own, and what is in it before the first event.

use uuid::Uuid;

use super::plan::{ORGANIZATIONS, Participant};
use super::receivers::Receivers;
use super::{Args, Failure};
use crate::embedded::{self, Durability, Embedded};
use crate::model::{OrgId, Secret};
use crate::store::{self, database};

/// A new database, somewhere.
pub struct Place {
    server: Server,
    name: String,
}

enum Server {
    /// Of our own; goes with the demo.
    Private(Embedded),
    /// Somebody's, by the URL of a database that the demo leaves alone.
    Given(Secret),
}

impl Place {
    /// Makes a database with Posthaste's tables.
    pub async fn make(args: &Args) -> Result<Place, Failure> {
        // Nobody else has a database of this name, so that dropping it can hurt nobody.
        let name = format!("posthaste_demo_{}", Uuid::new_v4().simple());
        let server = match args.database.database_url.as_ref().filter(|url| !url.is_empty()) {
            Some(url) => Server::Given(Secret::new(url)),
            None => Server::Private(start_private(args)?),
        };
        let place = Place { server, name };
        database::create(&place.admin(), &place.name).await?;
        match migrate(&place.url()?).await {
            Ok(()) => Ok(place),
            Err(failure) => {
                place.clear().await?;
                Err(failure)
            }
        }
    }

    /// The URL of the new database.
    pub fn url(&self) -> Result<Secret, Failure> {
        match &self.server {
            Server::Private(server) => Ok(server.url(&self.name)),
            Server::Given(url) => Ok(database::with_name(url, &self.name)?),
        }
    }

    /// Removes everything that [`Place::make`] made.
    pub async fn clear(self) -> Result<(), Failure> {
        match self.server {
            Server::Private(server) => Ok(server.remove()?),
            Server::Given(url) => Ok(database::drop(&url, &self.name).await?),
        }
    }

    fn admin(&self) -> Secret {
        match &self.server {
            Server::Private(server) => server.url("postgres"),
            Server::Given(url) => url.clone(),
        }
    }
}

fn start_private(args: &Args) -> Result<Embedded, Failure> {
    // Beside the data of `serve --embedded`, which may be running.
    let dir = args.data_dir.data_dir.clone().unwrap_or_else(embedded::default_data_dir).join("demo");
    println!("Starting a private PostgreSQL in {}", dir.display());
    Ok(Embedded::start(&dir, Durability::Durable)?)
}

async fn migrate(url: &Secret) -> Result<(), Failure> {
    let options = store::options(url)?;
    store::migrate::migrate(&options, store::migrate::Options::default()).await?;
    Ok(())
}

/// The tenants and their destinations; the ids of the tenants.
pub async fn populate(
    conn: &mut store::Connection,
    participants: &[Participant],
    receivers: &Receivers,
) -> Result<Vec<OrgId>, Failure> {
    let mut organizations = Vec::new();
    for name in ORGANIZATIONS {
        organizations.push(store::demo::insert_organization(conn, name).await?);
    }
    for (index, participant) in participants.iter().enumerate() {
        let row = participant.row(organizations[participant.org], receivers.url(index));
        store::demo::insert_destination(conn, &row).await?;
    }
    Ok(organizations)
}
