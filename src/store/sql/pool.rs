//! The connections that a store keeps for the management of tenants and keys.
//!
//! Commands keep one. A process that serves many clients keeps a few, so that their requests do not queue on one. Clones
//! of a pool share its connections.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::SqlStore;
use super::connection::Connection;
use crate::store::StoreError;

/// Connections to one database.
#[derive(Clone)]
pub(in crate::store) struct Pool {
    /// Those that nobody uses.
    idle: Arc<Mutex<Vec<Connection>>>,
    /// How many more may be used.
    free: Arc<Semaphore>,
}

impl Pool {
    /// A pool of at most `most` connections, each opened when it is first needed.
    pub(in crate::store) fn of(most: usize) -> Self {
        Self { idle: Arc::default(), free: Arc::new(Semaphore::new(most)) }
    }

    /// Returns a connection for one command; waits while all are used. One that broke is replaced.
    ///
    /// # Errors
    ///
    /// None can be opened.
    pub(super) async fn hold(&self, store: &impl SqlStore) -> Result<Held, StoreError> {
        let closed = |_| StoreError::Unavailable("the connections are closed".into());
        let permit = Arc::clone(&self.free).acquire_owned().await.map_err(closed)?;
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let kept = match kept {
            Some(mut kept) => store.leads_here(&mut kept).await.then_some(kept),
            None => None,
        };
        let connection = match kept {
            Some(kept) => kept,
            None => store.open().await?,
        };
        Ok(Held { connection: Some(connection), idle: Arc::clone(&self.idle), _permit: permit })
    }
}

/// Commands have one connection.
impl Default for Pool {
    fn default() -> Self {
        Self::of(1)
    }
}

/// A connection of a pool, for one command.
pub(super) struct Held {
    /// `None` only while it is given back.
    connection: Option<Connection>,
    idle: Arc<Mutex<Vec<Connection>>>,
    _permit: OwnedSemaphorePermit,
}

impl Deref for Held {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("it is given back when this value is dropped")
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("it is given back when this value is dropped")
    }
}

/// Gives the connection back. One that is inside a transaction is closed, which undoes what it did.
impl Drop for Held {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take().filter(|kept| !kept.is_in_transaction()) {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}
