//! Selective acknowledgements (RFC 2018), and what they tell of duplicates (RFC 2883).

use std::time::Duration;

use crate::script::Script;
use crate::talk::{BOTH_VERSIONS, Version};
use crate::wire::{ACK, SYN, Seg, data, seg};

/// RFC 2018, section 2: the option is answered where it is offered, whatever the other options, and offered by who opens.
#[test]
fn rfc2018_2_sack_permitted_is_offered_and_answered() {
    for version in BOTH_VERSIONS {
        for timestamps in [None, Some((500, 0))] {
            for scale in [None, Some(7)] {
                for offered in [true, false] {
                    let mut s = Script::listening(version);
                    let syn = Seg { timestamps, scale, ..seg(SYN, 0, 0).mss(1_000).sack_permitted(offered) };
                    s.send(syn.clone());
                    s.expect(seg(SYN | ACK, 0, 1).sack_permitted(offered));
                    // Half-open it remembers.
                    s.send(syn);
                    s.expect(seg(SYN | ACK, 0, 1).sack_permitted(offered));
                }
            }
        }
        let mut s = Script::new(version);
        s.connect();
        s.expect(seg(SYN, 0, 0).sack_permitted(true));
        // Both open at once.
        s.send(seg(SYN, 0, 0).mss(1_000));
        s.expect(seg(SYN | ACK, 0, 1).sack_permitted(false));
    }
}

/// RFC 2018, section 3: up to four blocks, of anything, take nothing from what else a segment says.
#[test]
fn rfc2018_3_a_segment_with_blocks_acknowledges_as_any() {
    let mut s = Script::listening(Version::V4);
    let conn = s.open_with(seg(SYN, 0, 0).mss(1_000).sack_permitted(true));
    for count in 0..=4 {
        let seq = 1 + 5 * count;
        assert_eq!(s.write(conn, b"hello"), Ok(()));
        s.expect(data(seq, 1, b"hello"));
        let blocks: Vec<_> = (0..count).map(|n| (n * 7_777, u32::MAX / (n + 1))).collect();
        s.send(seg(ACK, 1, seq + 5).sack(&blocks));
    }
    s.advance(Duration::from_secs(3));
    s.expect_nothing();
}
