//! Where Posthaste may connect to: public unicast addresses, and whatever `POSTHASTE_ALLOW_NETWORKS` opens.
//!
//! [`Rules::check_url`] judges what can be known from the text of a URL. [`Rules::check_port`],
//! [`Rules::check_addr`] and [`Rules::check_resolved`] judge what is about to be connected to, whatever name
//! led there. Only these protect: a name may resolve to anything, at any time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use url::{Host, Url};

/// Longest URL in bytes: most receivers take no longer request line.
pub const MAX_URL_BYTES: usize = 8 * 1024;

/// Longest name of a host, and longest part of it between two dots (RFC 1035).
const MAX_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

/// The egress rules of this process.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Networks that are opened on purpose. An IPv4 network opens its IPv4-mapped form as well.
    pub allow: Vec<IpNet>,
    /// Ports that are opened on purpose.
    pub allow_ports: Vec<u16>,
    /// Whether `http` is refused.
    pub https_only: bool,
}

/// Which rule refused an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rule {
    /// This machine.
    #[error("loopback")]
    Loopback,
    /// RFC 1918.
    #[error("private network")]
    Private,
    /// This link; cloud metadata services live here.
    #[error("link-local")]
    LinkLocal,
    /// RFC 6598, the inside of a provider's network.
    #[error("carrier-grade NAT")]
    CarrierGradeNat,
    /// RFC 4193, private networks of IPv6.
    #[error("unique-local")]
    UniqueLocal,
    /// What unique-local replaced.
    #[error("site-local")]
    SiteLocal,
    /// No single receiver.
    #[error("multicast")]
    Multicast,
    /// No address at all; systems take it for their own.
    #[error("unspecified")]
    Unspecified,
    /// Everybody on the link.
    #[error("broadcast")]
    Broadcast,
    /// Only for texts.
    #[error("documentation")]
    Documentation,
    /// Only for measurements.
    #[error("benchmarking")]
    Benchmarking,
    /// Looks public, but leads to services that a cloud platform has for its own machines.
    #[error("cloud platform")]
    CloudPlatform,
    /// Not (or no longer) assigned as public unicast.
    #[error("reserved")]
    Reserved,
}

/// Why a URL or an address is not connected to. Tenants read it: it repeats no part of a URL that could hold
/// a secret, and no address but one that stands in the URL, as where a name leads is none of their business.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The text is no URL.
    #[error("the URL cannot be used: {0}; it should look like https://example.com/path")]
    Malformed(String),
    /// Neither `http` nor `https`.
    #[error("the URL's scheme {0:?} is refused: only http and https")]
    Scheme(String),
    /// `http` although only `https` is wanted.
    #[error("http is refused: POSTHASTE_HTTPS_ONLY is set, use https")]
    HttpsOnly,
    /// `https://user:password@host/`.
    #[error("user name and password in the URL are refused: use auth_type basic")]
    Userinfo,
    /// A port of services that speak no HTTP.
    #[error("port {port} is refused: {service} (POSTHASTE_ALLOW_PORTS opens ports on purpose)")]
    Port {
        /// The port.
        port: u16,
        /// What usually listens there.
        service: &'static str,
    },
    /// A literal address that a rule forbids; `via` tells the IPv4 address inside it that the rule is about.
    #[error(
        "address {addr} is refused: {rule}{} (POSTHASTE_ALLOW_NETWORKS opens networks on purpose)",
        via(.embedded)
    )]
    Address {
        /// The address.
        addr: IpAddr,
        /// The rule.
        rule: Rule,
        /// The IPv4 address embedded in it, when the rule is about that one.
        embedded: Option<Ipv4Addr>,
    },
    /// A name that never leads anywhere else than to this machine.
    #[error("host {0:?} is refused: loopback (POSTHASTE_ALLOW_NETWORKS opens networks on purpose)")]
    LocalName(String),
    /// A name that led to an address that a rule forbids.
    #[error(
        "host {host} is refused: it leads to {} {rule} address (POSTHASTE_ALLOW_NETWORKS opens networks on \
         purpose)",
        article(.rule)
    )]
    Name {
        /// The name.
        host: String,
        /// The rule.
        rule: Rule,
    },
}

fn article(rule: &Rule) -> &'static str {
    if *rule == Rule::Unspecified { "an" } else { "a" }
}

fn via(embedded: &Option<Ipv4Addr>) -> String {
    embedded.map(|v4| format!(", as it embeds {v4}")).unwrap_or_default()
}

/// Whether the text of a URL has something before an `@` in front of its host.
fn has_userinfo(text: &str) -> bool {
    let (_, rest) = text.split_once(':').unwrap_or_default();
    let authority = rest.trim_start_matches(['/', '\\']);
    let end = authority.find(['/', '\\', '?', '#']).unwrap_or(authority.len());
    authority[..end].contains('@')
}

/// Whether the resolver can be asked for `host`, which may end in a dot.
fn is_name(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    name.len() <= MAX_NAME_BYTES && name.split('.').all(|label| (1..=MAX_LABEL_BYTES).contains(&label.len()))
}

impl Rules {
    /// Judges everything that can be known from the text of a URL.
    ///
    /// Literal addresses are recognised in every spelling that a URL allows (decimal, octal, hexadecimal,
    /// short, with a trailing dot), as the URL standard reduces them all to an address.
    ///
    /// # Errors
    /// The first rule that refuses it.
    pub fn check_url(&self, text: &str) -> Result<Url, Refusal> {
        if text.len() > MAX_URL_BYTES {
            return Err(Refusal::Malformed(format!("it is longer than {MAX_URL_BYTES} bytes")));
        }
        // The URL standard silently drops tabs and line breaks; what is sent should be what is written.
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(Refusal::Malformed("it contains whitespace or a control character".into()));
        }
        let mut url = Url::parse(text).map_err(|error| Refusal::Malformed(error.to_string()))?;
        match url.scheme() {
            "https" => {}
            "http" if self.https_only => return Err(Refusal::HttpsOnly),
            "http" => {}
            other => return Err(Refusal::Scheme(other.to_owned())),
        }
        // An empty one leaves no trace in what was parsed.
        if !url.username().is_empty() || url.password().is_some() || has_userinfo(text) {
            return Err(Refusal::Userinfo);
        }
        if url.port() == Some(0) {
            return Err(Refusal::Malformed("port 0 cannot be connected to".into()));
        }
        self.check_port(url.port_or_known_default().unwrap_or_default())?;
        match url.host() {
            None => return Err(Refusal::Malformed("it has no host".into())),
            Some(Host::Ipv4(addr)) => self.check_addr(addr.into())?,
            Some(Host::Ipv6(addr)) => self.check_addr(addr.into())?,
            Some(Host::Domain(name)) => {
                self.check_name(name)?;
                if !is_name(name) {
                    let why =
                        "its host is no name: the parts between dots have 1 to 63 characters, all have 253";
                    return Err(Refusal::Malformed(why.into()));
                }
            }
        }
        url.set_fragment(None);
        Ok(url)
    }

    /// Judges the port of a URL, or one that is about to be connected to.
    ///
    /// # Errors
    /// The service that it belongs to.
    pub fn check_port(&self, port: u16) -> Result<(), Refusal> {
        let service = REFUSED_PORTS.iter().find(|(_, ports)| ports.contains(&port));
        match service {
            Some((service, _)) if !self.allow_ports.contains(&port) => Err(Refusal::Port { port, service }),
            _ => Ok(()),
        }
    }

    /// Judges an address that stands in the URL.
    ///
    /// # Errors
    /// The rule that refuses it, and the address.
    pub fn check_addr(&self, addr: IpAddr) -> Result<(), Refusal> {
        match self.refuses(addr) {
            Some((rule, embedded)) => Err(Refusal::Address { addr, rule, embedded }),
            None => Ok(()),
        }
    }

    /// Judges an address that `host` led to and that is about to be connected to.
    ///
    /// # Errors
    /// The rule that refuses it, and the name instead of the address.
    pub fn check_resolved(&self, host: &str, addr: IpAddr) -> Result<(), Refusal> {
        match self.refuses(addr) {
            Some((rule, _)) => Err(Refusal::Name { host: host.to_owned(), rule }),
            None => Ok(()),
        }
    }

    /// The rule that refuses `addr`, and the IPv4 address inside that it is about.
    fn refuses(&self, addr: IpAddr) -> Option<(Rule, Option<Ipv4Addr>)> {
        let mapped = match addr {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        let is_in = |net: &IpNet| net.contains(&addr) || mapped.is_some_and(|v4| net.contains(&v4));
        refused(addr).filter(|_| !self.allow.iter().any(is_in))
    }

    /// `localhost` and names below it are this machine by definition (RFC 6761); other names have to be
    /// looked up.
    fn check_name(&self, name: &str) -> Result<(), Refusal> {
        let bare = name.strip_suffix('.').unwrap_or(name);
        if bare.is_empty() {
            return Err(Refusal::Malformed("it has no host".into()));
        }
        let local = bare == "localhost" || bare.ends_with(".localhost");
        let loopbacks = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        if local && loopbacks.into_iter().all(|addr| self.check_addr(addr).is_err()) {
            return Err(Refusal::LocalName(name.to_owned()));
        }
        Ok(())
    }
}

/// Ports of services that speak no HTTP, or whose HTTP obeys everybody who reaches them.
///
/// A request is text that tenants have a say in, and many of these services skip the lines that they don't
/// understand and obey the others. They are the ports that browsers refuse (WHATWG Fetch, "bad port"), and
/// the well-known ones of databases, caches, brokers and clusters. Of the browsers' list, 1 and 9 are left
/// out, where nothing comes to harm, and 10080, where web servers are more common. Not here either: ports on
/// which web services are usual (88, 631, 5984, 8080, 9000, 9092, 9100, 9200 and so on), and those that
/// systems give to outgoing connections (from 32768 on).
const REFUSED_PORTS: [(&str, &[u16]); 19] = [
    ("an old network service", &[7, 11, 13, 15, 17, 19, 37, 77, 79, 87, 95, 101, 103, 113, 526, 530]),
    ("file transfer", &[20, 21, 69, 115, 117, 540, 556, 873, 989, 990]),
    ("remote login", &[22, 23, 512, 513, 992, 3389, 5900, 5901, 5902, 5903, 6000]),
    ("mail", &[25, 109, 110, 143, 465, 587, 993, 995, 2525, 3659, 4190]),
    ("news or chat", &[119, 531, 532, 563, 6665, 6666, 6667, 6668, 6669, 6679, 6697]),
    ("names and directories", &[42, 43, 53, 389, 427, 636, 853, 3268, 3269]),
    ("time or routing", &[123, 179, 1723]),
    ("Windows networking", &[135, 137, 138, 139, 445]),
    ("a network file system", &[111, 548, 2049, 4045]),
    ("a printer or scanner", &[515, 6566]),
    ("telephony or media", &[554, 1719, 1720, 5038, 5060, 5061]),
    ("a machine or device", &[102, 104, 502]),
    ("monitoring or logs", &[161, 162, 514, 601, 2003, 2004, 4949, 5666, 6514, 10050, 10051]),
    (
        "a database",
        &[1433, 1434, 1521, 3050, 3306, 5432, 5433, 6432, 9042, 26257, 27017, 27018, 27019, 28015],
    ),
    ("a cache", &[6379, 6380, 11211, 16379, 26379]),
    ("a message broker", &[1414, 1883, 4150, 4222, 4369, 4730, 5671, 5672, 6650, 8883, 11300]),
    ("Java RMI", &[1099]),
    ("a virus scanner", &[3310]),
    ("control of a cluster", &[2181, 2375, 2376, 2377, 2379, 2380, 4646, 10250]),
];

/// The rule that refuses `addr`, were nothing allowed, and the IPv4 address inside that it is about.
fn refused(addr: IpAddr) -> Option<(Rule, Option<Ipv4Addr>)> {
    match addr {
        IpAddr::V4(v4) => refused_v4(v4).map(|rule| (rule, None)),
        IpAddr::V6(v6) => {
            let embedded = embedded_v4(v6).into_iter().flatten();
            let inner = embedded.filter_map(|v4| Some((refused_v4(v4)?, Some(v4)))).next();
            // ::1 and :: have the shape of IPv4-compatible addresses; their own names are the better ones.
            match (refused_v6(v6), inner) {
                (Some(rule @ (Rule::Loopback | Rule::Unspecified)), _) => Some((rule, None)),
                (_, Some(inner)) => Some(inner),
                (own, None) => own.map(|rule| (rule, None)),
            }
        }
    }
}

/// Blocks of IPv4 that are not public unicast (IANA special-purpose registry), or not for the public. The
/// first match names the rule.
const REFUSED_V4: [([u8; 4], u32, Rule); 20] = [
    ([255, 255, 255, 255], 32, Rule::Broadcast),
    ([0, 0, 0, 0], 8, Rule::Unspecified),
    ([10, 0, 0, 0], 8, Rule::Private),
    ([172, 16, 0, 0], 12, Rule::Private),
    ([192, 168, 0, 0], 16, Rule::Private),
    ([100, 64, 0, 0], 10, Rule::CarrierGradeNat),
    ([127, 0, 0, 0], 8, Rule::Loopback),
    ([169, 254, 0, 0], 16, Rule::LinkLocal),
    ([192, 0, 0, 0], 24, Rule::Reserved),
    ([192, 0, 2, 0], 24, Rule::Documentation),
    ([198, 51, 100, 0], 24, Rule::Documentation),
    ([203, 0, 113, 0], 24, Rule::Documentation),
    ([233, 252, 0, 0], 24, Rule::Documentation),
    ([192, 88, 99, 0], 24, Rule::Reserved),
    ([198, 18, 0, 0], 15, Rule::Benchmarking),
    ([224, 0, 0, 0], 4, Rule::Multicast),
    ([240, 0, 0, 0], 4, Rule::Reserved),
    // Azure, for all of its machines: their settings and certificates, health, DNS.
    ([168, 63, 129, 16], 32, Rule::CloudPlatform),
    // IBM Cloud, reached from within only: infrastructure services, and private endpoints of its databases
    // and other products. Other platforms have theirs among the link-local and private addresses above.
    ([161, 26, 0, 0], 16, Rule::CloudPlatform),
    ([166, 8, 0, 0], 14, Rule::CloudPlatform),
];

fn refused_v4(addr: Ipv4Addr) -> Option<Rule> {
    let bits = addr.to_bits();
    let within = |base: [u8; 4], prefix: u32| (bits ^ u32::from_be_bytes(base)) >> (32 - prefix) == 0;
    REFUSED_V4.iter().find(|(base, prefix, _)| within(*base, *prefix)).map(|(_, _, rule)| *rule)
}

/// Blocks of IPv6 that are not public unicast, as (first two groups, prefix up to 32 bits).
const REFUSED_V6: [(u32, u32, Rule); 9] = [
    (0xfc00_0000, 7, Rule::UniqueLocal),
    (0xfe80_0000, 10, Rule::LinkLocal),
    (0xfec0_0000, 10, Rule::SiteLocal),
    (0xff00_0000, 8, Rule::Multicast),
    (0x2001_0002, 32, Rule::Benchmarking),
    (0x2001_0db8, 32, Rule::Documentation),
    (0x3fff_0000, 20, Rule::Documentation),
    (0x2001_0000, 23, Rule::Reserved),
    (0x3ffe_0000, 16, Rule::Reserved),
];

fn refused_v6(addr: Ipv6Addr) -> Option<Rule> {
    if addr.is_unspecified() {
        return Some(Rule::Unspecified);
    }
    if addr.is_loopback() {
        return Some(Rule::Loopback);
    }
    // Mapped addresses and NAT64 (the way out of a network without IPv4) are what the IPv4 inside them is.
    if addr.to_ipv4_mapped().is_some() || is_nat64(addr) || is_teredo(addr) {
        return None;
    }
    let head = (addr.to_bits() >> 96) as u32;
    let within = |base: u32, prefix: u32| (head ^ base) >> (32 - prefix) == 0;
    if let Some((_, _, rule)) = REFUSED_V6.iter().find(|(base, prefix, _)| within(*base, *prefix)) {
        return Some(*rule);
    }
    // Everything that is global unicast today lies in 2000::/3.
    (!within(0x2000_0000, 3)).then_some(Rule::Reserved)
}

fn is_nat64(addr: Ipv6Addr) -> bool {
    addr.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0]
}

fn is_teredo(addr: Ipv6Addr) -> bool {
    addr.segments()[..2] == [0x2001, 0]
}

/// The IPv4 addresses that a packet to `addr` may come out at. A network that has a NAT64 prefix of its own
/// (RFC 6052) cannot be told from others.
fn embedded_v4(addr: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let groups = addr.segments();
    let bits = addr.to_bits();
    let last = Ipv4Addr::from_bits(bits as u32);
    let second = Ipv4Addr::from_bits((bits >> 64) as u32);
    if is_teredo(addr) {
        // The server, and the client, whose address is stored inverted.
        return [Some(second), Some(Ipv4Addr::from_bits(!(bits as u32)))];
    }
    if groups[0] == 0x2002 {
        return [Some(Ipv4Addr::from_bits((bits >> 80) as u32)), isatap(groups).then_some(last)];
    }
    // Compatible ::/96, mapped ::ffff:0:0/96, translated ::ffff:0:0:0/96.
    let low = groups[..4] == [0; 4] && matches!(groups[4..6], [0, 0] | [0, 0xffff] | [0xffff, 0]);
    let nat64 = is_nat64(addr) || groups[..3] == [0x64, 0xff9b, 1];
    [(low || nat64 || isatap(groups)).then_some(last), None]
}

/// An interface identifier of ISATAP, which tunnels to the IPv4 address in the last four bytes.
fn isatap(groups: [u16; 8]) -> bool {
    groups[4] & !0x0200 == 0 && groups[5] == 0x5efe
}

#[cfg(test)]
mod tests;
