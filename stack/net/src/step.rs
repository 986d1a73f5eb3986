//! What there is to say of one burst.

/// What one step did; all zero when there was nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Frames or completions taken in.
    pub received: usize,
    /// Events given to the application.
    pub events: usize,
    /// Whether appends were made durable.
    pub committed: bool,
    /// Frames or submissions sent.
    pub sent: usize,
}

impl Step {
    /// Whether the step found nothing to do.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}
