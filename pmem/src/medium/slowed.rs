//! Slower media, as PASTE's evaluation models them.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{Medium, layer::Layer};

/// A busy wait behind each fence.
#[derive(Clone, Copy)]
pub(crate) struct Slowed(pub(crate) Duration);

impl Layer for Slowed {
    fn fence(&self, medium: &dyn Medium) -> io::Result<()> {
        medium.fence()?;
        let fenced = Instant::now();
        while fenced.elapsed() < self.0 {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn fork(&self) -> Self {
        *self
    }
}
