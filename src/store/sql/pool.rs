//! The pool of connections that a store keeps for management.
//!
//! A command keeps one connection. A process that serves many clients keeps a few, so that their requests do not wait
//! for a single connection. Clones of a pool share its connections.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::SqlStore;
use super::connection::Connection;
use crate::store::StoreError;

/// Connections to one database.
#[derive(Clone)]
pub(in crate::store) struct ConnectionPool {
    /// The idle connections.
    idle: Arc<Mutex<Vec<Connection>>>,
    /// One permit for each connection that may still be taken.
    free: Arc<Semaphore>,
}

impl ConnectionPool {
    /// Creates a pool of at most `most` connections, each opened when it is first needed.
    pub(in crate::store) fn of(most: usize) -> Self {
        Self { idle: Arc::default(), free: Arc::new(Semaphore::new(most)) }
    }

    /// Takes a connection from the pool; waits while all are in use. Replaces a broken connection.
    ///
    /// # Errors
    ///
    /// A new connection cannot be opened.
    pub(super) async fn acquire(&self, store: &impl SqlStore) -> Result<PooledConnection, StoreError> {
        let closed = |_| StoreError::Unavailable("the connections are closed".into());
        let permit = Arc::clone(&self.free).acquire_owned().await.map_err(closed)?;
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let kept = match kept {
            Some(mut kept) => {
                if store.is_same_database(&mut kept).await {
                    Some(kept)
                } else {
                    kept.close().await;
                    None
                }
            }
            None => None,
        };
        let connection = match kept {
            Some(kept) => kept,
            None => store.open().await?,
        };
        Ok(PooledConnection { connection: Some(connection), idle: Arc::clone(&self.idle), _permit: permit })
    }
}

/// A pool of one connection, for commands.
impl Default for ConnectionPool {
    fn default() -> Self {
        Self::of(1)
    }
}

/// A connection taken from a pool.
pub(super) struct PooledConnection {
    /// `None` only inside [`Drop::drop`], which returns it to the pool.
    connection: Option<Connection>,
    idle: Arc<Mutex<Vec<Connection>>>,
    _permit: OwnedSemaphorePermit,
}

/// Why a connection is there whenever it is used.
const IS_THERE: &str = "only `drop` takes the connection, and a value cannot be used after its drop";

impl Deref for PooledConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect(IS_THERE)
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect(IS_THERE)
    }
}

/// Returns the connection to the pool. Closes it instead if it is inside a transaction, which rolls that back.
impl Drop for PooledConnection {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take().filter(|kept| !kept.is_in_transaction()) {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}
