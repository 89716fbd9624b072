//! The HTTP server: is the process alive (`/healthz`), can it do its work (`/readyz`), what does it do
//! (`/metrics`).

pub mod metrics;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use actix_web::dev::{Server, ServerHandle};
use actix_web::{App, HttpResponse, HttpServer, get, web};
use serde::Serialize;

use self::metrics::Measure;
use crate::actors::{Dispatcher, Readiness};

/// Seconds that open connections get when the server stops.
const STOP_SECONDS: u64 = 1;

/// What the server knows: the dispatcher, once there is one, and until then why there is none.
#[derive(Clone)]
pub struct State(Arc<Mutex<Result<Dispatcher, String>>>);

impl State {
    /// Without a dispatcher yet, because of `why`.
    pub fn starting(why: &str) -> State {
        State(Arc::new(Mutex::new(Err(why.to_owned()))))
    }

    /// From now on there is one, or another reason why there is none.
    pub fn set(&self, state: Result<Dispatcher, String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn get(&self) -> Result<Dispatcher, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        })
    })
    .workers(1)
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
