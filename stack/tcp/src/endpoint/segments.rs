//! The segments of one connection, as frames.

use stack_net::time::Instant;

use crate::emit::{Header, MAX_HEADER_BYTES};
use crate::frame::{FrameSink, SinkFull, TxFrame};
use crate::path_mtu::Paths;
use crate::tcp::connection::{Connection, Context};
use crate::tcp::options::Options;
use crate::tcp::send_queue::Pieces;
use crate::tcp::seq::Seq;
use crate::tcp::tx::UsualPlan;

/// Segments that a connection sends before others have their turn.
const QUANTUM: u32 = 16;

/// The frame under construction, where it is not written where it is sent from.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) head: Vec<u8>,
    pieces: Pieces,
    ident: u16,
}

impl Draft {
    /// For packets of up to `mtu` bytes.
    pub(super) fn new(mtu: usize) -> Self {
        Self { head: Vec::with_capacity(MAX_HEADER_BYTES + mtu), pieces: Pieces::new(), ident: 0 }
    }

    /// What the next packet that may be divided is told apart by.
    pub(super) fn next_ident(&mut self) -> u16 {
        self.ident = self.ident.wrapping_add(1);
        self.ident
    }

    /// Sends a connection's segments; true if there are more than its turn allows.
    #[inline(always)]
    pub(super) fn send_from<S: FrameSink>(
        &mut self,
        connection: &mut Connection,
        now: Instant,
        cx: &mut Context,
        sink: &mut S,
    ) -> Result<bool, SinkFull> {
        let Some(edge) = begin_turn(connection, now, cx) else { return Ok(false) };
        // Most have one segment to send, of the usual form.
        if self.send_usual(connection, edge, now, cx, sink)? {
            let has_more = connection.is_to_send_again();
            debug_assert_eq!(has_more, !connection.is_silent(), "a usual segment is the last");
            if !has_more {
                return Ok(false);
            }
        }
        self.send_any(connection, None, edge, now, cx, sink)
    }

    /// As [`send_from`](Self::send_from), for a connection whose path may take less than the link.
    #[cold]
    pub(super) fn send_by_path<S: FrameSink>(
        &mut self,
        connection: &mut Connection,
        paths: &mut Paths,
        now: Instant,
        cx: &mut Context,
        sink: &mut S,
    ) -> Result<bool, SinkFull> {
        let Some(edge) = begin_turn(connection, now, cx) else { return Ok(false) };
        self.send_any(connection, Some(paths), edge, now, cx, sink)
    }

    /// Sends what a connection has if it is one segment of the usual form; false, and nothing is sent, if not.
    #[inline(always)]
    fn send_usual<S: FrameSink>(
        &mut self,
        connection: &mut Connection,
        edge: Seq,
        now: Instant,
        cx: &mut Context,
        sink: &mut S,
    ) -> Result<bool, SinkFull> {
        let Some(plan) = connection.plan_usual(now, &cx.sending, &cx.controls) else { return Ok(false) };
        let Some(mac) = connection.mac else { return Ok(false) };
        debug_assert_eq!(
            Some(plan.into()),
            connection.plan(now, cx.config.tx_segmentation, &cx.sending, &mut cx.controls),
            "what is usual is what is due"
        );
        let report = connection.report_usual(edge);
        let header = Header {
            key: &connection.key,
            source_mac: cx.config.mac,
            mac,
            seq: plan.seq,
            ack: report.ack,
            flags: plan.flags(),
            window: report.window,
            options: Options::default(),
            traffic_class: cx.config.dscp << 2,
        };
        let text = connection.send.last_text(plan.from, plan.len, &cx.sending);
        if let Some(text) = text.filter(|_| !cx.config.tx_checksum_offload)
            && let Some(frame) = sink.place(header.usual_bytes() + text.len())
        {
            header.write_usual(plan.timestamp, text, frame);
        } else {
            self.send_pieces(connection, header, plan, cx, sink)?;
        }
        connection.sent_usual(&plan, &report, now, cx);
        cx.counters.frames_out += 1;
        cx.counters.segments_out += 1;
        Ok(true)
    }

    /// Sends a usual segment of several pieces, or whose checksum is left to the device, or to a sink that has no
    /// [place](FrameSink::place) for it.
    fn send_pieces<S: FrameSink>(
        &mut self,
        connection: &Connection,
        header: Header<'_>,
        plan: UsualPlan,
        cx: &Context,
        sink: &mut S,
    ) -> Result<(), SinkFull> {
        let Self { head, pieces, .. } = self;
        let layout = header.begin_usual(plan.timestamp, plan.len as usize, head);
        connection.send.gather(plan.from, plan.len, head, pieces, &cx.sending);
        let checksum = layout.complete(head, pieces, cx.config.tx_checksum_offload);
        let sent = sink.send(TxFrame { head, payload: pieces, checksum, segment_bytes: None });
        pieces.clear();
        sent
    }

    /// As [`send_from`](Self::send_from), whatever the segments; with `paths` for a connection whose path may take less than
    /// the link.
    fn send_any<S: FrameSink>(
        &mut self,
        connection: &mut Connection,
        mut paths: Option<&mut Paths>,
        edge: Seq,
        now: Instant,
        cx: &mut Context,
        sink: &mut S,
    ) -> Result<bool, SinkFull> {
        let mut longer = match &mut paths {
            Some(paths) => connection.probe_path(paths, now, &cx.sending, &mut cx.controls),
            None => None,
        };
        let divides = paths.is_some() && connection.is_divisible();
        // What may be divided has to be told apart, packet by packet.
        let cuts = cx.config.tx_segmentation && !divides && !connection.owes_cwr();
        let mut left = QUANTUM;
        while left > 0 {
            let plan = match longer.take() {
                Some(longer) => longer,
                None if connection.is_silent() => return Ok(false),
                None => match connection.plan(now, cuts, &cx.sending, &mut cx.controls) {
                    Some(plan) => plan,
                    None => return Ok(false),
                },
            };
            let Some(mac) = connection.mac else { return Ok(false) };
            let report = connection.report(&plan, edge, now, cx);
            let (flags, mark) = connection.with_marks(&plan);
            let header = Header {
                key: &connection.key,
                source_mac: cx.config.mac,
                mac,
                seq: plan.seq,
                ack: report.ack,
                flags,
                window: report.window,
                options: report.options,
                traffic_class: cx.config.dscp << 2 | mark,
            };
            let ident = if divides { Some(self.next_ident()) } else { None };
            let Self { head, pieces, .. } = self;
            let layout = match ident {
                Some(ident) => header.begin_divisible(ident, head),
                None => header.begin(plan.len as usize, head),
            };
            connection.send.gather(plan.from, plan.len, head, pieces, &cx.sending);
            let checksum = layout.complete(head, pieces, cx.config.tx_checksum_offload);
            let segment_bytes = plan.segment_bytes;
            let sent = sink.send(TxFrame { head, payload: pieces, checksum, segment_bytes });
            pieces.clear();
            sent?;
            connection.sent(&plan, &report, now, cx);
            if let Some(paths) = &mut paths
                && plan.len > 0
                && let Some(path) = paths.find(connection.key.remote_ip(), now)
                && let Some(bytes) = path.sent(&connection.key, (plan.seq, plan.seq + plan.len), now)
            {
                connection.path_probe_was_lost(bytes, &mut cx.controls);
            }
            cx.counters.frames_out += 1;
            let segments = plan.segments();
            cx.counters.segments_out += u64::from(segments);
            left = left.saturating_sub(segments);
        }
        Ok(true)
    }
}

/// The right edge of the window that all segments of a connection's turn offer; none if it has nothing to say.
#[inline(always)]
fn begin_turn(connection: &mut Connection, now: Instant, cx: &Context) -> Option<Seq> {
    let has_taken = connection.has_taken;
    if !has_taken && connection.is_silent() {
        return None;
    }
    connection.follow_arrivals(now, &cx.config);
    let edge = connection.edge(cx);
    if has_taken {
        connection.window_opened(edge);
    }
    Some(edge)
}
