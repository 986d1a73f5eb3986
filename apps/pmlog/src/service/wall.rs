//! What time it is for people, which records are stamped with.

use std::fmt;
use std::sync::Arc;

/// A clock that tells seconds since 1970. It is read once a second at most.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> u32 + Send + Sync>);

impl WallClock {
    /// The system's.
    pub fn system() -> Self {
        Self::of(program::now_s)
    }

    /// Another one.
    pub fn of(now_s: impl Fn() -> u32 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_s))
    }

    /// The time; 0 where nobody knows it.
    pub fn now_s(&self) -> u32 {
        (self.0)()
    }
}

impl Default for WallClock {
    /// A clock that does not know the time.
    fn default() -> Self {
        Self::of(|| 0)
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WallClock").field(&self.now_s()).finish()
    }
}
