//! A map from bytes to values whose entries keep their places while others come and go, so that it can be read in parts.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::OnceLock;

use hashbrown::HashTable;

/// A map from bytes to values.
///
/// The values lie in places of their own, and a table finds the places. An entry stays in its place for as long as it is
/// there: who looks at all places in turn sees each entry that is there all the while, once. The hash is keyed, so that
/// nobody can choose keys that meet.
#[derive(Debug)]
pub struct Dict<V> {
    table: HashTable<u32>,
    places: Vec<Option<Node<V>>>,
    /// Places that are free.
    free: Vec<u32>,
}

#[derive(Debug)]
struct Node<V> {
    hash: u64,
    key: Box<[u8]>,
    value: V,
}

impl<V> Default for Dict<V> {
    fn default() -> Self {
        Self { table: HashTable::new(), places: Vec::new(), free: Vec::new() }
    }
}

fn hash(key: &[u8]) -> u64 {
    static KEY: OnceLock<RandomState> = OnceLock::new();
    KEY.get_or_init(RandomState::new).hash_one(key)
}

impl<V> Dict<V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The place of a key's entry.
    pub fn place(&self, key: &[u8]) -> Option<u32> {
        self.find(hash(key), key)
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<u32> {
        let is_it = |place: &u32| self.places[*place as usize].as_ref().is_some_and(|node| *node.key == *key);
        self.table.find(hash, is_it).copied()
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&V> {
        self.at(self.place(key)?).map(|(_, value)| value)
    }

    /// The value of a key, to be changed.
    pub fn get_mut(&mut self, key: &[u8]) -> Option<&mut V> {
        let place = self.place(key)?;
        self.places[place as usize].as_mut().map(|node| &mut node.value)
    }

    /// What is in a place.
    pub fn at(&self, place: u32) -> Option<(&[u8], &V)> {
        self.places.get(place as usize)?.as_ref().map(|node| (&*node.key, &node.value))
    }

    /// Gives a key a value; returns the place, and the value that it had.
    pub fn insert(&mut self, key: &[u8], value: V) -> (u32, Option<V>) {
        let hash = hash(key);
        if let Some(place) = self.find(hash, key) {
            let node = self.places[place as usize].as_mut();
            return (place, node.map(|node| std::mem::replace(&mut node.value, value)));
        }
        let node = Some(Node { hash, key: key.into(), value });
        let place = match self.free.pop() {
            Some(place) => {
                self.places[place as usize] = node;
                place
            }
            None => {
                self.places.push(node);
                (self.places.len() - 1) as u32
            }
        };
        let places = &self.places;
        let rehash = |place: &u32| places[*place as usize].as_ref().map_or(0, |node| node.hash);
        self.table.insert_unique(hash, place, rehash);
        (place, None)
    }

    /// Removes a key; returns the place and the value that it had.
    pub fn remove(&mut self, key: &[u8]) -> Option<(u32, V)> {
        let hash = hash(key);
        let places = &self.places;
        let is_it = |place: &u32| places[*place as usize].as_ref().is_some_and(|node| *node.key == *key);
        let (place, _) = self.table.find_entry(hash, is_it).ok()?.remove();
        let node = self.places[place as usize].take()?;
        self.free.push(place);
        Some((place, node.value))
    }

    /// All entries, in the order of their places.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &V)> {
        self.places.iter().flatten().map(|node| (&*node.key, &node.value))
    }

    /// Hands the entries in `count` places from `cursor` on to `visit`; returns where to go on, or 0 at the end.
    pub fn scan<'a>(&'a self, cursor: u64, count: usize, mut visit: impl FnMut(&'a [u8], &'a V)) -> u64 {
        let from = usize::try_from(cursor).unwrap_or(usize::MAX).min(self.places.len());
        let to = from.saturating_add(count.max(1)).min(self.places.len());
        self.places[from..to].iter().flatten().for_each(|node| visit(&node.key, &node.value));
        if to == self.places.len() { 0 } else { to as u64 }
    }

    /// Some entry, where `number` is any number; none if there is none. The first at or behind a place.
    pub fn any(&self, number: u64) -> Option<(&[u8], &V)> {
        if self.is_empty() {
            return None;
        }
        let from = (number % self.places.len() as u64) as usize;
        let (before, behind) = self.places.split_at(from);
        behind.iter().chain(before).flatten().next().map(|node| (&*node.key, &node.value))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_and_who_reads_it_in_parts_sees_what_stays(
            steps in prop::collection::vec((0..40u8, 0..3u8), 0..300), part in 1..7usize,
        ) {
            let (mut dict, mut model) = (Dict::default(), HashMap::new());
            let (mut cursor, mut seen, mut stayed) = (0, HashSet::new(), HashSet::new());
            for (number, (key, what)) in steps.into_iter().enumerate() {
                let name = [key];
                match what {
                    0 => {
                        stayed.remove(&key);
                        prop_assert_eq!(dict.remove(&name).map(|(_, value)| value), model.remove(&key));
                    }
                    1 => prop_assert_eq!(dict.insert(&name, number).1, model.insert(key, number)),
                    _ => {
                        if cursor == 0 {
                            stayed = model.keys().copied().collect();
                            seen.clear();
                        }
                        cursor = dict.scan(cursor, part, |key, _| {
                            seen.insert(key[0]);
                        });
                        if cursor == 0 {
                            prop_assert!(stayed.is_subset(&seen), "{:?} {:?}", stayed, seen);
                        }
                    }
                }
                prop_assert_eq!(dict.len(), model.len());
                prop_assert_eq!(dict.get(&name), model.get(&key));
                prop_assert_eq!(dict.any(number as u64).is_some(), !model.is_empty());
            }
            let all: HashMap<u8, usize> = dict.iter().map(|(key, value)| (key[0], *value)).collect();
            prop_assert_eq!(all, model);
        }
    }
}
