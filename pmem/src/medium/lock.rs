//! One opening of a medium at a time, within the process.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use super::Medium;

/// The right to a medium: within the process nobody else has its region open.
pub(crate) struct MediumLock(usize);

/// Where the media lie that are in use.
static LOCKED: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

impl MediumLock {
    /// None while somebody has it.
    pub(crate) fn new(medium: &dyn Medium) -> Option<Self> {
        let base = medium.base().as_ptr() as usize;
        let is_free = LOCKED.lock().unwrap_or_else(PoisonError::into_inner).insert(base);
        // Not before it is certain: dropping a lock ends it.
        is_free.then(|| Self(base))
    }
}

impl Drop for MediumLock {
    fn drop(&mut self) {
        LOCKED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}
