//! What the consumer has been told, as key and revision only, and how a page or a change alters it. Pure.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;

use bytes::Bytes;

use crate::engine::ids::{MetaKey, MetaRev};
use crate::engine::meta::{Event, Page, Span};

/// The consumer's map without its values, so that a key space is not held twice.
#[derive(Default)]
pub struct Picture {
    known: BTreeMap<MetaKey, MetaRev>,
    listing: Option<Listing>,
}

/// A listing that is under way.
struct Listing {
    /// What is still to be read; `None` when the last page has come.
    rest: Option<Span>,
    /// The watch was opened just after this revision: an older page would leave a gap.
    base: MetaRev,
    /// End of each page (`None` = end of the key space) and its revision, in key order.
    pages: Vec<(Option<Bytes>, MetaRev)>,
    /// Keys that the watch saw deleted where no page has been yet: a page read earlier may still hold them.
    gone: HashMap<MetaKey, MetaRev>,
}

impl Listing {
    /// Revision of the page that holds the key's place, if there was one.
    fn page_of(&self, key: &MetaKey) -> Option<MetaRev> {
        let after = |end: &Option<Bytes>| end.as_ref().is_some_and(|end| *end <= key.0);
        let at = self.pages.partition_point(|(end, _)| after(end));
        self.pages.get(at).map(|(_, rev)| *rev)
    }
}

impl Picture {
    /// Starts a listing of `span` under a watch that begins just after `base`. What is known stays until a page says otherwise.
    pub fn begin(&mut self, span: Span, base: MetaRev) {
        self.listing = Some(Listing {
            rest: Some(span),
            base,
            pages: Vec::new(),
            gone: HashMap::new(),
        });
    }

    /// What to read next.
    pub fn rest(&self) -> Option<&Span> {
        self.listing.as_ref()?.rest.as_ref()
    }

    /// What is to be read after `page`, which has not been taken in yet; `None` when it is the last.
    pub fn after(&self, page: &Page) -> Option<Span> {
        match page.kvs.last() {
            Some(last) if page.more => Some(self.rest()?.after(&last.key)),
            _ => None,
        }
    }

    /// Once all pages are there: the revision that the watch must pass before the picture is one of one moment.
    pub fn target(&self) -> Option<MetaRev> {
        let listing = self.listing.as_ref()?;
        match listing.rest {
            Some(_) => None,
            None => listing.pages.iter().map(|(_, rev)| *rev).max(),
        }
    }

    /// The watch has passed the target.
    pub fn settle(&mut self) {
        self.listing = None;
    }

    /// Keys known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// What a page changes, or `None` if it was read before the watch began.
    pub fn page(&mut self, page: Page) -> Option<Vec<Event>> {
        let rest = self.after(&page);
        let listing = self.listing.as_mut()?;
        let here = listing.rest.take()?;
        if page.rev < listing.base {
            listing.rest = Some(here);
            return None;
        }
        let end = match &rest {
            Some(rest) => Some(rest.start.clone()),
            None => here.end.clone(),
        };
        let place = (
            Bound::Included(MetaKey(here.start.clone())),
            end.clone()
                .map_or(Bound::Unbounded, |end| Bound::Excluded(MetaKey(end))),
        );
        let mut events = Vec::with_capacity(page.kvs.len());
        if self.known.range(place.clone()).next().is_some() {
            let seen: HashSet<&MetaKey> = page.kvs.iter().map(|kv| &kv.key).collect();
            let vanished: Vec<MetaKey> = self
                .known
                .range(place)
                .filter(|(key, rev)| **rev <= page.rev && !seen.contains(key))
                .map(|(key, _)| key.clone())
                .collect();
            for key in vanished {
                self.known.remove(&key);
                events.push(Event::Delete(key, page.rev));
            }
        }
        for kv in page.kvs {
            let newer = |rev: Option<&MetaRev>| rev.is_some_and(|rev| *rev >= kv.mod_rev);
            if newer(listing.gone.get(&kv.key)) {
                continue;
            }
            match self.known.entry(kv.key.clone()) {
                Entry::Occupied(known) if *known.get() >= kv.mod_rev => continue,
                Entry::Occupied(mut known) => *known.get_mut() = kv.mod_rev,
                Entry::Vacant(place) => {
                    place.insert(kv.mod_rev);
                }
            }
            events.push(Event::Put(kv));
        }
        listing.pages.push((end, page.rev));
        // their place is listed now; what comes later comes in order
        let gone = std::mem::take(&mut listing.gone);
        listing.gone = gone
            .into_iter()
            .filter(|(key, _)| listing.page_of(key).is_none())
            .collect();
        listing.rest = rest;
        Some(events)
    }

    /// What the changes of one revision change.
    pub fn changes(&mut self, rev: MetaRev, changes: Vec<Event>) -> Vec<Event> {
        let mut events = Vec::with_capacity(changes.len());
        for change in changes {
            let key = change.key();
            let page = self.listing.as_ref().and_then(|l| l.page_of(key));
            let is_old = page.is_some_and(|page| page >= rev)
                || self.known.get(key).is_some_and(|known| *known >= rev);
            if is_old {
                continue;
            }
            match &change {
                Event::Put(kv) => {
                    self.known.insert(kv.key.clone(), rev);
                    if let Some(listing) = &mut self.listing {
                        listing.gone.remove(&kv.key);
                    }
                    events.push(change);
                }
                Event::Delete(key, _) => {
                    let was_known = self.known.remove(key).is_some();
                    if page.is_none()
                        && let Some(listing) = &mut self.listing
                    {
                        listing.gone.insert(key.clone(), rev);
                    }
                    if was_known {
                        events.push(change);
                    }
                }
            }
        }
        events
    }

    /// Compares with a complete list of keys at `at`: the changes up to `at` that have not come yet. `None` in a row =
    /// the key must still be deleted.
    pub fn missing(
        &self,
        keys: &[(MetaKey, MetaRev)],
        at: MetaRev,
    ) -> BTreeMap<MetaKey, Option<MetaRev>> {
        let mut missing = BTreeMap::new();
        let mut listed = keys.iter().peekable();
        for (key, known) in &self.known {
            while let Some((other, rev)) = listed.next_if(|(other, _)| other < key) {
                missing.insert(other.clone(), Some(*rev));
            }
            match listed.next_if(|(other, _)| other == key) {
                Some((_, rev)) if known < rev => {
                    missing.insert(key.clone(), Some(*rev));
                }
                None if *known <= at => {
                    missing.insert(key.clone(), None);
                }
                _ => {}
            }
        }
        missing.extend(listed.map(|(key, rev)| (key.clone(), Some(*rev))));
        missing
    }

    /// Removes from `missing` what has come since.
    pub fn arrived(&self, missing: &mut BTreeMap<MetaKey, Option<MetaRev>>) {
        missing.retain(|key, rev| match (self.known.get(key), rev) {
            (known, Some(rev)) => known.is_none_or(|known| known < rev),
            (known, None) => known.is_some(),
        });
    }
}
