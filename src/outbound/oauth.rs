//! The tokens of one destination with `auth_type` `oauth2`: asked for once for all requests that wait, kept
//! until shortly before they expire, replaced when the receiver refuses one.
//!
//! Token requests take the same way out as all others: looked up, vetted, pinned (see [`super::connector`]).
//! A token server that fails is the destination's failure, as nothing can be delivered without it.

use std::rc::Rc;
use std::time::{Duration, Instant};

use actix_http::header::HeaderMap;
use bytes::Bytes;

use super::answer::{self, READ_BODY_BYTES};
use super::client_credentials::{self, ClientCredentials, Token};
use super::connector::Dialer;
use super::explain::Failure;
use super::network::Network;
use super::phase::Progress;
use super::pool::{KEEP_ALIVE, Pool};
use super::redact::Redactor;
use super::single_flight::{self, SingleFlight};
use super::target::Target;
use crate::clock;
use crate::model::Answer;

type Obtained = Result<Rc<Token>, Answer>;

/// Where a destination's tokens come from, and the present one.
pub(super) struct Tokens {
    pool: Rc<Pool>,
    form: Bytes,
    redactor: Rc<Redactor>,
    timeout: Duration,
    flight: SingleFlight<Obtained>,
    /// Of the request that is under way.
    progress: Progress,
}

impl Tokens {
    /// Tokens by `credentials`. The messages of failures are without what `redactor` knows.
    pub(super) fn new(
        credentials: ClientCredentials,
        network: &Network,
        target: &Target,
        redactor: Rc<Redactor>,
    ) -> Tokens {
        let timeout = target.timeout;
        let ClientCredentials { endpoint, headers, body, .. } = credentials;
        let uri = endpoint.uri.clone();
        let dialer = Dialer::new(endpoint, network, target.org, timeout);
        Tokens {
            pool: Pool::new(dialer, uri, headers, KEEP_ALIVE),
            form: body,
            redactor,
            timeout,
            flight: SingleFlight::default(),
            progress: Progress::default(),
        }
    }

    /// A token that is good, other than the one that was `refused`, before `deadline`.
    ///
    /// # Errors
    /// What the attempt came to that needed it.
    pub(super) async fn get(
        &self,
        refused: Option<&Rc<Token>>,
        deadline: tokio::time::Instant,
    ) -> Result<Rc<Token>, Answer> {
        let is_usable = |answer: single_flight::Answer<'_, Obtained>| match answer.value {
            Ok(token) if refused.is_some_and(|refused| Rc::ptr_eq(token, refused)) => false,
            Ok(token) => token.use_until > clock::now(),
            // The failure of a request that is over says nothing of the next one.
            Err(_) => answer.is_awaited,
        };
        let start = || {
            let (pool, form, redactor) = (self.pool.clone(), self.form.clone(), self.redactor.clone());
            ask(pool, form, redactor, self.progress.clone(), self.timeout)
        };
        let waiting = self.flight.get(is_usable, start, stopped);
        let obtained = tokio::time::timeout_at(deadline, waiting).await;
        obtained.unwrap_or_else(|_| Err(failed(&self.progress.phase().timed_out(self.timeout))))
    }
}

async fn ask(
    pool: Rc<Pool>,
    form: Bytes,
    redactor: Rc<Redactor>,
    progress: Progress,
    timeout: Duration,
) -> Obtained {
    let asked = clock::now();
    let deadline = tokio::time::Instant::from_std(asked + timeout);
    let exchange = progress.track(exchange(&pool, form, asked, timeout));
    let obtained = tokio::time::timeout_at(deadline, exchange).await;
    // The next token is a long time away.
    pool.clear();
    match obtained {
        Ok(Ok(token)) => Ok(Rc::new(token)),
        Ok(Err(Failure::Ours(message))) => Err(Answer::OurFault(message)),
        // Some errors quote what came, and this server was sent a secret.
        Ok(Err(failure)) => Err(failed(&redactor.redact(failure.to_string()))),
        Err(_) => Err(failed(&progress.phase().timed_out(timeout))),
    }
}

async fn exchange(pool: &Pool, form: Bytes, asked: Instant, timeout: Duration) -> Result<Token, Failure> {
    let deadline = tokio::time::Instant::from_std(asked + timeout);
    let mut response = pool.send_fresh(HeaderMap::new(), form).await?;
    let body = answer::body(&mut response, READ_BODY_BYTES, deadline, timeout).await;
    if let Some(broken) = body.broken {
        return Err(Failure::Theirs(broken));
    }
    if body.seen > READ_BODY_BYTES {
        return Err(Failure::Theirs("the token server's answer is larger than 64 KiB".into()));
    }
    client_credentials::token(response.status(), &body.kept, asked, clock::now()).map_err(Failure::Theirs)
}

fn failed(why: &str) -> Answer {
    Answer::Failed(format!("the token request failed: {why}"))
}

fn stopped() -> Obtained {
    Err(Answer::OurFault("the token request was stopped: this process is shutting down".into()))
}
