//! Reading what is left of a shard whose header is lost.

use std::ops::ControlFlow;

use super::{ShardReport, Snapshot, SnapshotEvent};
use crate::{
    format::{
        entry::Entry,
        header::{Header, MAX_SEQ},
    },
    log::findings::Torn,
    recovery::{
        error::OpenError,
        scan::{Corruption, LogPlan, Source as _},
    },
};

impl Snapshot {
    /// As [`scan`](Self::scan), but where a shard's header is lost, or older than its log, goes by the log's entries alone:
    /// all records that can still be read. Nobody knows then which of them were trimmed. Records before the first whose entry
    /// can be read are not missed. Records behind one that looks torn are read, too.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    pub fn salvage(
        &self,
        shard: u32,
        mut visit: impl FnMut(SnapshotEvent),
    ) -> Result<ShardReport, OpenError> {
        self.has(shard)?;
        let mut lost_header = Some(Corruption::Header);
        if let Some((plan, header_damage)) = self.plan(shard) {
            let report = self.read_as(shard, &plan, |event| match event {
                // Told before anything else.
                SnapshotEvent::Corrupt(
                    stale @ (Corruption::StaleHeader { .. } | Corruption::StaleHead { .. }),
                ) => {
                    lost_header = Some(stale);
                    ControlFlow::Break(())
                }
                event => {
                    visit(event);
                    ControlFlow::Continue(())
                }
            });
            if let ControlFlow::Continue(report) = report {
                let report = ShardReport { header_damage, ..report };
                return Ok(self.read_behind(&plan, report, visit));
            }
        }
        let plan = self.plan_by_entries(shard);
        let report = self.read_as(shard, &plan, |event| {
            visit(event);
            ControlFlow::Continue(())
        });
        let ControlFlow::Continue(report) = report else { unreachable!("the visitor never breaks") };
        Ok(ShardReport { epoch: None, lost_header, ..report })
    }

    /// Reads what lies behind a torn record, up to the last entry that is complete.
    fn read_behind(
        &self,
        plan: &LogPlan,
        report: ShardReport,
        mut visit: impl FnMut(SnapshotEvent),
    ) -> ShardReport {
        let Some(Torn { seq: head, behind: Some(durable_seq), .. }) = report.torn else { return report };
        let plan = LogPlan { header: Header { head, durable_seq, ..plan.header }, ..*plan };
        let behind = self.read_as(report.shard, &plan, |event| {
            visit(event);
            ControlFlow::Continue(())
        });
        let ControlFlow::Continue(behind) = behind else { unreachable!("the visitor never breaks") };
        ShardReport {
            next: behind.next,
            records: report.records + behind.records,
            payload_bytes: report.payload_bytes + behind.payload_bytes,
            live_buffers: (report.live_buffers + behind.live_buffers).min(self.geometry().buffers),
            corruptions: report.corruptions + behind.corruptions,
            ..report
        }
    }

    /// A header that takes in all entries of the last lap that can be read.
    fn plan_by_entries(&self, shard: u32) -> LogPlan {
        let (log, seed) = (self.log(shard), self.seed(shard));
        let slots = log.slots();
        let entries = || {
            (0..slots).filter_map(|index| {
                let entry = Entry::decode(&log.slot(index)?, seed).ok()?;
                (entry.seq % slots == index && entry.seq < MAX_SEQ).then_some(entry)
            })
        };
        let (last, epoch) =
            entries().fold((0, 0), |(seq, epoch), entry| (entry.seq.max(seq), entry.epoch.max(epoch)));
        let of_last_lap = entries().map(|entry| entry.seq).filter(|seq| seq + slots > last);
        let head = of_last_lap.min().unwrap_or(1);
        let geometry = self.geometry();
        LogPlan {
            // Older than any epoch that follows, and behind all entries: none is taken for the log's torn end.
            header: Header {
                epoch: epoch.saturating_add(1),
                first_seq: last + 1,
                head,
                durable_seq: last,
                ahead: 1,
                ..Header::NEW
            },
            slots,
            seed,
            buffers: geometry.buffers,
            buffer_bytes: geometry.buffer_bytes,
            may_be_stale: false,
            checks_durable: true,
        }
    }
}
