//! What an endpoint has done, in numbers that only grow.

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames taken in, of any protocol.
    pub frames_in: u64,
    /// Frames sent, of any protocol; one that the device cuts is one.
    pub frames_out: u64,
    /// TCP segments for this host that were well-formed.
    pub segments_in: u64,
    /// TCP segments sent, each of those that the device cuts a frame into.
    pub segments_out: u64,
    /// Segments and datagrams whose checksum the sender's kernel had left to a device that this link does not have.
    pub partial_checksums: u64,
    /// Payload bytes that reached a receive queue, in order.
    pub payload_in_bytes: u64,
    /// Payload bytes sent for the first time.
    pub payload_out_bytes: u64,
    /// Received payload bytes that the processor copied: to pack small segments together, or out of fragments.
    pub copied_bytes: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Segments sent again before a timeout.
    pub fast_retransmits: u64,
    /// Times that losses were found before a timeout, and the congestion window was lowered for them.
    pub recoveries: u64,
    /// Losses that turned out to be none: the answer was late, and the window is as it was before.
    pub undone: u64,
    /// Segments that a router had marked as a sign of congestion (RFC 3168).
    pub ce_in: u64,
    /// Segments by which peers have said that what was sent to them was marked.
    pub ece_in: u64,
    /// Segments that have told peers of a lower window, for marks or for losses.
    pub cwr_out: u64,
    /// Probes for losses at the tail.
    pub tail_probes: u64,
    /// Connections whose segments were taken for too long for their path, as often as that was so (RFC 4821).
    pub black_holes: u64,
    /// Window probes sent.
    pub window_probes: u64,
    /// Segments that arrived ahead of a hole.
    pub out_of_order: u64,
    /// Connections opened, by either side.
    pub opened: u64,
    /// Connections closed.
    pub closed: u64,
    /// SYNs answered with a cookie because the queue of half-open connections was full.
    pub syn_cookies_sent: u64,
    /// Connections opened from a cookie.
    pub syn_cookies_accepted: u64,
    /// RSTs sent.
    pub resets_out: u64,
    /// Challenge ACKs sent (RFC 5961).
    pub challenge_acks: u64,
    /// UDP datagrams that reached a port's queue.
    pub datagrams_in: u64,
    /// UDP datagrams sent.
    pub datagrams_out: u64,
    /// Frames of other protocols that were answered or taken.
    pub other_in: u64,
    /// Packets put together from fragments.
    pub reassembled: u64,
    /// Connections that went on to another Ethernet address, since their peer or gateway had moved.
    pub moved: u64,
    /// Frames by which another host says that it has one of the own addresses.
    pub address_conflicts: u64,
    /// Drops by reason.
    pub drops: Drops,
}

/// Makes [`Drops`] of one list, so that what is counted is summed up and told as well.
macro_rules! drops {
    ($($(#[$doc:meta])* $kind:ident,)*) => {
        /// Frames or payload that were dropped, by reason.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Drops {
            $($(#[$doc])* pub $kind: u64,)*
        }

        impl Drops {
            /// Each kind's name, and how many there were.
            pub fn kinds(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($kind), self.$kind)),*].into_iter()
            }
        }
    };
}

drops! {
    /// Not well-formed.
    malformed,
    /// Less of it there than its IP header says: longer than what the device hands over, such as what a kernel on the
    /// same machine leaves to a card to cut.
    truncated,
    /// With the tag of a VLAN.
    vlan,
    /// A wrong checksum.
    checksum,
    /// Sent to this host though they are another's, or from an address that cannot be a peer's.
    address,
    /// To all hosts or to a group, and nothing for this one: other hosts' queries and announcements, and what bridges tell
    /// each other. Any network has them.
    group,
    /// IP fragments that are not for this host or contradict others, and packets of them that are too long.
    fragment,
    /// Packets given up since the rest of their fragments did not come, or others needed the place.
    reassembly,
    /// IPv6 packets with extension headers that cannot be served.
    extension,
    /// Sent to this host in a protocol, or to a UDP port, that nobody here speaks; TCP's segments apart.
    protocol,
    /// Datagrams beyond what may wait at their port for the application, or at all ports for want of free buffers.
    datagram,
    /// Datagrams not sent since their next hop did not say where it is, or too many waited for that.
    unresolved,
    /// Segments outside the window.
    window,
    /// Segments with an old timestamp, or none where one was agreed (RFC 7323).
    timestamp,
    /// Payload received before.
    duplicate,
    /// Payload or datagrams for which there was no buffer, and payload that went beyond the connection's quota.
    no_buffer,
    /// SYNs not answered, and handshakes held back, because the connection table or the listener's backlog was full.
    backlog,
    /// Replies not sent because a rate or a queue limit was reached.
    limited,
    /// Frames of other protocols beyond the rate of their kind.
    other,
    /// Segments that no connection takes.
    unexpected,
}
