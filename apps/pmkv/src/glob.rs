//! Patterns as KEYS and PSUBSCRIBE take them: `*`, `?`, `[a-z]`, `[^a-z]`, and `\` before what stands for itself.

/// Whether text matches a pattern. Takes no longer than the product of both lengths.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where to go on if what follows the last star does not match: that star, and how much it has taken.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, from));
                at += 1;
                continue;
            }
            None if from == text.len() => return true,
            None => None,
            Some(_) if from == text.len() => None,
            Some(_) => one(&pattern[at..], text[from]),
        };
        match (step, &mut star) {
            (Some(len), _) => (at, from) = (at + len, from + 1),
            (None, Some((behind, taken))) if *taken < text.len() => {
                *taken += 1;
                (at, from) = (*behind, *taken);
            }
            (None, _) => return false,
        }
    }
}

/// Whether a byte matches what a pattern begins with, and how long that is.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [b'[', ..] => class(pattern, byte),
        [plain, ..] => (*plain == byte).then_some(1),
        [] => None,
    }
}

fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let mut at = 1;
    let is_not = pattern.get(at) == Some(&b'^');
    at += usize::from(is_not);
    let mut is_in = false;
    loop {
        match pattern[at.min(pattern.len())..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', escaped, ..] => {
                is_in |= escaped == byte;
                at += 2;
            }
            [low, b'-', high, ..] => {
                is_in |= (low.min(high)..=low.max(high)).contains(&byte);
                at += 3;
            }
            [plain, ..] => {
                is_in |= plain == byte;
                at += 1;
            }
        }
    }
    (is_in != is_not).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_what_they_say() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "abc"),
            ("h?llo", "hallo"),
            ("h*llo", "heeello"),
            ("h[ae]llo", "hello"),
            ("h[^e]llo", "hallo"),
            ("h[a-c]llo", "hbllo"),
            ("h[c-a]llo", "hbllo"),
            ("a\\*b", "a*b"),
            ("a*b*c", "a-b-b-c"),
            ("[\\]]", "]"),
            ("**a", "a"),
        ] {
            assert!(matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("a", ""),
            ("h?llo", "hllo"),
            ("h[^a]llo", "hallo"),
            ("a\\*b", "axb"),
            ("a*b", "a-b-c"),
            ("[a", "b"),
            ("abc", "abcd"),
        ] {
            assert!(!matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_time() {
        let text = vec![b'a'; 20_000];
        let pattern = [b"a*".repeat(50), b"b".to_vec()].concat();
        assert!(!matches(&pattern, &text));
    }
}
