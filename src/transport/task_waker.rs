//! The waker that `h2` gets from the task of a connection.
//!
//! `h2` wakes the task of a connection for each response that it has to send. Most responses come from this task
//! itself, which polls `h2` again before it waits. Then a wake-up only makes the runtime poll the task once more, and
//! `h2` finds nothing to do. So wake-ups are not passed on while the task is being polled.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

/// The bit that says that the task is being polled.
const POLLED: u8 = 1;

/// The bit that says that there was a wake-up since `h2` was polled.
const WOKEN: u8 = 2;

/// The waker for `h2`, and the calls that tell it when the task is being polled.
pub(super) struct TaskWaker {
    shared: Arc<Shared>,
    /// `shared` in the form that `h2` takes.
    waker: Waker,
}

struct Shared {
    /// [`POLLED`] and [`WOKEN`].
    state: AtomicU8,
    task: Mutex<Waker>,
}

impl TaskWaker {
    /// Creates a waker for a task that has not been polled yet.
    pub(super) fn new() -> Self {
        let shared = Arc::new(Shared { state: AtomicU8::new(0), task: Mutex::new(Waker::noop().clone()) });
        Self { waker: Waker::from(Arc::clone(&shared)), shared }
    }

    /// Returns the waker for `h2`.
    pub(super) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Must be called before each poll of `h2`, which does the work of all earlier wake-ups. Returns whether the task
    /// has waited since the last call.
    pub(super) fn before_poll(&self) -> bool {
        self.shared.state.swap(POLLED, Ordering::AcqRel) & POLLED == 0
    }

    /// Must be called before the task waits. Wakes the task if there was a wake-up during or after the last poll of
    /// `h2`.
    pub(super) fn before_wait(&self, cx: &Context<'_>) {
        self.shared.task().clone_from(cx.waker());
        if self.shared.state.swap(0, Ordering::AcqRel) & WOKEN != 0 {
            cx.waker().wake_by_ref();
        }
    }
}

impl Shared {
    fn task(&self) -> MutexGuard<'_, Waker> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.fetch_or(WOKEN, Ordering::AcqRel) & POLLED == 0 {
            self.task().wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts wake-ups.
    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_wake_up_reaches_the_task_once_it_waits() {
        let count = Arc::new(Count::default());
        let task = Waker::from(Arc::clone(&count));
        let cx = Context::from_waker(&task);
        let count_now = || count.0.load(Ordering::SeqCst);
        let waker = TaskWaker::new();
        let ours = waker.waker();
        assert!(waker.before_poll(), "the first poll");
        waker.before_wait(&cx);
        assert_eq!(count_now(), 0, "nothing has happened");
        ours.wake_by_ref();
        assert_eq!(count_now(), 1, "while the task waits");
        assert!(waker.before_poll());
        ours.wake_by_ref();
        assert!(!waker.before_poll(), "the same poll of the task");
        waker.before_wait(&cx);
        assert_eq!(count_now(), 1, "the second poll of h2 did the work");
        assert!(waker.before_poll());
        ours.wake_by_ref();
        assert_eq!(count_now(), 1, "the task is being polled");
        waker.before_wait(&cx);
        assert_eq!(count_now(), 2, "h2 was not polled since");
    }

    #[test]
    fn a_connection_that_moves_to_another_task_wakes_that_task() {
        let counts = [(); 2].map(|()| Arc::new(Count::default()));
        let waker = TaskWaker::new();
        for count in &counts {
            waker.before_poll();
            waker.before_wait(&Context::from_waker(&Waker::from(Arc::clone(count))));
        }
        waker.waker().wake_by_ref();
        assert_eq!(counts.map(|count| count.0.load(Ordering::SeqCst)), [0, 1]);
    }
}
