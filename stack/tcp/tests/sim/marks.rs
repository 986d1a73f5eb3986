//! What IP says of how packets are to be served.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use stack::Config;
use stack::sim::{Host, Path};

use crate::ours::{Ours, config};
use crate::talk::{BOTH_VERSIONS, Talk, Talker, ip, link};
use crate::theirs::Theirs;
use crate::wire::{RST, SYN, Seg, Side, seg};

/// RFC 2474: from the answer to a SYN to the last acknowledgement, and in refusals.
#[test]
fn rfc2474_each_segment_has_the_codepoint() {
    for version in BOTH_VERSIONS {
        let (link, mut clock) = link(1);
        let mut ours = Ours::new(&link, Path::default(), 1, 300, Config { dscp: 34, ..config(1) });
        let seen = Rc::new(RefCell::new(Vec::new()));
        let sink = seen.clone();
        ours.net.port().set_filter(move |frame| {
            if let Some((.., segment)) = Seg::parse(frame) {
                let words = u16::from_be_bytes([frame[14], frame[15]]);
                let traffic_class = if frame[14] >> 4 == 4 { words as u8 } else { (words >> 4) as u8 };
                sink.borrow_mut().push((segment.flags, traffic_class));
            }
            true
        });
        let at = SocketAddr::new(ip(version, 1), 80);
        ours.listen(at, 4, |_| Talk::new(7, 50_000, 50_000));
        let mut theirs = Theirs::new(&link, Path::default(), 2, 20_000);
        theirs.connect(at, 5_000, Talk::new(7, 50_000, 50_000).other());
        let end = clock.now() + Duration::from_secs(60);
        while !(ours.done() && theirs.done()) {
            assert!(clock.step(&mut [&mut ours as &mut dyn Host, &mut theirs], end), "not over");
        }
        let peer = link.port(Path::default());
        let remote = Side { mac: crate::talk::mac(3), at: SocketAddr::new(ip(version, 3), 9) };
        let nobody = Side { mac: crate::talk::mac(1), at: SocketAddr::new(ip(version, 1), 81) };
        peer.send(clock.now(), seg(SYN, 1, 0).frame(remote, nobody));
        let until = clock.now() + Duration::from_millis(50);
        clock.run_until(&mut [&mut ours], until);
        let seen = seen.borrow();
        let kinds = |flag| seen.iter().filter(|(flags, _)| flags & flag != 0).count();
        assert!(seen.len() > 50 && kinds(SYN) == 1 && kinds(RST) == 1, "{seen:?}");
        assert!(seen.iter().all(|(_, traffic_class)| *traffic_class == 34 << 2), "{seen:?}");
    }
}
