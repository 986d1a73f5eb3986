//! The part of packetdrill's language that the scripts use: times, packets, calls.

use std::time::Duration;

use crate::talk::{BOTH_VERSIONS, Version};
use crate::wire::{ACK, CWR, ECE, FIN, PSH, RST, SYN, Seg};

/// A script, line by line.
#[derive(Debug)]
pub struct Program {
    /// The versions of IP that it is about: those that `--ip_version` names, or both.
    pub versions: Vec<Version>,
    pub steps: Vec<Step>,
}

/// What happens, or has to happen, at a time after the script's beginning.
#[derive(Debug)]
pub struct Step {
    pub line: usize,
    pub at: Duration,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    /// The remote sends this segment.
    In(Packet),
    /// The stack has to send this segment.
    Out(Packet),
    /// A router on the way takes packets of so many bytes, and has seen a longer one with these numbers.
    TooBig { mtu: u32, seq: u32, len: usize },
    /// The application calls, and this has to come of it.
    Call(Call),
}

/// A segment. Its payload is told by its length; what the bytes are follows from their numbers.
#[derive(Debug)]
pub struct Packet {
    pub seg: Seg,
    pub len: usize,
    /// Whether the options may be any: `<...>`.
    pub any_options: bool,
}

#[derive(Debug)]
pub struct Call {
    pub name: String,
    pub arguments: Vec<String>,
    pub result: i64,
    pub error: Option<String>,
}

/// Reads a script.
///
/// # Errors
/// The number of the first line that is not of this language, and what is wrong with it.
pub fn parse(text: &str) -> Result<Program, String> {
    let mut program = Program { versions: BOTH_VERSIONS.to_vec(), steps: vec![] };
    let mut last = Duration::ZERO;
    for (index, line) in without_comments(text).lines().enumerate() {
        let line = line.trim();
        let wrong = |what: String| format!("line {}: {what}: {line}", index + 1);
        if let Some(setting) = line.strip_prefix("--") {
            program.versions = match setting {
                "ip_version=ipv4" => vec![Version::V4],
                "ip_version=ipv6" => vec![Version::V6],
                _ => return Err(wrong("not a known setting".into())),
            };
        } else if !line.is_empty() {
            let (time, what) = line.split_once(' ').ok_or_else(|| wrong("no event".into()))?;
            last = moment(time, last).map_err(wrong)?;
            program.steps.push(Step { line: index + 1, at: last, what: event(what.trim()).map_err(wrong)? });
        }
    }
    Ok(program)
}

/// The text with blanks in place of comments, so that lines keep their numbers.
fn without_comments(text: &str) -> String {
    let mut left = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("/*") {
        let end = rest[at..].find("*/").map_or(rest.len(), |end| at + end + 2);
        left.push_str(&rest[..at]);
        left.extend(rest[at..end].chars().filter(|&c| c == '\n'));
        rest = &rest[end..];
    }
    left.push_str(rest);
    left.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .fold(String::new(), |all, line| all + line + "\n")
}

fn moment(time: &str, last: Duration) -> Result<Duration, String> {
    let (from, seconds) = time.strip_prefix('+').map_or((Duration::ZERO, time), |later| (last, later));
    let seconds: f64 = seconds.parse().map_err(|_| format!("{time:?} is no time"))?;
    let at = Duration::try_from_secs_f64(seconds).map_err(|error| format!("{time:?}: {error}"))? + from;
    if at < last { Err(format!("{time:?} is before the line above")) } else { Ok(at) }
}

fn event(what: &str) -> Result<What, String> {
    if let Some(icmp) = what.strip_prefix("< icmp ") {
        return too_big(icmp);
    }
    match what.split_at_checked(1) {
        Some(("<", packet)) => self::packet(packet).map(What::In),
        Some((">", packet)) => self::packet(packet).map(What::Out),
        _ => call(what).map(What::Call),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is no number"))
}

/// `FIRST:LAST(LENGTH)`.
fn numbers(text: &str) -> Result<(u32, usize), String> {
    let wrong = || format!("{text:?} is not FIRST:LAST(LENGTH)");
    let (first, rest) = text.split_once(':').ok_or_else(wrong)?;
    let (last, len) = rest.strip_suffix(')').and_then(|rest| rest.split_once('(')).ok_or_else(wrong)?;
    let (first, last, len): (u32, u32, usize) = (number(first)?, number(last)?, number(len)?);
    if last.wrapping_sub(first) as usize != len {
        return Err(format!("{text:?}: from {first} to {last} are not {len} bytes"));
    }
    Ok((first, len))
}

/// `unreachable frag_needed mtu MTU [FIRST:LAST(LENGTH)]`.
fn too_big(text: &str) -> Result<What, String> {
    let text = text.strip_prefix("unreachable frag_needed mtu ").ok_or("only frag_needed is known")?;
    let (mtu, quoted) = text.split_once(' ').ok_or("no quoted segment")?;
    let quoted = quoted.trim().strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let (seq, len) = numbers(quoted.ok_or("no quoted segment")?)?;
    Ok(What::TooBig { mtu: number(mtu)?, seq, len })
}

/// `[ECN] FLAGS FIRST:LAST(LENGTH) [ack NUMBER] [win WINDOW] [<OPTIONS>]`, of which ECN stands in brackets.
fn packet(text: &str) -> Result<Packet, String> {
    let (ecn, text) = match text.trim().strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, rest)) => (Some(codepoint(name)?), rest),
        None => (None, text),
    };
    let (head, options) = text.split_once('<').map_or((text, None), |(head, rest)| (head, Some(rest)));
    let mut words = head.split_whitespace();
    let mut seg = Seg { ecn, ..Seg::default() };
    for flag in words.next().ok_or("no flags")?.chars() {
        seg.flags |= match flag {
            'F' => FIN,
            'S' => SYN,
            'R' => RST,
            'P' => PSH,
            '.' => ACK,
            'E' => ECE,
            'W' => CWR,
            other => return Err(format!("{other:?} is no flag of F, S, R, P, E, W and .")),
        };
    }
    let (seq, len) = numbers(words.next().ok_or("no sequence numbers")?)?;
    seg.seq = seq;
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("nothing after {word:?}"))?;
        match word {
            "ack" => seg.ack = number(value)?,
            "win" => seg.window = Some(number(value)?),
            other => return Err(format!("{other:?} is neither ack nor win")),
        }
    }
    seg.sack_permitted = Some(false);
    seg.sack = Some(vec![]);
    let options = options.map(|options| options.trim().strip_suffix('>').ok_or("the options do not end"));
    let options = options.transpose()?.unwrap_or_default().trim();
    for option in options.split(',').map(str::trim).filter(|option| !option.is_empty() && options != "...") {
        self::option(option, &mut seg)?;
    }
    Ok(Packet { seg, len, any_options: options == "..." })
}

/// What IP says of marks of congestion (RFC 3168, section 5).
fn codepoint(name: &str) -> Result<u8, String> {
    let names = ["noecn", "ect1", "ect0", "ce"];
    let at = names.iter().position(|known| *known == name);
    at.map(|at| at as u8).ok_or_else(|| format!("{name:?} is none of {}", names.join(", ")))
}

fn option(option: &str, seg: &mut Seg) -> Result<(), String> {
    let words: Vec<&str> = option.split_whitespace().collect();
    match words[..] {
        ["nop" | "eol"] => {}
        ["sackOK"] => seg.sack_permitted = Some(true),
        ["mss", mss] => seg.mss = Some(number(mss)?),
        ["wscale", scale] => seg.scale = Some(number(scale)?),
        ["TS", "val", value, "ecr", echo] => seg.timestamps = Some((number(value)?, number(echo)?)),
        ["sack", ref blocks @ ..] => {
            for block in blocks {
                let (from, to) = block.split_once(':').ok_or_else(|| format!("{block:?} is no block"))?;
                seg.sack.get_or_insert_default().push((number(from)?, number(to)?));
            }
        }
        _ => return Err(format!("{option:?} is no known option")),
    }
    Ok(())
}

/// `NAME(ARGUMENTS) = RESULT [ERROR [(WORDS)]]`.
fn call(text: &str) -> Result<Call, String> {
    let (call, result) = text.rsplit_once(") = ").ok_or("neither a packet nor a call with a result")?;
    let (name, arguments) = call.split_once('(').ok_or("a call has arguments")?;
    let mut result = result.split_whitespace();
    Ok(Call {
        name: name.trim().into(),
        arguments: arguments.split(',').map(|argument| argument.trim().into()).collect(),
        result: number(result.next().unwrap_or_default())?,
        error: result.next().map(Into::into),
    })
}

#[test]
fn what_is_not_of_the_language_is_named_with_its_line() {
    for (text, wrong) in [
        ("0 > S 0:1(0)", "line 1: \"0:1(0)\": from 0 to 1 are not 0 bytes"),
        ("// first\n0 < Q 0:0(0)", "line 2: 'Q' is no flag"),
        ("/* two\nlines */ +1 < S 0:0(0) <mss>", "line 2: \"mss\" is no known option"),
        ("+x < S 0:0(0)", "line 1: \"+x\" is no time"),
        ("2 < S 0:0(0)\n1 < S 0:0(0)", "line 2: \"1\" is before"),
        ("0 close(3)", "line 1: neither a packet nor a call"),
        ("\n--tolerance_usecs=5", "line 2: not a known setting"),
        ("0 < S 0:0(0) <mss 1000", "line 1: the options do not end"),
        ("0 < [ect2] . 0:0(0)", "line 1: \"ect2\" is none of noecn"),
    ] {
        let error = parse(text).expect_err(text);
        assert!(error.starts_with(wrong), "{error}");
    }
}
