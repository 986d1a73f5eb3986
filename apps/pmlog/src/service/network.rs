//! How the network is, as `GET /health` and the reports tell it.

use std::sync::{Arc, Mutex, PoisonError};

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

/// What was dropped on the way in or out, by kind; each transport has kinds of its own, and tells all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops(Vec<(&'static str, Option<u64>)>);

impl Drops {
    /// These kinds; none for what nobody counts.
    pub fn of(kinds: impl IntoIterator<Item = (&'static str, Option<u64>)>) -> Self {
        Self(kinds.into_iter().collect())
    }

    /// Each kind, and how many there were; none if nobody counts them.
    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, Option<u64>)> {
        self.0.iter().copied()
    }

    /// How many there were of one kind.
    pub fn count(&self, kind: &str) -> u64 {
        self.kinds().find_map(|(name, count)| count.filter(|_| name == kind)).unwrap_or(0)
    }

    /// All together.
    pub fn total(&self) -> u64 {
        self.kinds().filter_map(|(_, count)| count).sum()
    }

    /// Those kinds of which there were some, in words; none if nothing was dropped.
    pub fn in_words(&self) -> Option<String> {
        let some = |(name, count): (&str, Option<u64>)| match count {
            Some(count @ 1..) => Some(format!("{} {count}", in_words(name))),
            _ => None,
        };
        let words: Vec<String> = self.kinds().filter_map(some).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }
}

/// The name of a kind, for people.
pub fn in_words(kind: &str) -> String {
    kind.replace('_', " ")
}

impl std::ops::AddAssign for Drops {
    fn add_assign(&mut self, other: Self) {
        for (kind, count) in other.0 {
            match self.0.iter_mut().find(|(name, _)| *name == kind) {
                Some((_, sum)) => *sum = sum.map_or(count, |sum| Some(sum + count.unwrap_or(0))),
                None => self.0.push((kind, count)),
            }
        }
    }
}

impl Serialize for Drops {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (kind, count) in &self.0 {
            map.serialize_entry(kind, count)?;
        }
        map.end()
    }
}

/// How the network was when it was last looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NetworkState {
    /// Whether frames can pass; none if nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_up: Option<bool>,
    /// Frames by which another host said that it has one of the server's addresses; none if nobody counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address_conflicts: Option<u64>,
    /// What was dropped, by all cores.
    pub drops: Drops,
}

/// The network's state, for all cores to see.
#[derive(Clone, Debug, Default)]
pub struct SharedNetworkState(Arc<Mutex<NetworkState>>);

impl SharedNetworkState {
    /// Replaces the state.
    pub fn put(&self, state: NetworkState) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// The state that was put last.
    pub fn state(&self) -> NetworkState {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_tell_what_is_not_counted_from_what_did_not_happen() {
        let mut sum = Drops::default();
        sum += Drops::of([("checksum", Some(3)), ("device_missed", None), ("too_long", None)]);
        sum += Drops::of([("checksum", Some(4)), ("device_missed", Some(0)), ("too_long", None)]);
        let json = serde_json::to_string(&sum).expect("numbers are always JSON");
        assert_eq!(json, r#"{"checksum":7,"device_missed":0,"too_long":null}"#);
        assert_eq!((sum.total(), sum.count("checksum")), (7, 7));
        assert_eq!(sum.in_words().as_deref(), Some("checksum 7"));
        assert_eq!(Drops::of([("too_long", None), ("vlan", Some(0))]).in_words(), None);
    }
}
