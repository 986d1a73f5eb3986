//! EAL's log: forwarded to `tracing`, with the latest complaints kept for error messages.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::{c_char, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dpdk_sys as sys;

/// How many lines an error message quotes at most.
const KEPT_LINES: usize = 8;

/// Lines that may come at once outside of calls that were [listened](listening) to, and how long until there may be one
/// more: some drivers log for each frame that they do not like.
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_secs(5);

static ALLOWANCE: Mutex<Allowance> = Mutex::new(Allowance { left: BURST, since: None, withheld: 0 });

thread_local! {
    static LISTENS: Cell<bool> = const { Cell::new(false) };
}

static COMPLAINTS: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Sends everything that EAL and its drivers log from now on to `tracing`; false if the C library refuses.
pub(crate) fn install() -> bool {
    let functions = sys::cookie_io_functions_t { write: Some(write), ..Default::default() };
    // SAFETY: the mode is NUL-terminated, the cookie unused, and `write` matches the C library's signature.
    let stream = unsafe { sys::fopencookie(std::ptr::null_mut(), c"w".as_ptr(), functions) };
    // SAFETY: the stream is open and never closed, as EAL may log until the process ends.
    !stream.is_null() && unsafe { sys::rte_openlog_stream(stream) } == 0
}

/// Runs `call` and returns with its result the warnings and errors that were logged meanwhile.
pub(crate) fn listening<T>(call: impl FnOnce() -> T) -> (T, String) {
    complaints().clear();
    let listened = LISTENS.replace(true);
    let result = call();
    LISTENS.set(listened);
    let lines: Vec<String> = complaints().drain(..).collect();
    let reason = if lines.is_empty() { "DPDK gave no reason".to_owned() } else { lines.join("; ") };
    (result, reason)
}

fn complaints() -> MutexGuard<'static, VecDeque<String>> {
    COMPLAINTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The stream's sink: DPDK flushes once for each message, so the level is that of the text at hand.
unsafe extern "C" fn write(_cookie: *mut c_void, text: *const c_char, len: usize) -> i64 {
    // SAFETY: the C library passes a readable buffer of `len` bytes.
    let text = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) };
    // SAFETY: reads a thread-local variable.
    let level = u32::try_from(unsafe { sys::rte_log_cur_msg_loglevel() }).unwrap_or(sys::RTE_LOG_INFO);
    for line in String::from_utf8_lossy(text).lines().map(str::trim).filter(|line| !line.is_empty()) {
        forward(level, line);
    }
    i64::try_from(len).unwrap_or(i64::MAX)
}

fn forward(level: u32, line: &str) {
    if !LISTENS.get() {
        match ALLOWANCE.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            Some(0) => {}
            Some(withheld) => {
                tracing::warn!(target: "dpdk::eal", "{withheld} lines of DPDK's were left out: too many at once");
            }
            None => return,
        }
    }
    match level {
        ..=sys::RTE_LOG_ERR => tracing::error!(target: "dpdk::eal", "{line}"),
        sys::RTE_LOG_WARNING => tracing::warn!(target: "dpdk::eal", "{line}"),
        sys::RTE_LOG_NOTICE => tracing::info!(target: "dpdk::eal", "{line}"),
        sys::RTE_LOG_INFO => tracing::debug!(target: "dpdk::eal", "{line}"),
        _ => tracing::trace!(target: "dpdk::eal", "{line}"),
    }
    if level <= sys::RTE_LOG_WARNING {
        let mut kept = complaints();
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(line.trim_end_matches('.').to_owned());
    }
}

/// How many lines may come.
struct Allowance {
    left: u32,
    since: Option<Instant>,
    withheld: u64,
}

impl Allowance {
    /// Takes one line's allowance, if there is one left, and tells how many lines were withheld before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let earned = (now.duration_since(since).as_nanos() / REFILL.as_nanos()) as u32;
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(BURST);
            self.since = Some(now);
        }
        if self.left == 0 {
            self.withheld += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_end_are_let_through_at_a_bounded_rate_and_the_rest_are_counted() {
        let mut allowance = Allowance { left: BURST, since: None, withheld: 0 };
        let start = Instant::now();
        let let_through = (0..100_000).filter(|_| allowance.take(start).is_some()).count();
        assert_eq!(let_through, BURST as usize);
        assert_eq!(allowance.take(start + REFILL / 2), None);
        assert_eq!(allowance.take(start + REFILL), Some(100_001 - u64::from(BURST)));
        assert_eq!(allowance.take(start + REFILL), None);
        assert_eq!(allowance.take(start + 1000 * REFILL), Some(1));
    }
}
