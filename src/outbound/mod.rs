//! The only HTTP client: one attempt in, one [`Attempt`] out. It decides nothing and never retries, with two
//! exceptions: a kept-alive connection that turns out to be dead is replaced at once (see
//! `tracked_stream.rs`), and an OAuth2 token that the receiver refuses is replaced once (see `oauth.rs`).
//!
//! ```text
//!  Destination ──compile──▶ Target ──▶ Sender ──attempt──▶ headers, body, signature
//!                 │                      │
//!                 ▼                      ▼
//!               Fault      (oauth ─▶)  pool ─▶ connector ─▶ lookup ─▶ egress rules ─▶ TCP ─▶ TLS ─▶ stream
//! ```
//!
//! [`Network`] is shared by the whole process, a [`Target`] is one destination as checked, a [`Sender`]
//! belongs to one destination's actor and owns its connections, so no destination can use up those of
//! another. Every text of an attempt that may quote a receiver has passed `redact.rs`, which knows the
//! destination's secrets.

mod answer;
mod auth;
mod auth_config;
mod body;
mod client_credentials;
mod connector;
mod endpoint;
mod explain;
mod fault;
mod fd_exhaustion;
mod header_rules;
mod headers;
mod lookup;
mod network;
mod oauth;
mod own_certificates;
mod phase;
mod pool;
mod redact;
mod response_head_filter;
mod single_flight;
mod target;
mod tls_words;
mod tracked_stream;

use std::cell::{Ref, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_http::header::HeaderValue;
use bytes::Bytes;

use self::client_credentials::Token;
use self::connector::Dialer;
use self::explain::Failure;
use self::oauth::Tokens;
use self::phase::Progress;
use self::pool::{KEEP_ALIVE, Pool};
use self::redact::Redactor;
use crate::clock;
use crate::model::{Answer, Attempt, DbTime, Delivery};

pub use self::answer::{KEPT_BODY_BYTES, READ_BODY_BYTES};
pub use self::fault::Fault;
pub use self::network::{Network, NetworkError};
pub use self::target::Target;
pub use self::tracked_stream::open_connections;

/// A failure that is noticed so long after the deadline was not noticed in time: this process was stopped, or
/// had no processor.
const LATE: Duration = Duration::from_secs(1);
/// Tokens of one destination that no answer may show.
const REMEMBERED_TOKENS: usize = 4;

/// One request to be made.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What it carries: one delivery, or several when `batch` is true.
    pub deliveries: &'a [Delivery],
    /// Whether the body is a batch, even around a single event.
    pub batch: bool,
    /// 1-based: charged attempts so far plus one. Goes into `posthaste-attempt` of single events.
    pub attempt_number: u32,
    /// Now, by the database's clock.
    pub started_at: DbTime,
}

/// Makes the requests of one destination, over its own connections. Not `Send`: it lives where its actor
/// lives.
///
/// Idle it is small: an HTTP client is made with the first request, and dropped with its connections when
/// nothing was sent for a while.
pub struct Sender {
    target: Target,
    redactor: Rc<Redactor>,
    pool: Rc<Pool>,
    tokens: Option<Tokens>,
    /// What the last tokens were: a receiver may repeat an earlier one, which may still be good.
    shown: RefCell<VecDeque<HeaderValue>>,
}

impl Sender {
    /// A sender for `target`. Costs no connection yet.
    pub fn new(mut target: Target, network: &Arc<Network>) -> Sender {
        let dialer = Dialer::new(target.endpoint.clone(), network, target.org, target.timeout);
        let redactor = Rc::new(std::mem::take(&mut target.redactor));
        let pool =
            Pool::new(dialer, target.endpoint.uri.clone(), std::mem::take(&mut target.headers), KEEP_ALIVE);
        let credentials = target.credentials.take();
        let tokens =
            credentials.map(|credentials| Tokens::new(*credentials, network, &target, redactor.clone()));
        Sender { target, redactor, pool, tokens, shown: RefCell::default() }
    }

    /// The target it was made of.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Makes one request and says what came of it. Never takes longer than the destination's timeout, and may
    /// be dropped at any time.
    pub async fn attempt(&self, request: Request<'_>) -> Attempt {
        let began = clock::now();
        let answer = self.exchange(request, began).await;
        let duration = clock::now().saturating_duration_since(began);
        let answer = if duration > self.target.timeout + LATE { late(answer, duration) } else { answer };
        Attempt { started_at: request.started_at, duration, answer }
    }

    async fn exchange(&self, request: Request<'_>, began: Instant) -> Answer {
        let deadline = tokio::time::Instant::from_std(began + self.target.timeout);
        let _in_flight = self.pool.enter();
        let events = request.deliveries.iter().map(|delivery| &*delivery.event);
        let body = self.target.format.body(request.batch, events);
        let Some(tokens) = &self.tokens else { return self.ask(request, &body, None, deadline).await };

        let token = match tokens.get(None, deadline).await {
            Ok(token) => token,
            Err(answer) => return answer,
        };
        let answer = self.ask(request, &body, Some(&token), deadline).await;
        // A token may be revoked before its time. One that came a moment ago is not what is wrong.
        if !matches!(answer, Answer::Response { status: 401, .. }) || token.obtained >= began {
            return answer;
        }
        match tokens.get(Some(&token), deadline).await {
            Ok(token) => self.ask(request, &body, Some(&token), deadline).await,
            Err(answer) => answer,
        }
    }

    /// One request, and its answer with the body.
    async fn ask(
        &self,
        request: Request<'_>,
        body: &Bytes,
        token: Option<&Token>,
        deadline: tokio::time::Instant,
    ) -> Answer {
        let redactor = match token {
            Some(token) => &self.redactor.with_headers(self.remember(token).iter()),
            None => &*self.redactor,
        };
        let progress = Progress::default();
        let sent = progress.track(self.send(request, body, token));
        let head = match tokio::time::timeout_at(deadline, sent).await {
            Err(_) => return timed_out(&progress, self.target.timeout),
            Ok(Err(Failure::Ours(message))) => return Answer::OurFault(message),
            // Some errors quote what came.
            Ok(Err(failure)) => return Answer::Failed(redactor.redact(failure.to_string())),
            Ok(Ok(head)) => head,
        };
        if head.status().is_informational() {
            // 101 to a request that did not ask for it, or interim answers without end: whatever follows on
            // that connection must not be taken for the next request's answer.
            self.pool.clear();
            let status = head.status().as_u16();
            return Answer::Failed(format!("the receiver answered with the interim status {status}"));
        }
        answer::read(head, deadline, self.target.timeout, redactor).await
    }

    /// The headers of the last tokens, with this one.
    fn remember(&self, token: &Token) -> Ref<'_, VecDeque<HeaderValue>> {
        let is_known = self.shown.borrow().contains(&token.header);
        if !is_known {
            let mut shown = self.shown.borrow_mut();
            shown.truncate(REMEMBERED_TOKENS - 1);
            shown.push_front(token.header.clone());
        }
        self.shown.borrow()
    }

    async fn send(
        &self,
        request: Request<'_>,
        body: &Bytes,
        token: Option<&Token>,
    ) -> Result<awc::ClientResponse, Failure> {
        let headers = || headers::of_request(&self.target, request, token, body);
        match self.pool.send(headers(), body.clone()).await {
            Err(Failure::Stale) => self.pool.send_fresh(headers(), body.clone()).await,
            sent => sent,
        }
    }
}

/// What came of a request whose time is over. Who accepts a request before it is written has accepted it.
fn timed_out(progress: &Progress, timeout: Duration) -> Answer {
    let why = progress.phase().timed_out(timeout);
    match progress.accepted() {
        None => Answer::Failed(why),
        Some(status) => {
            Answer::Response { status, body: String::new(), retry_after: None, broken: Some(why) }
        }
    }
}

/// What came of a request whose time was over long before this process looked: the receiver may have answered
/// to somebody who was not there. A status that was read is an answer, whenever that was.
fn late(answer: Answer, duration: Duration) -> Answer {
    match answer {
        Answer::Failed(why) => Answer::OurFault(format!(
            "this process was stopped, or had no processor: a request ended only after {} ms ({why})",
            duration.as_millis()
        )),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noticed_late_is_our_fault_unless_a_status_came() {
        let duration = Duration::from_secs(60);
        assert!(matches!(late(Answer::Failed("timed out".into()), duration), Answer::OurFault(_)));
        for status in [200, 400] {
            let (body, broken) = (String::new(), Some("timed out".into()));
            let answer = Answer::Response { status, body, retry_after: None, broken };
            assert_eq!(late(answer.clone(), duration), answer);
        }
    }
}
