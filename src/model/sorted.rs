//! A sorted map for large states: a clone shares everything, a change copies a little, and its JSON is made once.
//!
//! The entries lie in chunks behind [`Arc`]s. A clone copies the list of chunks; a change copies one chunk, and only if another map has it
//! too. So two revisions of a state can be compared by what differs ([`Sorted::differences`]), and each chunk keeps its JSON text for as
//! long as it stays the same.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Index;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The largest number of entries of a chunk.
const LARGEST: usize = 32;

/// A sorted map.
#[derive(Clone)]
pub struct Sorted<K, V> {
    /// In order, none of them empty.
    chunks: Vec<Arc<Chunk<K, V>>>,
    len: usize,
}

/// Some entries that follow each other.
struct Chunk<K, V> {
    entries: Vec<(K, V)>,
    /// `"key":value,"key":value`.
    json: OnceLock<Box<[u8]>>,
}

/// A key with its value before and after.
pub type Difference<'a, K, V> = (&'a K, Option<&'a V>, Option<&'a V>);

impl<K, V> Sorted<K, V> {
    /// Returns the number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns all entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.iter().flat_map(|chunk| &chunk.entries).map(|(key, value)| (key, value))
    }

    /// Returns all keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// Returns all values in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Returns the entries from the first key on of which `is_before` does not hold; it must hold of all keys before that.
    pub fn from(&self, is_before: impl Fn(&K) -> bool) -> impl Iterator<Item = (&K, &V)> {
        let first = self.chunks.partition_point(|chunk| chunk.entries.last().is_some_and(|(key, _)| is_before(key)));
        let skipped =
            self.chunks.get(first).map_or(0, |chunk| chunk.entries.partition_point(|(key, _)| is_before(key)));
        let rest = self.chunks.get(first..).unwrap_or_default();
        rest.iter().flat_map(|chunk| &chunk.entries).skip(skipped).map(|(key, value)| (key, value))
    }
}

impl<K: Ord, V> Sorted<K, V> {
    /// Returns the value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let chunk = &self.chunks[self.chunk_of(key)?];
        let at = chunk.find(key).ok()?;
        Some(&chunk.entries[at].1)
    }

    /// Returns the key of the map that equals this one.
    pub fn get_key<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&K>
    where
        K: Borrow<Q>,
    {
        let chunk = &self.chunks[self.chunk_of(key)?];
        let at = chunk.find(key).ok()?;
        Some(&chunk.entries[at].0)
    }

    /// Returns whether there is a value of this key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Returns the place of the only chunk that may have this key; `None`: it would come before all.
    fn chunk_of<Q: Ord + ?Sized>(&self, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
    {
        let is_not_behind =
            |chunk: &Arc<Chunk<K, V>>| chunk.entries.first().is_some_and(|(first, _)| first.borrow() <= key);
        self.chunks.partition_point(is_not_behind).checked_sub(1)
    }
}

impl<K: Ord + Clone, V: Clone> Sorted<K, V> {
    /// Gives a key a value, and returns the one that it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let place = self.chunk_of(&key).unwrap_or_default();
        let is_last = place + 1 >= self.chunks.len();
        let Some(shared) = self.chunks.get_mut(place) else {
            self.chunks.push(Arc::new(Chunk::of(vec![(key, value)])));
            self.len = 1;
            return None;
        };
        let chunk = Arc::make_mut(shared);
        chunk.json.take();
        let at = match chunk.find(&key) {
            Ok(at) => return Some(std::mem::replace(&mut chunk.entries[at].1, value)),
            Err(at) => at,
        };
        self.len += 1;
        if chunk.entries.len() < LARGEST {
            chunk.entries.insert(at, (key, value));
            return None;
        }
        // Most keys come behind all others: then the chunk stays full.
        let middle = if is_last && at == LARGEST { LARGEST } else { LARGEST / 2 };
        let mut rest = chunk.entries.split_off(middle);
        match at.checked_sub(middle) {
            Some(at) => rest.insert(at, (key, value)),
            None => chunk.entries.insert(at, (key, value)),
        }
        self.chunks.insert(place + 1, Arc::new(Chunk::of(rest)));
        None
    }

    /// Takes a key out, and returns its value.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let place = self.chunk_of(key)?;
        let at = self.chunks[place].find(key).ok()?;
        let chunk = Arc::make_mut(&mut self.chunks[place]);
        chunk.json.take();
        let (_, value) = chunk.entries.remove(at);
        self.len -= 1;
        let left = chunk.entries.len();
        let next = self.chunks.get(place + 1).filter(|next| left + next.entries.len() <= LARGEST / 2);
        if let Some(next) = next.cloned() {
            Arc::make_mut(&mut self.chunks[place]).entries.extend(next.entries.iter().cloned());
            self.chunks.remove(place + 1);
        } else if left == 0 {
            self.chunks.remove(place);
        }
        Some(value)
    }

    /// Changes the value of a key, which begins with its default.
    pub fn update(&mut self, key: &K, change: impl FnOnce(&mut V))
    where
        V: Default,
    {
        if !self.contains_key(key) {
            self.insert(key.clone(), V::default());
        }
        let found = self.chunk_of(key).and_then(|place| {
            let chunk = Arc::make_mut(&mut self.chunks[place]);
            chunk.json.take();
            let at = chunk.find(key).ok()?;
            Some(&mut chunk.entries[at].1)
        });
        if let Some(value) = found {
            change(value);
        }
    }
}

impl<K: Ord, V: PartialEq> Sorted<K, V> {
    /// Returns in order what differs from an older map. What both share is not looked at.
    pub fn differences<'a>(&'a self, older: &'a Self) -> Vec<Difference<'a, K, V>> {
        let (mut old, mut new) = (Cursor::at_start(older), Cursor::at_start(self));
        let mut differences = Vec::new();
        loop {
            while let (Some(a), Some(b)) = (old.whole_chunk(), new.whole_chunk())
                && Arc::ptr_eq(a, b)
            {
                old.skip_chunk();
                new.skip_chunk();
            }
            let order = match (old.entry(), new.entry()) {
                (None, None) => return differences,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            let before = if order.is_le() { old.next() } else { None };
            let after = if order.is_ge() { new.next() } else { None };
            let (before_value, after_value) = (before.map(|(_, value)| value), after.map(|(_, value)| value));
            if let Some((key, _)) = after.or(before)
                && before_value != after_value
            {
                differences.push((key, before_value, after_value));
            }
        }
    }
}

impl<K: Serialize, V: Serialize> Sorted<K, V> {
    /// Adds the map to `text` as one JSON object, the same that [`Serialize`] makes.
    ///
    /// # Errors
    /// An entry cannot be written as JSON.
    pub fn write_json(&self, text: &mut Vec<u8>) -> serde_json::Result<()> {
        let mut length = 2;
        for chunk in &self.chunks {
            length += chunk.json()?.len() + 1;
        }
        text.reserve(length);
        text.push(b'{');
        for (place, chunk) in self.chunks.iter().enumerate() {
            if place > 0 {
                text.push(b',');
            }
            text.extend_from_slice(chunk.json()?);
        }
        text.push(b'}');
        Ok(())
    }
}

impl<K, V> Chunk<K, V> {
    fn of(entries: Vec<(K, V)>) -> Self {
        Self { entries, json: OnceLock::new() }
    }

    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> Result<usize, usize>
    where
        K: Borrow<Q>,
    {
        self.entries.binary_search_by(|(other, _)| other.borrow().cmp(key))
    }
}

impl<K: Serialize, V: Serialize> Chunk<K, V> {
    fn json(&self) -> serde_json::Result<&[u8]> {
        if let Some(json) = self.json.get() {
            return Ok(json);
        }
        let mut text = Vec::new();
        for (key, value) in &self.entries {
            if !text.is_empty() {
                text.push(b',');
            }
            serde_json::to_writer(&mut text, key)?;
            text.push(b':');
            serde_json::to_writer(&mut text, value)?;
        }
        Ok(self.json.get_or_init(|| text.into()))
    }
}

impl<K: Clone, V: Clone> Clone for Chunk<K, V> {
    /// The text is not taken along: who copies a chunk is about to change it.
    fn clone(&self) -> Self {
        Self::of(self.entries.clone())
    }
}

/// A place in a map.
struct Cursor<'a, K, V> {
    chunks: std::slice::Iter<'a, Arc<Chunk<K, V>>>,
    chunk: Option<&'a Arc<Chunk<K, V>>>,
    at: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn at_start(map: &'a Sorted<K, V>) -> Self {
        let mut chunks = map.chunks.iter();
        Self { chunk: chunks.next(), chunks, at: 0 }
    }

    /// The chunk of which this is the start.
    fn whole_chunk(&self) -> Option<&'a Arc<Chunk<K, V>>> {
        self.chunk.filter(|_| self.at == 0)
    }

    fn skip_chunk(&mut self) {
        (self.chunk, self.at) = (self.chunks.next(), 0);
    }

    fn entry(&self) -> Option<(&'a K, &'a V)> {
        self.chunk.and_then(|chunk| chunk.entries.get(self.at)).map(|(key, value)| (key, value))
    }

    fn next(&mut self) -> Option<(&'a K, &'a V)> {
        let entry = self.entry();
        self.at += 1;
        if self.chunk.is_some_and(|chunk| self.at >= chunk.entries.len()) {
            self.skip_chunk();
        }
        entry
    }
}

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Sorted<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord, V: PartialEq> PartialEq for Sorted<K, V> {
    /// What both share is not looked at.
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.differences(other).is_empty()
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Sorted<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let entries = entries.into_iter().collect::<BTreeMap<K, V>>();
        let len = entries.len();
        let mut entries = entries.into_iter();
        let chunks = std::iter::from_fn(|| {
            let some: Vec<_> = entries.by_ref().take(LARGEST).collect();
            (!some.is_empty()).then(|| Arc::new(Chunk::of(some)))
        });
        Self { chunks: chunks.collect(), len }
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for Sorted<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized> Index<&Q> for Sorted<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        #[expect(clippy::expect_used, reason = "as of every map: who indexes knows that the key is there")]
        self.get(key).expect("no entry of this key")
    }
}

impl<K: Serialize, V: Serialize> Serialize for Sorted<K, V> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.iter())
    }
}

impl<'de, K: Ord + Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for Sorted<K, V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::<K, V>::deserialize(from)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A change of a map: a key, and its new value if it is to have one.
    fn changes() -> impl Strategy<Value = Vec<(u16, Option<u8>)>> {
        proptest::collection::vec((0_u16..200, proptest::option::of(any::<u8>())), 0..400)
    }

    fn change(map: &mut Sorted<u16, u8>, model: &mut BTreeMap<u16, u8>, changes: &[(u16, Option<u8>)]) {
        for (key, value) in changes {
            match value {
                Some(value) => assert_eq!(map.insert(*key, *value), model.insert(*key, *value)),
                None => assert_eq!(map.remove(key), model.remove(key)),
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_a_sorted_map(first in changes(), second in changes(), bound in 0_u16..200) {
            let (mut map, mut model) = (Sorted::default(), BTreeMap::new());
            change(&mut map, &mut model, &first);
            let (older, older_model) = (map.clone(), model.clone());
            prop_assert_eq!(&older_model.clone().into_iter().collect::<Sorted<_, _>>(), &older);
            change(&mut map, &mut model, &second);

            prop_assert!(map.iter().eq(&model) && map.len() == model.len(), "{map:?} {model:?}");
            prop_assert!(older.iter().eq(&older_model), "a clone keeps what it had");
            prop_assert!(map.from(|key| *key < bound).eq(model.range(bound..)));
            for key in 0..200 {
                prop_assert_eq!(map.get(&key), model.get(&key));
            }
            prop_assert!(map.chunks.iter().all(|chunk| (1..=LARGEST).contains(&chunk.entries.len())));

            let keys = older_model.keys().chain(model.keys()).collect::<std::collections::BTreeSet<_>>();
            let differs = |key: &&u16| older_model.get(key) != model.get(key);
            let expected: Vec<_> =
                keys.into_iter().filter(differs).map(|key| (key, older_model.get(key), model.get(key))).collect();
            prop_assert_eq!(map.differences(&older), expected);
        }
    }

    #[test]
    fn what_two_maps_share_is_not_compared() {
        /// A value that is never equal, not even to itself.
        #[derive(Clone, Debug)]
        struct Unequal;
        impl PartialEq for Unequal {
            fn eq(&self, _: &Self) -> bool {
                false
            }
        }
        let older: Sorted<u32, Unequal> = (0..1_000).map(|key| (key, Unequal)).collect();
        let mut map = older.clone();
        assert!(map.differences(&older).is_empty());
        map.insert(500, Unequal);
        assert!((1..=LARGEST).contains(&map.differences(&older).len()));
    }

    #[test]
    fn the_text_of_a_chunk_follows_its_entries() {
        let mut map: Sorted<String, u32> = (0..100).map(|key| (format!("{key:03}"), key)).collect();
        let json = |map: &Sorted<String, u32>| {
            let mut text = Vec::new();
            map.write_json(&mut text).unwrap();
            serde_json::from_slice::<Sorted<String, u32>>(&text).unwrap()
        };
        assert_eq!(json(&map), map);
        map.update(&"050".to_owned(), |value| *value = 7);
        map.remove("051");
        map.insert("0505".to_owned(), 8);
        assert_eq!(json(&map), map);
        assert_eq!((map["050"], map.get("051"), map["0505"]), (7, None, 8));
    }
}
