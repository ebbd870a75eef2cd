//! The most memory a piece of work holds at once, counted by the allocator, over all threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

/// The system's allocator, keeping the largest sum of what is held. Counts where a program has it for its own.
pub struct Peak;

static HELD: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's.
unsafe impl GlobalAlloc for Peak {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), SeqCst) + layout.size();
        LARGEST.fetch_max(held, SeqCst);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), SeqCst);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What `work` returns, and the bytes that were held while it ran, at most, beyond those before.
pub fn of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.load(SeqCst);
    LARGEST.store(before, SeqCst);
    let made = work();
    (made, LARGEST.load(SeqCst) - before)
}
