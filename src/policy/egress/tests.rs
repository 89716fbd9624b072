//! The egress rules: every rule, every spelling, every address within an address.

use super::*;
use proptest::prelude::*;

fn open(networks: &[&str]) -> Rules {
    Rules { allow: networks.iter().map(|n| n.parse().unwrap()).collect(), https_only: false }
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
fn urls_are_refused_with_the_reason() {
    let table = [
        ("", "cannot be used"),
        ("example.com", "cannot be used"),
        ("http://", "cannot be used"),
        ("http://exa\nmple.com/", "control character"),
        (" https://example.com/", "whitespace"),
        ("https://example.com:0/", "port 0"),
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
            match url.host() {
                Some(Host::Ipv4(addr)) => prop_assert!(refused(addr.into()).is_none(), "{}", url),
                Some(Host::Ipv6(addr)) => prop_assert!(refused(addr.into()).is_none(), "{}", url),
                host => prop_assert!(host.is_some()),
            }
        }
    }
}
