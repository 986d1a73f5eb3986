//! What an endpoint has done, in numbers that only grow.

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames taken in, of any protocol.
    pub frames_in: u64,
    /// Frames sent, of any protocol.
    pub frames_out: u64,
    /// TCP segments for this host that were well-formed.
    pub segments_in: u64,
    /// TCP segments sent.
    pub segments_out: u64,
    /// Payload bytes that reached a receive queue, in order.
    pub payload_in_bytes: u64,
    /// Payload bytes sent for the first time.
    pub payload_out_bytes: u64,
    /// Received payload bytes that the processor copied to pack small segments together.
    pub copied_bytes: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Fast retransmits.
    pub fast_retransmits: u64,
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
    /// Frames of other protocols that smoltcp's interface answered or took.
    pub other_in: u64,
    /// Drops by reason.
    pub drops: Drops,
}

/// Frames or payload that were dropped, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Not well-formed.
    pub malformed: u64,
    /// A wrong checksum.
    pub checksum: u64,
    /// Another host's, or from an address that cannot be a peer's.
    pub address: u64,
    /// IP fragments, or TCP behind IPv6 extension headers.
    pub fragment: u64,
    /// Segments outside the window.
    pub window: u64,
    /// Segments with an old timestamp, or none where one was agreed (RFC 7323).
    pub timestamp: u64,
    /// Payload received before.
    pub duplicate: u64,
    /// Payload for which there was no buffer, or that went beyond the connection's quota.
    pub no_buffer: u64,
    /// Handshakes held back because the connection table or the listener's backlog was full.
    pub backlog: u64,
    /// Replies not sent because a rate or a queue limit was reached.
    pub limited: u64,
    /// Frames for smoltcp's interface beyond its rate.
    pub other: u64,
    /// Segments that no connection takes.
    pub unexpected: u64,
}
