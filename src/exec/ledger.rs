//! What an executor owes: for each attempt that it was given, one exit.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Exit;
use crate::model::lease::Lease;

/// The attempts of one executor, as its owner and their attendants share them; `A` is what is known of one that goes on.
#[derive(Debug)]
pub(super) struct Ledger<A> {
    wake: Arc<Notify>,
    pages: Mutex<Pages<A>>,
}

#[derive(Debug)]
struct Pages<A> {
    /// `None`: it is being started, or it has ended and its exit waits to be taken.
    listed: BTreeMap<Lease, Option<Arc<A>>>,
    exits: Vec<Exit>,
}

impl<A> Ledger<A> {
    /// `wake` is notified whenever there are exits to take.
    pub(super) fn new(wake: Arc<Notify>) -> Self {
        Self { wake, pages: Mutex::new(Pages { listed: BTreeMap::new(), exits: Vec::new() }) }
    }

    fn pages(&self) -> MutexGuard<'_, Pages<A>> {
        // A lease is listed and its exit pushed in one step each: a panic elsewhere cannot have left half of one.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn knows(&self, lease: &Lease) -> bool {
        self.pages().listed.contains_key(lease)
    }

    /// Lists an attempt that is to be started; `false`: it is listed already.
    pub(super) fn expect(&self, lease: &Lease) -> bool {
        let listed = &mut self.pages().listed;
        let is_new = !listed.contains_key(lease);
        if is_new {
            listed.insert(lease.clone(), None);
        }
        is_new
    }

    pub(super) fn add(&self, lease: Lease, attempt: Arc<A>) {
        self.pages().listed.insert(lease, Some(attempt));
    }

    /// One that goes on.
    pub(super) fn get(&self, lease: &Lease) -> Option<Arc<A>> {
        self.pages().listed.get(lease).cloned().flatten()
    }

    pub(super) fn leases(&self) -> Vec<Lease> {
        self.pages().listed.keys().cloned().collect()
    }

    /// Those that go on.
    pub(super) fn each<T>(&self, of: impl Fn(&Lease, &A) -> T) -> Vec<T> {
        self.pages().listed.iter().filter_map(|(lease, attempt)| Some(of(lease, attempt.as_deref()?))).collect()
    }

    pub(super) fn deliver(&self, exit: Exit) {
        let mut pages = self.pages();
        pages.listed.insert(exit.lease.clone(), None);
        pages.exits.push(exit);
        drop(pages);
        self.wake.notify_one();
    }

    /// Wakes the owner: something other than an exit is to be looked at.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// The exits since the last call, oldest first; their attempts are owed no more.
    pub(super) fn take(&self) -> Vec<Exit> {
        let mut pages = self.pages();
        let exits = std::mem::take(&mut pages.exits);
        for exit in &exits {
            pages.listed.remove(&exit.lease);
        }
        exits
    }
}
