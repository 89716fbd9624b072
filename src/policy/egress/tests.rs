//! The egress rules: every rule, every spelling, every address within an address.

use super::*;
use proptest::prelude::*;

fn open(networks: &[&str]) -> Rules {
    Rules { allow: networks.iter().map(|n| n.parse().unwrap()).collect(), ..Rules::default() }
}

#[test]
fn each_refused_address_names_its_rule() {
    let table = [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("10.0.0.1", "private network"),
        ("172.16.0.1", "private network"),
        ("172.31.255.255", "private network"),
        ("192.168.1.1", "private network"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("febf::1", "link-local"),
        ("fec0::1", "site-local"),
        ("100.64.0.1", "carrier-grade NAT"),
        ("100.127.255.255", "carrier-grade NAT"),
        ("fc00::1", "unique-local"),
        ("fd12:3456::1", "unique-local"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("192.0.2.1", "documentation"),
        ("198.51.100.7", "documentation"),
        ("203.0.113.9", "documentation"),
        ("2001:db8::1", "documentation"),
        ("3fff::1", "documentation"),
        ("198.19.255.255", "benchmarking"),
        ("2001:2::1", "benchmarking"),
        ("168.63.129.16", "cloud platform"),
        ("161.26.0.10", "cloud platform"),
        ("166.11.255.255", "cloud platform"),
        ("192.0.0.8", "reserved"),
        ("192.88.99.1", "reserved"),
        ("240.0.0.1", "reserved"),
        ("100::1", "reserved"),
        ("2001:20::1", "reserved"),
        ("64:ff9b:1::8.8.8.8", "reserved"),
        ("::8.8.8.8", "reserved"),
        ("4000::1", "reserved"),
        ("::ffff:127.0.0.1", "loopback, as it embeds 127.0.0.1"),
        ("::127.0.0.1", "loopback, as it embeds 127.0.0.1"),
        ("64:ff9b::10.0.0.1", "private network, as it embeds 10.0.0.1"),
        ("64:ff9b:1::10.0.0.1", "private network, as it embeds 10.0.0.1"),
        ("2002:7f00:1::1", "loopback, as it embeds 127.0.0.1"),
        ("2001:0:7f00:1::f7f7:f7f7", "loopback, as it embeds 127.0.0.1"),
        ("2001:0:808:808::80ff:fffe", "loopback, as it embeds 127.0.0.1"),
        ("::ffff:168.63.129.16", "cloud platform, as it embeds 168.63.129.16"),
        ("64:ff9b::168.63.129.16", "cloud platform, as it embeds 168.63.129.16"),
        ("2002:a83f:8110::1", "cloud platform, as it embeds 168.63.129.16"),
        ("2600::5efe:192.168.0.1", "private network, as it embeds 192.168.0.1"),
        ("2600::200:5efe:192.168.0.1", "private network, as it embeds 192.168.0.1"),
    ];
    for (addr, rule) in table {
        let refusal = Rules::default().check_addr(addr.parse().unwrap()).expect_err(addr).to_string();
        assert!(refusal.contains(&format!("is refused: {rule} (")), "{addr}: {refusal}");
    }
}

#[test]
fn public_addresses_are_let_through() {
    for addr in
        ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "198.20.0.1", "2606:4700::1111", "2a00:1450::1"]
            .into_iter()
            .chain(["168.63.129.15", "168.63.129.17", "161.27.0.1", "166.7.255.255", "166.12.0.0"])
            .chain(["::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1", "2001:0:808:808::f7f7:f7f7"])
    {
        assert_eq!(Rules::default().check_addr(addr.parse().unwrap()), Ok(()), "{addr}");
    }
}

#[test]
fn an_allowed_network_opens_itself_and_its_mapped_form_only() {
    let rules = open(&["10.0.0.0/8", "::1/128"]);
    for (addr, let_through) in [
        ("10.1.2.3", true),
        ("::ffff:10.1.2.3", true),
        ("::1", true),
        ("127.0.0.1", false),
        ("64:ff9b::10.1.2.3", false),
        ("2002:a01:203::1", false),
        ("192.168.0.1", false),
    ] {
        assert_eq!(rules.check_addr(addr.parse().unwrap()).is_ok(), let_through, "{addr}");
    }
}

#[test]
fn of_an_address_that_a_name_led_to_only_the_rule_is_told() {
    for (addr, expected) in [
        ("10.1.2.3", "a private network address"),
        ("::ffff:10.1.2.3", "a private network address"),
        ("64:ff9b::a01:203", "a private network address"),
        ("168.63.129.16", "a cloud platform address"),
        ("0.0.0.0", "an unspecified address"),
        ("fd00::1", "a unique-local address"),
    ] {
        let addr: IpAddr = addr.parse().unwrap();
        let refusal = Rules::default().check_resolved("in.example.com", addr).unwrap_err().to_string();
        let opens = "POSTHASTE_ALLOW_NETWORKS opens networks on purpose";
        let whole = format!("host in.example.com is refused: it leads to {expected} ({opens})");
        assert_eq!(refusal, whole, "{addr}");
    }
    assert_eq!(Rules::default().check_resolved("in.example.com", [8, 8, 8, 8].into()), Ok(()));
    assert_eq!(open(&["10.0.0.0/8"]).check_resolved("in.example.com", [10, 1, 2, 3].into()), Ok(()));
}

/// The table of "bad ports" in WHATWG Fetch, without 0, which is no port.
const BAD_PORTS: [u16; 82] = [
    1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104,
    109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515,
    526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049,
    3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
];

#[test]
fn ports_of_other_services_are_refused_unless_they_are_opened() {
    let databases = [1433, 1521, 3306, 5432, 9042, 27017, 6379, 11211];
    let others = [873, 2181, 2375, 2376, 2379, 2380, 3389, 5672, 5900, 10250];
    let bad = BAD_PORTS.into_iter().filter(|port| ![1, 9, 10080].contains(port));
    for port in bad.chain(databases).chain(others) {
        for host in ["example.com", "8.8.8.8", "[2606:4700::1111]"] {
            let url = format!("https://{host}:{port}/");
            let refusal = Rules::default().check_url(&url).expect_err(&url);
            assert!(matches!(refusal, Refusal::Port { port: refused, .. } if refused == port), "{refusal}");
        }
        let opened = Rules { allow_ports: vec![443, port], ..Rules::default() };
        assert!(opened.check_url(&format!("http://example.com:{port}/")).is_ok(), "{port}");
        assert_eq!(opened.check_port(port), Ok(()));
        // It opens nothing else.
        let other = if port == 22 { 25 } else { 22 };
        assert!(opened.check_port(other).is_err());
        assert!(opened.check_url(&format!("http://127.0.0.1:{port}/")).is_err());
    }
    let refusal = Rules::default().check_url("http://example.com:6379/").unwrap_err().to_string();
    assert_eq!(refusal, "port 6379 is refused: a cache (POSTHASTE_ALLOW_PORTS opens ports on purpose)");
}

#[test]
fn ports_of_web_services_and_of_outgoing_connections_are_let_through() {
    let usual =
        [80, 88, 443, 591, 631, 1080, 3000, 3128, 4000, 4318, 4444, 5000, 5001, 5601, 5984, 7000, 7001];
    let more = [8000, 8008, 8080, 8081, 8086, 8088, 8443, 8500, 8888, 9000, 9090, 9092, 9100, 9200, 9443];
    for port in usual.into_iter().chain(more).chain([1, 9, 10080, 10443, 15672]).chain(30_000..=u16::MAX) {
        assert_eq!(Rules::default().check_port(port), Ok(()), "{port}");
    }
    for url in ["http://example.com/", "https://example.com/", "http://example.com:443/", "https://a.de:80/"]
    {
        assert!(Rules::default().check_url(url).is_ok(), "{url}");
    }
}

#[test]
fn each_port_belongs_to_one_service() {
    let mut all: Vec<u16> = REFUSED_PORTS.iter().flat_map(|(_, ports)| ports.iter().copied()).collect();
    let number = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), number);
}

#[test]
fn urls_are_refused_with_the_reason() {
    let table = [
        ("", "cannot be used"),
        ("example.com", "cannot be used"),
        ("http://", "cannot be used"),
        ("http://exa\nmple.com/", "control character"),
        (" https://example.com/", "whitespace"),
        ("https://example.com:0/", "port 0"),
        ("http://example.com:00025/", "port 25 is refused: mail ("),
        ("https://example.com:99999/", "cannot be used"),
        ("http://./", "no host"),
        ("ftp://example.com/", "only http and https"),
        ("file:///etc/passwd", "only http and https"),
        ("javascript:alert(1)", "only http and https"),
        ("https://user:hunter2@example.com/", "auth_type basic"),
        ("https://user@example.com/", "auth_type basic"),
        ("https://:hunter2@example.com/", "auth_type basic"),
        ("http://127.0.0.1/", "loopback"),
        ("http://127.0.0.1./", "loopback"),
        ("http://127.1/", "loopback"),
        ("http://2130706433/", "loopback"),
        ("http://017700000001/", "loopback"),
        ("http://0x7f000001/", "loopback"),
        ("http://0x7f.1/", "loopback"),
        ("http://0177.0.0.1/", "loopback"),
        ("http://%31%32%37.0.0.1/", "loopback"),
        ("http://127。0。0。1/", "loopback"),
        ("http://0/", "unspecified"),
        ("http://169.254.169.254/latest/meta-data", "link-local"),
        ("http://[::1]/", "loopback"),
        ("http://[::ffff:127.0.0.1]/", "loopback"),
        ("http://[::ffff:7f00:1]/", "loopback"),
        ("http://[fe80::1%25eth0]/", "cannot be used"),
        ("http://localhost/", "loopback"),
        ("http://LOCALHOST./", "loopback"),
        ("http://a.localhost:8080/", "loopback"),
    ];
    for (url, reason) in table {
        let refusal = Rules::default().check_url(url).expect_err(url).to_string();
        assert!(refusal.contains(reason), "{url}: {refusal}");
        assert!(!refusal.contains("hunter2"), "{refusal}");
    }
}

#[test]
fn https_only_refuses_http() {
    let rules = Rules { https_only: true, ..Rules::default() };
    assert_eq!(rules.check_url("http://example.com/"), Err(Refusal::HttpsOnly));
    assert!(rules.check_url("https://example.com/").is_ok());
}

#[test]
fn opened_names_and_good_urls_pass() {
    assert!(open(&["127.0.0.0/8"]).check_url("http://localhost:8080/").is_ok());
    assert!(open(&["::1/128"]).check_url("http://localhost:8080/").is_ok());
    let url = Rules::default().check_url("https://Example.COM:8443/a?b=c#d").unwrap();
    assert_eq!(url.as_str(), "https://example.com:8443/a?b=c");
}

/// `addr` in every spelling that a URL may have it in.
fn spellings(addr: Ipv4Addr) -> Vec<String> {
    let bits = addr.to_bits();
    let [a, b, c, d] = addr.octets();
    let low = bits & 0xff_ffff;
    // Digits that IDNA takes for the usual ones: full width, circled, mathematical.
    let wide = |zero: char| -> String {
        let digit = |c: char| match c.to_digit(10) {
            Some(digit) => char::from_u32(zero as u32 + digit).unwrap(),
            None => c,
        };
        addr.to_string().chars().map(digit).collect()
    };
    let plain = addr.to_string();
    vec![
        plain.clone(),
        format!("{plain}."),
        bits.to_string(),
        format!("{bits:#x}"),
        format!("0X{bits:X}"),
        format!("0{bits:o}"),
        format!("{a}.{low}"),
        format!("{a}.{b}.{}", low & 0xffff),
        format!("{a:#x}.{b:#x}.{c:#x}.{d:#x}."),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("000{a:o}.{b}.{c:#04x}.{d}"),
        format!("{a:#x}.0{low:o}"),
        wide('\u{ff10}'),
        wide('\u{1d7ce}'),
        plain.replace('1', "\u{2460}").replace('2', "\u{2461}"),
        plain.replace('.', "\u{3002}"),
        plain.replace('.', "\u{ff0e}"),
        plain.replace('.', "\u{ff61}"),
        // Ignored by IDNA: a soft hyphen, a zero-width space.
        format!("{a}.{b}\u{ad}.{c}.{d}"),
        format!("{a}.{b}.\u{200b}{c}.{d}"),
        plain.bytes().map(|byte| format!("%{byte:02x}")).collect(),
    ]
}

/// The addresses that lead to `v4` by way of IPv6.
fn embedding(v4: Ipv4Addr) -> [Ipv6Addr; 10] {
    let inner = u128::from(v4.to_bits());
    [
        inner,
        0xffff << 32 | inner,
        0xffff << 48 | inner,
        0x0064_ff9b << 96 | inner,
        0x0064_ff9b_0001 << 80 | inner,
        0x2002 << 112 | inner << 80 | 1,
        0x2001_0000 << 96 | inner << 64 | 0xf7f7_f7f7,
        0x2001_0000 << 96 | 0x0808_0808 << 64 | u128::from(!v4.to_bits()),
        0x2600 << 112 | 0x5efe << 32 | inner,
        0x2600 << 112 | 0x0200_5efe << 32 | inner,
    ]
    .map(Ipv6Addr::from_bits)
}

/// An address from the block at `pick`, its free bits from `bits`.
fn within(pick: usize, bits: u32) -> Ipv4Addr {
    let (base, prefix, _) = REFUSED_V4[pick];
    let mask = u32::MAX.checked_shr(prefix).unwrap_or(0);
    Ipv4Addr::from_bits(u32::from_be_bytes(base) | bits & mask)
}

#[test]
fn what_surrounds_an_address_does_not_hide_it() {
    for (url, reason) in [
        ("http:127.0.0.1", "loopback"),
        ("http:/127.0.0.1", "loopback"),
        ("http:///127.0.0.1/", "loopback"),
        ("http:\\\\127.0.0.1\\", "loopback"),
        ("HTTP://127.0.0.1", "loopback"),
        ("http://127.0.0.1?x=http://example.com/", "loopback"),
        ("http://127.0.0.1#@example.com/", "loopback"),
        ("http://127.0.0.1\\@example.com/", "loopback"),
        ("http://127.0.0.1:00080/", "loopback"),
        ("http://127.0.0.1:65535/", "loopback"),
        ("http://example.com@127.0.0.1/", "auth_type basic"),
        ("http://127.0.0.1:80@example.com/", "auth_type basic"),
        ("http://example.com:80%40127.0.0.1/", "cannot be used"),
        ("http://127.0.0.1:80:80/", "cannot be used"),
        ("http://127.0.0.256/", "cannot be used"),
        ("http://4294967296/", "cannot be used"),
        ("http://127.0.0.1.2/", "cannot be used"),
        ("http://0x7f.0.0.08/", "cannot be used"),
        ("http://[127.0.0.1]/", "cannot be used"),
        ("http://[::1", "cannot be used"),
        ("http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", "loopback"),
        ("http://ｌｏｃａｌｈｏｓｔ/", "loopback"),
        ("http://local\u{ad}host/", "loopback"),
        ("http://%6c%6f%63alhost/", "loopback"),
    ] {
        let refusal = Rules::default().check_url(url).expect_err(url).to_string();
        assert!(refusal.contains(reason), "{url}: {refusal}");
    }
}

proptest! {
    #[test]
    fn what_is_refused_as_ipv4_is_refused_in_every_form_that_embeds_it(
        bits in any::<u32>(),
        pick in 0..REFUSED_V4.len(),
    ) {
        let v4 = within(pick, bits);
        prop_assert!(Rules::default().check_addr(v4.into()).is_err());
        for v6 in embedding(v4) {
            prop_assert!(Rules::default().check_addr(v6.into()).is_err(), "{v6} embeds {v4}");
            let url = format!("http://[{v6}]/");
            prop_assert!(Rules::default().check_url(&url).is_err(), "{url} embeds {v4}");
        }
    }

    #[test]
    fn every_spelling_of_an_address_is_judged_as_the_address(
        bits in any::<u32>(),
        pick in prop::option::of(0..REFUSED_V4.len()),
    ) {
        let addr = pick.map_or(Ipv4Addr::from_bits(bits), |pick| within(pick, bits));
        let judged = Rules::default().check_addr(addr.into());
        for spelling in spellings(addr) {
            let url = format!("http://{spelling}:8080/hook");
            let found = Rules::default().check_url(&url);
            prop_assert_eq!(found.clone().map(|_| ()), judged.clone(), "{} for {}", spelling, addr);
            if let Ok(url) = found {
                prop_assert_eq!(url.host(), Some(Host::Ipv4(addr)), "{}", spelling);
            }
        }
    }

    #[test]
    fn an_allowed_network_opens_nothing_else(bits in any::<u32>(), pick in 0..REFUSED_V4.len()) {
        let (addr, net) = (within(pick, bits), "10.64.0.0/10");
        let inside = addr.octets()[0] == 10 && addr.octets()[1] / 64 == 1;
        prop_assert_eq!(open(&[net]).check_addr(addr.into()).is_ok(), inside, "{}", addr);
        for v6 in embedding(addr) {
            let opened = inside && v6.to_ipv4_mapped().is_some();
            prop_assert_eq!(open(&[net]).check_addr(v6.into()).is_ok(), opened, "{}", v6);
        }
    }

    #[test]
    fn no_text_breaks_the_rules(
        text in prop_oneof![".{0,60}", "https?:[/\\\\]{0,3}[0-9a-fx.:@%#?\\[\\]]{0,40}"],
    ) {
        if let Ok(url) = Rules::default().check_url(&text) {
            // What is let through stays what it is when it is read again, and leads to no refused literal.
            prop_assert_eq!(Rules::default().check_url(url.as_str()), Ok(url.clone()));
            prop_assert!(["http", "https"].contains(&url.scheme()) && url.username().is_empty());
            let port = url.port_or_known_default().unwrap();
            prop_assert_eq!(Rules::default().check_port(port), Ok(()), "{}", url);
            match url.host() {
                Some(Host::Ipv4(addr)) => prop_assert!(refused(addr.into()).is_none(), "{}", url),
                Some(Host::Ipv6(addr)) => prop_assert!(refused(addr.into()).is_none(), "{}", url),
                host => prop_assert!(host.is_some()),
            }
        }
    }
}

#[test]
fn hosts_that_no_resolver_can_be_asked_for_are_refused() {
    let rules = Rules::default();
    let (long, label) = ("a".repeat(64), "a".repeat(63));
    let name = format!("{label}.{label}.{label}.{}", "a".repeat(61));
    for url in [
        "http://../".to_owned(),
        "http://./".into(),
        "http://example..com/".into(),
        "http://.example.com/".into(),
        "http://example.com../".into(),
        format!("http://{long}.com/"),
        format!("http://example.{long}/"),
        format!("http://{name}a/"),
        format!("http://b.{name}/"),
    ] {
        let refused = rules.check_url(&url).unwrap_err();
        assert!(matches!(refused, Refusal::Malformed(_)), "{url}: {refused}");
    }
    for url in [
        "http://@example.com/".to_owned(),
        "http://:@example.com/".into(),
        "http:@example.com".into(),
        "http:\\\\@example.com".into(),
        "http://u@example.com/".into(),
    ] {
        assert_eq!(rules.check_url(&url), Err(Refusal::Userinfo), "{url}");
    }
    for url in [
        "http://example.com./".to_owned(),
        format!("http://{name}/"),
        format!("http://{name}./"),
        "http://_dmarc.example.com/".into(),
        "http://example.com/@u".into(),
        "http://example.com?to=a@b".into(),
        "http://example.com#a@b".into(),
        "http://xn--mnchen-3ya.example/".into(),
        "http://m\u{fc}nchen.example/".into(),
    ] {
        assert!(rules.check_url(&url).is_ok(), "{url}");
    }
}
