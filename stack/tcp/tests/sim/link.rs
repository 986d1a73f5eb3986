//! The simulated link itself, proven with smoltcp at both ends: whatever fails elsewhere is not its fault.

use std::time::Duration;

use stack::sim::Path;

use crate::talk::{BOTH_VERSIONS, Talk, for_each_seed, ip, link, talk};
use crate::theirs::Theirs;

#[test]
fn smoltcp_talks_to_smoltcp_whatever_the_link_does() {
    for_each_seed(20, |seed| {
        for version in BOTH_VERSIONS {
            let path = Path {
                loss: 0.02,
                duplication: 0.02,
                reordering: 0.05,
                corruption: 0.02,
                latency: Duration::from_millis(1),
                ..Path::default()
            };
            let (link, mut clock) = link(seed);
            let mut a = Theirs::new(&link, path, 1, 8_192);
            let mut b = Theirs::new(&link, path, 2, 8_192);
            let conversation = Talk::new(1, 100_000, 50_000);
            a.listen(80, conversation);
            b.connect((ip(version, 1), 80).into(), 40_000, conversation.other());
            talk(&mut clock, &mut a, &mut b, Duration::from_secs(600));
        }
    });
}
