//! The HTTP server: is the process alive (`/healthz`), can it do its work (`/readyz`), what does it do
//! (`/metrics`); and the API by which people manage it (`/api`).

pub mod api;
pub mod metrics;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use actix_web::dev::{Server, ServerHandle};
use actix_web::{App, HttpResponse, HttpServer, get, web};
use serde::Serialize;

use self::metrics::Measure;
use crate::actors::{Dispatcher, Readiness};
use crate::manage::keys::Uses;
use crate::model::Secret;
use crate::store::{self, Pool};

/// Seconds that open connections get when the server stops.
const STOP_SECONDS: u64 = 1;
/// Connections to the database that requests to the API share; opened when they are needed.
const POOL_CONNECTIONS: u32 = 4;
/// Connections to the server: those beyond wait.
const MAX_CONNECTIONS: usize = 512;

/// What the server knows: the dispatcher, once there is one, and until then why there is none.
#[derive(Clone)]
pub struct State {
    dispatcher: Arc<Mutex<Result<(Dispatcher, Pool), String>>>,
    admin_token: Option<Secret>,
    key_uses: Arc<Uses>,
}

impl State {
    /// Without a dispatcher yet, because of `why`. Who has `admin_token` may do everything.
    pub fn starting(why: &str, admin_token: Option<Secret>) -> State {
        let dispatcher = Arc::new(Mutex::new(Err(why.to_owned())));
        State { dispatcher, admin_token, key_uses: Arc::default() }
    }

    /// From now on there is one, or another reason why there is none.
    pub fn set(&self, state: Result<Dispatcher, String>) {
        let with_pool = |dispatcher: Dispatcher| {
            let pool = store::pool(store::indexed(dispatcher.options.clone()), POOL_CONNECTIONS);
            (dispatcher, pool)
        };
        *self.dispatcher.lock().unwrap_or_else(PoisonError::into_inner) = state.map(with_pool);
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

#[get("/readyz")]
async fn readyz(state: web::Data<State>) -> HttpResponse {
    let readiness = match state.get() {
        Ok(dispatcher) => dispatcher.readiness().await,
        Err(why) => Readiness { problems: vec![why], ..Readiness::default() },
    };
    let ready = readiness.problems.is_empty();
    let mut response = if ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    let body = serde_json::to_string(&Report { ready, readiness }).unwrap_or_default();
    response.content_type("application/json").body(body)
}

/// Opens the port and starts to answer; returns where, and how to stop.
///
/// # Errors
/// When the address cannot be listened on.
pub fn start(
    listen: SocketAddr,
    pages: Pages,
    state: State,
) -> std::io::Result<(Vec<SocketAddr>, ServerHandle)> {
    let measure = web::Data::new(Measure::default());
    let server = HttpServer::new(move || {
        let app = App::new().app_data(web::Data::new(state.clone())).app_data(measure.clone());
        app.configure(|app| {
            if pages != Pages::Others {
                app.service(healthz).service(readyz).service(metrics::metrics);
            }
            if pages != Pages::Operations {
                app.configure(api::configure);
            }
        })
    })
    .workers(1)
    .max_connections(MAX_CONNECTIONS)
    .shutdown_timeout(STOP_SECONDS)
    // Signals have one owner: the command that serves.
    .disable_signals()
    .bind(listen)?;
    let addresses = server.addrs();
    let server: Server = server.run();
    let handle = server.handle();
    actix_rt::spawn(server);
    Ok((addresses, handle))
}
