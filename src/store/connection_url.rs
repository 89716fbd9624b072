//! The URL of the database: what libpq understands works, or is refused with the form to use instead.

use std::path::Path;
use std::str::FromStr as _;

use sqlx::postgres::PgConnectOptions;
use url::Url;

use super::StoreError;

/// How a URL looks that works everywhere.
const FORM: &str = "it should look like postgres://user@host:5432/database";

/// Where distributions have the server's socket.
const SOCKET_DIRECTORIES: [&str; 3] = ["/run/postgresql", "/var/run/postgresql", "/tmp"];

/// Parameters of libpq that nothing here obeys, the values with which that makes no difference, and what to
/// do instead. What else is not known is left out, as other drivers have parameters of their own.
const NOT_OBEYED: [(&str, &[&str], &str); 15] = [
    ("service", &[], "write the host, the user and the database of the service into the URL"),
    ("passfile", &[], "PGPASSFILE names such a file"),
    ("target_session_attrs", &["any"], "name the host of the primary, or a name that follows it"),
    ("load_balance_hosts", &["disable"], "name one host"),
    ("channel_binding", &["prefer", "disable"], "sslmode=verify-full makes sure of the server"),
    ("require_auth", &[], "sslmode=verify-full makes sure of the server"),
    ("gssencmode", &["prefer", "disable"], "sslmode=require encrypts"),
    ("sslnegotiation", &["postgres"], "leave it out: TLS begins with PostgreSQL's own question"),
    ("sslcertmode", &["allow"], "leave it out: a certificate is shown where there is one"),
    ("sslcrl", &[], "leave it out: revocation lists are not read"),
    ("sslcrldir", &[], "leave it out: revocation lists are not read"),
    ("sslpassword", &[], "give sslkey a key that is not encrypted"),
    ("ssl_min_protocol_version", &["TLSv1", "TLSv1.1", "TLSv1.2"], "leave it out: TLS is 1.2 or 1.3"),
    ("ssl_max_protocol_version", &["TLSv1.3"], "leave it out: TLS is 1.2 or 1.3"),
    ("replication", &["false", "off", "no", "0"], "leave it out"),
];

/// Reads `text` for sqlx, which takes what is missing from the variables of libpq.
pub(super) fn read(text: &str) -> Result<PgConnectOptions, StoreError> {
    let url = normal(text)?;
    for (name, value) in url.query_pairs() {
        let found = NOT_OBEYED.iter().find(|(refused, ..)| *refused == name);
        if let Some((name, harmless, instead)) = found
            && !harmless.contains(&&*value)
        {
            return Err(StoreError::Url(format!("the parameter {name} is not obeyed: {instead}")));
        }
    }
    let names_host = url.host_str().is_some_and(|host| !host.is_empty())
        || url.query_pairs().any(|(name, _)| name == "host" || name == "hostaddr");
    if !names_host && std::env::var_os("PGSERVICE").is_some_and(|service| !service.is_empty()) {
        let why =
            "PGSERVICE is not read: write the host, the user and the database of the service into the URL";
        return Err(StoreError::Url(why.into()));
    }
    let options = PgConnectOptions::from_str(url.as_str())
        .map_err(|error| StoreError::Url(format!("{error}; {FORM}")))?;
    // An empty variable of libpq is none.
    let options = match options.get_database() {
        Some("") => {
            let user = options.get_username().to_owned();
            options.database(&user)
        }
        _ => options,
    };
    let host = options.get_host().to_owned();
    if host.contains(',') {
        return Err(several_hosts());
    }
    if options.get_socket().is_some() {
        return Ok(options);
    }
    Ok(match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => options.host(address),
        // There libpq looks for a socket.
        None if host.is_empty() => {
            let host = default_host(options.get_port());
            options.host(host)
        }
        None => options,
    })
}

/// `text` as a URL by everybody's rules: libpq allows a user without a host, and a port without one.
pub(super) fn normal(text: &str) -> Result<Url, StoreError> {
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    if !["postgres", "postgresql"].contains(&scheme) {
        return Err(StoreError::Url(FORM.into()));
    }
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, place) = authority.rsplit_once('@').unwrap_or(("", authority));
    if place.contains(',') {
        return Err(several_hosts());
    }
    let parsed = match place.strip_prefix(':').or_else(|| place.is_empty().then_some("")) {
        Some(port) if !authority.is_empty() => Url::parse(&without_host(scheme, user, port, rest)),
        _ => Url::parse(text),
    };
    parsed.map_err(|error| StoreError::Url(format!("{error}; {FORM}")))
}

/// The same with its user, password and port as parameters.
fn without_host(scheme: &str, user: &str, port: &str, rest: &str) -> String {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let literal = |text: &str| text.replace('+', "%2B").replace('&', "%26");
    let mut url = format!("{scheme}://{}?", if path.is_empty() { "/" } else { path });
    for (name, value) in [("user", literal(user)), ("password", literal(password)), ("port", port.into())] {
        if !value.is_empty() {
            url.push_str(&format!("{name}={value}&"));
        }
    }
    url.push_str(query);
    url
}

fn several_hosts() -> StoreError {
    let why = "several hosts are not tried in turn: write one host, that of the primary or a name that \
               follows it";
    StoreError::Url(why.into())
}

fn default_host(port: u16) -> &'static str {
    let has_socket = |directory: &&&str| Path::new(directory).join(format!(".s.PGSQL.{port}")).exists();
    SOCKET_DIRECTORIES.iter().find(has_socket).copied().unwrap_or("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libpq_understands_is_read_as_libpq_reads_it() {
        for (url, host, port, user, database) in [
            ("postgres://u@[::1]/db", "::1", 5432, "u", Some("db")),
            ("postgres://u@[::1]:7/db", "::1", 7, "u", Some("db")),
            ("postgresql://u@example.com:7", "example.com", 7, "u", None),
            ("postgres://u:p%40@/db?host=example.com", "example.com", 5432, "u", Some("db")),
            ("postgres://u%2Bv:p+q&r@:7/db?host=h&hostaddr=10.0.0.1", "10.0.0.1", 7, "u+v", Some("db")),
            ("postgres://:7/db?user=u&host=h", "h", 7, "u", Some("db")),
            ("postgres:///db?user=u&host=h&port=7&target_session_attrs=any", "h", 7, "u", Some("db")),
            ("postgres://u@h/db?schema=public&connection_limit=5", "h", 5432, "u", Some("db")),
        ] {
            let read = read(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            let found = (read.get_host(), read.get_port(), read.get_username(), read.get_database());
            assert_eq!(found, (host, port, user, database), "{url}");
        }
        let socket = read("postgres://u@/db?host=/run/pg&port=7").expect("a socket");
        assert_eq!(
            (socket.get_socket().and_then(|path| path.to_str()), socket.get_port()),
            (Some("/run/pg"), 7)
        );
    }

    #[test]
    fn what_is_not_obeyed_is_refused_and_repeats_no_password() {
        for (url, told) in [
            ("postgres://u:hunter2@h1:1,h2:2/db", "write one host"),
            ("postgres://u:hunter2@/db?host=h1,h2", "write one host"),
            ("postgres://u:hunter2@h/db?service=hunter2", "service"),
            ("postgres://u:hunter2@h/db?require_auth=scram-sha-256", "require_auth"),
            ("postgres://u:hunter2@h/db?sslpassword=hunter2", "sslpassword"),
            ("postgres://u:hunter2@h:99999/db", FORM),
            ("jdbc:postgresql://h/db?password=hunter2", FORM),
            ("postgresql+asyncpg://u:hunter2@h/db", FORM),
            ("host=h password=hunter2", FORM),
            ("", FORM),
        ] {
            let error = read(url).expect_err(url).to_string();
            assert!(error.contains(told) && !error.contains("hunter2"), "{url}: {error}");
        }
    }
}
