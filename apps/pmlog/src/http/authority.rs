//! Whom a request is meant for: the `Host` field, and the authority of a target in absolute form (RFC 9112,
//! section 3.2; RFC 3986, section 3.2).

use std::net::Ipv6Addr;

/// Whether a `Host` field's value is valid: empty, or a host and perhaps a port.
#[inline]
pub(super) fn is_host(value: &[u8]) -> bool {
    // Nearly all are a plain name or address, and perhaps a port: they are looked at once.
    let plain = value.iter().take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
    match value.split_at(plain.count()) {
        (_, []) => true,
        ([_, ..], port @ [b':', ..]) => is_port(port),
        _ => is_authority(value),
    }
}

/// Whether this names a host, and perhaps a port. A user's name before the host has no business here (RFC 9110,
/// section 4.2.4).
pub(super) fn is_authority(text: &[u8]) -> bool {
    if let Some(literal) = text.strip_prefix(b"[") {
        let Some(end) = literal.iter().position(|byte| *byte == b']') else { return false };
        return is_ip_literal(&literal[..end]) && is_port(&literal[end + 1..]);
    }
    let host = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
    // RFC 9110, section 4.2.1: in the scheme of HTTP no host is empty.
    host > 0 && is_registered_name(&text[..host]) && is_port(&text[host..])
}

/// Nothing, or a colon and a port, which may be left out behind it.
fn is_port(text: &[u8]) -> bool {
    let Some(digits) = text.strip_prefix(b":") else { return text.is_empty() };
    let add = |port: u32, byte: &u8| {
        let digit = char::from(*byte).to_digit(10)?;
        Some(port * 10 + digit).filter(|port| *port <= u16::MAX.into())
    };
    digits.iter().try_fold(0, add).is_some()
}

fn is_ip_literal(text: &[u8]) -> bool {
    let Some((b'v' | b'V', future)) = text.split_first() else {
        return std::str::from_utf8(text).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok());
    };
    let version = future.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    match &future[version..] {
        [b'.', address @ ..] if version > 0 && !address.is_empty() => {
            address.iter().all(|byte| is_name_byte(*byte) || *byte == b':')
        }
        _ => false,
    }
}

/// IPv4 addresses are among these.
fn is_registered_name(text: &[u8]) -> bool {
    let mut rest = text;
    while let Some((byte, behind)) = rest.split_first() {
        rest = match (byte, behind) {
            (b'%', [high, low, behind @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => behind,
            (byte, behind) if is_name_byte(*byte) => behind,
            _ => return false,
        };
    }
    true
}

/// `unreserved` and `sub-delims` of RFC 3986, section 2.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_by_their_grammar() {
        for host in [
            "",
            "log",
            "log.example",
            "log.example.",
            "log.example:80",
            "log:",
            "10.0.0.2",
            "10.0.0.2:65535",
            "[fd00::2]",
            "[fd00::2]:80",
            "[::ffff:10.0.0.2]:",
            "[v1f.a:b]",
            "a_b~c!d$e&f'g(h)i*j+k,l;m=n",
            "caf%C3%a9:8080",
        ] {
            assert!(is_host(host.as_bytes()), "{host:?}");
        }
        for host in [
            "a b",
            "a b/c",
            "a/c",
            "a\tb",
            "a?b",
            "a#b",
            "a\\b",
            "a@b",
            "user:word@host",
            "a\"b",
            "<a>",
            "a|b",
            "a^b",
            "a`b",
            "{a}",
            "caf\u{e9}",
            "a%2",
            "a%2g",
            "%",
            ":80",
            ":",
            "a:b",
            "a:80:80",
            "a:-1",
            "a:+1",
            "a:65536",
            "a:99999999999999999999999",
            "fd00::2",
            "[fd00::2",
            "fd00::2]",
            "[]",
            "[fd00::2]x",
            "[fd00::2]80",
            "[fd00:::2]",
            "[fe80::1%25eth0]",
            "[10.0.0.2]",
            "[v.a]",
            "[v1.]",
            "[v1.a/b]",
            "[[::1]]",
            "a[::1]",
        ] {
            assert!(!is_host(host.as_bytes()), "{host:?}");
        }
    }
}
