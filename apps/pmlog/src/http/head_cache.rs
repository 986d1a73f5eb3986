//! Heads that clients send again and again. A head that differs from an earlier one in its `Content-Length` at most is
//! known by its bytes, and not parsed.

use std::ops::Range;

use arrayvec::ArrayVec;

use super::{Framing, Head, Refusal, Route, decimal::leading_decimal, head::Parsed};

/// Heads that are known at a time: about as many as there are kinds of clients.
const HEADS: usize = 8;
/// The longest head that is remembered, in bytes.
const MAX_BYTES: usize = 256;

/// The heads of appends that were parsed before, for all connections of a core.
///
/// A head gets in when it comes twice with no other new one between, so that clients whose every head differs, by a date
/// say, drive nobody's out. It then takes the place of the one that has been in for longest.
#[derive(Debug, Default)]
pub struct HeadCache {
    known: ArrayVec<Known, HEADS>,
    /// The place that is taken next once all are.
    oldest: usize,
    /// The last head that was not known.
    candidate: Option<Known>,
}

/// A head that was parsed.
#[derive(Clone, Debug)]
struct Known {
    /// Its bytes but for the digits of its `Content-Length`, before which so many stand.
    text: ArrayVec<u8, MAX_BYTES>,
    before: usize,
    head: Head,
}

impl HeadCache {
    /// As [`Head::parse`], and gives the same. `place` is where the connection's last head was found, 0 at first.
    ///
    /// # Errors
    /// As [`Head::parse`].
    // Not in line: `pmbench instructions` counts requests by the calls.
    #[inline(never)]
    pub fn parse(&mut self, bytes: &[u8], place: &mut u8) -> Result<Option<(Head, usize)>, Refusal> {
        match self.known.get(usize::from(*place)).and_then(|known| known.find(bytes)) {
            Some(found) => Ok(Some(found)),
            None => self.parse_another(bytes, place),
        }
    }

    #[inline(never)]
    fn parse_another(&mut self, bytes: &[u8], place: &mut u8) -> Result<Option<(Head, usize)>, Refusal> {
        for (other, known) in self.known.iter().enumerate() {
            if let Some(found) = known.find(bytes) {
                *place = other as u8;
                return Ok(Some(found));
            }
        }
        let Some(Parsed { head, length, digits }) = Parsed::of(bytes)? else { return Ok(None) };
        if let Some(known) = Known::of(head, &bytes[..length], digits) {
            *place = self.learn(known, bytes).unwrap_or(*place);
        }
        Ok(Some((head, length)))
    }

    /// The place of a head that has come twice.
    fn learn(&mut self, known: Known, bytes: &[u8]) -> Option<u8> {
        if self.candidate.as_ref().is_none_or(|candidate| candidate.find(bytes).is_none()) {
            self.candidate = Some(known);
            return None;
        }
        self.candidate = None;
        if let Err(full) = self.known.try_push(known) {
            let place = self.oldest;
            self.known[place] = full.element();
            self.oldest = (place + 1) % HEADS;
            return Some(place as u8);
        }
        Some(self.known.len() as u8 - 1)
    }
}

impl Known {
    /// What is to be remembered of a head; none of one that is no append, has no body or is long. `digits` is where its
    /// only `Content-Length` lies, if it has one.
    fn of(head: Head, bytes: &[u8], digits: Option<Range<usize>>) -> Option<Self> {
        let digits = match (head.route, head.framing) {
            (Ok(Route::Append), Framing::Length(_)) => digits?,
            (Ok(Route::Append), Framing::Chunked) => bytes.len()..bytes.len(),
            _ => return None,
        };
        let (before, behind) = (&bytes[..digits.start], &bytes[digits.end..]);
        let mut text = ArrayVec::new();
        text.try_extend_from_slice(before).ok()?;
        text.try_extend_from_slice(behind).ok()?;
        Some(Self { text, before: before.len(), head })
    }

    /// The head at the start of `bytes` and its length, if it is this one.
    #[inline(always)]
    fn find(&self, bytes: &[u8]) -> Option<(Head, usize)> {
        let (before, behind) = self.text.split_at(self.before);
        let rest = bytes.strip_prefix(before)?;
        if self.head.framing == Framing::Chunked {
            return Some((self.head, before.len()));
        }
        let (length, rest) = leading_decimal(rest)?;
        let rest = rest.strip_prefix(behind)?;
        Some((Head { framing: Framing::Length(length), ..self.head }, bytes.len() - rest.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The values of fields that tell a body's length, good and bad ones.
    fn length() -> impl Strategy<Value = &'static str> {
        prop::sample::select(&[
            "5",
            "5",
            "5",
            "7",
            "1024",
            "0",
            "",
            "5 ",
            "5x",
            "+5",
            "5, 5",
            "0000000000000000005",
            "00000000000000000000000005",
            "9999999999999999999",
            "18446744073709551615",
            "18446744073709551616",
        ])
    }

    fn field() -> impl Strategy<Value = String> {
        let other = prop::sample::select(&[
            "Host: log\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Expect: 100-continue\r\n",
            "Expect: 1\r\n",
            "Connection: close\r\n",
            "A: 5\r\n",
            " a\r\n",
            "Content-Length: 5\n",
            "\u{e9}: 5\r\n",
        ]);
        prop_oneof![
            3 => length().prop_map(|length| format!("Content-Length: {length}\r\n")),
            1 => length().prop_map(|length| format!("content-length:\t {length}\r\n")),
            2 => other.prop_map(str::to_owned),
        ]
    }

    /// Heads in the form of their lines.
    fn head() -> impl Strategy<Value = Vec<String>> {
        let line = prop_oneof![
            12 => Just("POST /append HTTP/1.1\r\n"),
            1 => Just("POST /append HTTP/1.0\r\n"),
            1 => Just("POST /append? HTTP/1.1\r\n"),
            1 => Just("GET /records/1 HTTP/1.1\r\n"),
            1 => Just("\r\nPOST /append HTTP/1.1\r\n"),
        ];
        let host = prop_oneof![6 => Just("Host: log\r\n"), 1 => Just("Host: 10.0.0.1:80\r\n"), 1 => Just("")];
        let end = prop_oneof![8 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r\r\n"), 1 => Just("")];
        (line, host, prop::collection::vec(field(), 0..4), end).prop_map(|(line, host, mut fields, end)| {
            fields.splice(..0, [line.to_owned(), host.to_owned()]);
            fields.push(end.to_owned());
            fields
        })
    }

    /// The head but for one thing.
    fn change(lines: &mut [String], at: usize, length: &str, how: u8) {
        let count = lines.len();
        match how % 8 {
            // As it was.
            0 | 1 => {}
            2 => lines[at % count].clear(),
            3 => lines.swap(at % count, count / 2),
            4 => drop(lines[at % count].pop()),
            _ => {
                let is_length = |line: &&mut String| line.to_ascii_lowercase().starts_with("content-length");
                let mut lengths: Vec<_> = lines.iter_mut().filter(is_length).collect();
                let count = lengths.len().max(1);
                if let Some(line) = lengths.get_mut(at % count) {
                    **line =
                        format!("{}{length}\r\n", &line[..line.rfind([' ', ':']).map_or(0, |at| at + 1)]);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn a_head_that_is_known_reads_as_one_that_is_parsed(
            heads in prop::collection::vec(head(), 1..4),
            steps in prop::collection::vec((any::<usize>(), any::<usize>(), length(), any::<u8>(), "[0-9\r\na]{0,3}"), 1..40),
        ) {
            let (mut cache, mut places) = (HeadCache::default(), [0, 255]);
            for (which, at, length, how, behind) in steps {
                let lines = &heads[which % heads.len()];
                let mut changed = lines.clone();
                change(&mut changed, at, length, how);
                for lines in [lines, lines, &changed] {
                    let bytes = (lines.concat() + &behind).into_bytes();
                    let found = cache.parse(&bytes, &mut places[at % 2]);
                    prop_assert_eq!(found, Head::parse(&bytes), "{:?}", String::from_utf8_lossy(&bytes));
                }
            }
        }
    }

    /// Whether a head is known when it comes.
    fn is_known(cache: &HeadCache, text: &str) -> bool {
        cache.known.iter().any(|known| known.find(text.as_bytes()).is_some())
    }

    fn append(client: usize, length: &str) -> String {
        format!("POST /append HTTP/1.1\r\nHost: log\r\nClient: {client}\r\nContent-Length: {length}\r\n\r\n")
    }

    #[test]
    fn a_head_is_known_once_it_has_come_twice_whatever_its_length_says() {
        let (mut cache, mut place) = (HeadCache::default(), 0);
        for length in ["5", "1024"] {
            assert!(!is_known(&cache, &append(1, length)));
            cache.parse(append(1, length).as_bytes(), &mut place).expect("a good head");
        }
        for length in ["0", "7", "18446744073709551615"] {
            assert_eq!(is_known(&cache, &append(1, length)), length.len() < 20, "{length}");
        }
        for other in [append(2, "5"), append(1, ""), append(1, "5 "), append(1, "5x"), append(1, "-5")] {
            assert!(!is_known(&cache, &other), "{other:?}");
        }
    }

    #[test]
    fn a_head_with_two_lengths_is_not_known_by_one_of_them() {
        for same in ["5", "18446744073709551615"] {
            for second in [same, "18446744073709551616"] {
                let both = format!("{same}\r\nContent-Length: {second}");
                let mut cache = HeadCache::default();
                // Good heads and bad ones.
                for _ in 0..3 {
                    let _ = cache.parse(append(1, &both).as_bytes(), &mut 0);
                }
                assert!(!is_known(&cache, &append(1, &both)), "{both}");
            }
        }
    }

    #[test]
    fn clients_whose_every_head_differs_drive_no_other_out() {
        let (mut cache, mut places) = (HeadCache::default(), [0; HEADS]);
        for round in 0..3 {
            for (client, place) in places.iter_mut().enumerate() {
                for _ in 0..2 {
                    cache.parse(append(client, "9").as_bytes(), place).expect("a good head");
                }
            }
            for other in 0..100 {
                cache.parse(append(100 + other, "9").as_bytes(), &mut 0).expect("a good head");
            }
            for (client, place) in places.iter().enumerate() {
                assert!(is_known(&cache, &append(client, "9")), "{round}");
                assert_eq!(usize::from(*place), client, "each client has its place");
            }
        }
        for _ in 0..2 {
            cache.parse(append(HEADS, "9").as_bytes(), &mut 0).expect("a good head");
        }
        assert!(is_known(&cache, &append(HEADS, "9")) && !is_known(&cache, &append(0, "9")));
        assert!(is_known(&cache, &append(1, "9")));
    }
}
