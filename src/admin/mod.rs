//! The HTTP server: is the process alive (`/healthz`), can it do its work (`/readyz`), what does it do
//! (`/metrics`); and the API by which people manage it (`/api`).

pub mod api;
mod limits;
pub mod metrics;
mod middleware;
mod server;
#[cfg(test)]
mod tests;
mod troubles;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::middleware::from_fn;
use actix_web::{App, HttpRequest, HttpResponse, get, web};
use ipnet::IpNet;
use serde::Serialize;

use self::limits::{Budget, FairSemaphore};
use self::metrics::Measure;
use self::server::ConnectionLimits;
pub use self::server::ServerHandle;
use self::troubles::Troubles;
use crate::actors::supervision::Supervision;
use crate::actors::{Dispatcher, Readiness};
use crate::clock;
use crate::config::Config;
use crate::manage::keys::{Directory, Uses};
use crate::model::Secret;
use crate::store::{self, Pool};

/// Connections to the database that requests to the API share; opened when they are needed.
const POOL_CONNECTIONS: u32 = 8;
/// Of these, what one organization may use at once.
const POOL_CONNECTIONS_EACH: u64 = 4;
/// Tests of destinations that run at once, in all and of one organization: each may take as long as a
/// request.
const MAX_TESTS: u64 = 64;
const MAX_TESTS_EACH: u64 = 4;
/// Bytes of pages that wait to be taken: six times the largest, which is the browser of the API's document.
const MAX_PUBLIC_BYTES: u64 = 8 << 20;
/// Of all connections to the server, one address may have half.
const ADDRESS_PART: usize = 2;
/// And one key an eighth; as many from one address may be busy.
const CLIENT_PART: usize = 8;
/// How old the answer of `/readyz` may be.
const READINESS_LIFETIME: Duration = Duration::from_millis(250);

/// What the server knows: the dispatcher, once there is one, and until then why there is none.
#[derive(Clone)]
pub struct State {
    dispatcher: Arc<Mutex<Result<(Dispatcher, Pool), String>>>,
    admin_token: Option<Secret>,
    trusted_proxies: Arc<Vec<IpNet>>,
    max_connections: usize,
    keys: Arc<Directory>,
    key_uses: Arc<Uses>,
    failed_tokens: Arc<api::FailedTokens>,
    statements: FairSemaphore,
    tests: FairSemaphore,
    budget: Budget,
    /// Of answers to whoever has not said who they are: pages.
    public_budget: Budget,
    readiness: SharedReadiness,
    troubles: Troubles,
    supervision: Supervision,
}

/// The readiness that was found last, and when that began: however many ask, one asks the database.
#[derive(Clone, Default)]
struct SharedReadiness(Arc<tokio::sync::Mutex<Option<(Instant, Readiness)>>>);

impl SharedReadiness {
    async fn of(&self, dispatcher: &Dispatcher) -> Readiness {
        let arrived = clock::now();
        let mut last = self.0.lock().await;
        if let Some((began, readiness)) = last.as_ref()
            && arrived < *began + READINESS_LIFETIME
        {
            return readiness.clone();
        }
        let began = clock::now();
        let readiness = dispatcher.readiness().await;
        *last = Some((began, readiness.clone()));
        readiness
    }
}

impl State {
    /// Without a dispatcher yet, because of `why`.
    pub fn starting(why: &str, config: &Config, supervision: Supervision) -> State {
        State {
            dispatcher: Arc::new(Mutex::new(Err(why.to_owned()))),
            admin_token: config.operations.admin_token.clone(),
            trusted_proxies: Arc::new(config.operations.trusted_proxies.clone()),
            max_connections: config.operations.max_connections,
            keys: Arc::default(),
            key_uses: Arc::default(),
            failed_tokens: Arc::default(),
            statements: FairSemaphore::new(POOL_CONNECTIONS.into(), POOL_CONNECTIONS_EACH),
            tests: FairSemaphore::new(MAX_TESTS, MAX_TESTS_EACH),
            budget: Budget::new(config.operations.max_api_bytes),
            public_budget: Budget::new(MAX_PUBLIC_BYTES),
            readiness: SharedReadiness::default(),
            troubles: Troubles::default(),
            supervision,
        }
    }

    /// From now on there is one, or another reason why there is none.
    pub fn set(&self, state: Result<Dispatcher, String>) {
        let with_pool = |dispatcher: Dispatcher| {
            let pool = store::pool(store::indexed(dispatcher.options.clone()), POOL_CONNECTIONS);
            (dispatcher, pool)
        };
        let is_there = state.is_ok();
        *self.dispatcher.lock().unwrap_or_else(PoisonError::into_inner) = state.map(with_pool);
        if is_there && self.admin_token.is_none() {
            // Whether there is a key is then known before anybody asks.
            self.look_for_keys();
        }
    }

    fn get(&self) -> Result<Dispatcher, String> {
        self.now().map(|(dispatcher, _)| dispatcher)
    }

    fn pool(&self) -> Result<Pool, String> {
        self.now().map(|(_, pool)| pool)
    }

    fn admin_token(&self) -> Option<&Secret> {
        self.admin_token.as_ref()
    }

    fn now(&self) -> Result<(Dispatcher, Pool), String> {
        self.dispatcher.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whose request it is, by address: what the last proxy that we do not trust was told, or is.
    fn address(&self, request: &HttpRequest) -> Option<IpAddr> {
        let mut address = request.peer_addr()?.ip().to_canonical();
        let is_trusted = |ip: &IpAddr| self.trusted_proxies.iter().any(|network| network.contains(ip));
        let named = request.headers().get_all("x-forwarded-for").filter_map(|value| value.to_str().ok());
        let named: Vec<&str> = named.flat_map(|value| value.split(',')).map(str::trim).collect();
        // Each entry was written by whoever stands to its right, and is worth as much as that one is.
        for entry in named.into_iter().rev() {
            if !is_trusted(&address) {
                break;
            }
            let Some(ip) = forwarded(entry) else { break };
            address = ip.to_canonical();
        }
        Some(address)
    }
}

/// An entry of `X-Forwarded-For`: some proxies add the port.
fn forwarded(entry: &str) -> Option<IpAddr> {
    let bare = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    bare.parse().ok().or_else(|| entry.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// What a server answers: there may be one for health and metrics, and one for everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Everything.
    All,
    /// Health and metrics.
    Operations,
    /// Everything but health and metrics.
    Others,
}

/// The body of `/readyz`.
#[derive(Serialize)]
struct Report {
    ready: bool,
    #[serde(flatten)]
    readiness: Readiness,
}

#[get("/healthz")]
async fn healthz() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; charset=utf-8").body("ok\n")
}

/// Whether everybody who can reach this server may see what the process does.
#[derive(Clone, Copy)]
struct IsOpen(bool);

/// The body of `/readyz` for whoever may not know more.
#[derive(Serialize)]
struct Brief {
    ready: bool,
}

#[get("/readyz")]
async fn readyz(request: HttpRequest, state: web::Data<State>, is_open: web::Data<IsOpen>) -> HttpResponse {
    let readiness = match state.get() {
        Ok(dispatcher) => {
            let mut readiness = state.readiness.of(&dispatcher).await;
            if readiness.database_up {
                readiness.warnings.extend(state.troubles.look(dispatcher.pool.clone()).await);
            }
            readiness
        }
        Err(why) => Readiness { problems: vec![why], ..Readiness::default() },
    };
    let ready = readiness.problems.is_empty();
    let mut response = if ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    // Who says a wrong token learns no more than others, and is counted.
    let body = match is_open.0 || api::is_operator(&state, &request).unwrap_or(false) {
        true => serde_json::to_string(&Report { ready, readiness }),
        false => serde_json::to_string(&Brief { ready }),
    };
    response.content_type("application/json").body(body.unwrap_or_default())
}

/// Opens the port and starts to answer; returns where, and how to stop.
///
/// # Errors
/// When the address cannot be listened on.
pub fn start(listen: SocketAddr, pages: Pages, state: State) -> std::io::Result<(SocketAddr, ServerHandle)> {
    let places = ConnectionLimits {
        total: state.max_connections,
        per_address: state.max_connections.div_ceil(ADDRESS_PART),
        per_client: state.max_connections.div_ceil(CLIENT_PART),
        proxies: state.trusted_proxies.to_vec(),
    };
    let supervision = state.supervision.clone();
    // A listener of its own is where the operator wants them to be seen.
    let is_open = IsOpen(pages == Pages::Operations || listen.ip().is_loopback());
    let app = move || {
        App::new()
            .app_data(web::Data::new(state))
            .app_data(web::Data::new(Measure::default()))
            .app_data(web::Data::new(is_open))
            .configure(|app| {
                if pages != Pages::Others {
                    app.service(healthz).service(readyz).service(metrics::metrics);
                }
                if pages != Pages::Operations {
                    app.configure(api::configure);
                }
                #[cfg(test)]
                app.service(tests::panicking);
            })
            .wrap(from_fn(middleware::contain_panics))
            .wrap(from_fn(middleware::admission))
            .wrap(from_fn(middleware::security_headers))
            .wrap(from_fn(middleware::spelling))
    };
    server::start(listen, places, supervision, app, |error| {
        middleware::with_security_headers(error.error_response(), middleware::POLICY)
    })
}
