//! The threads of the CPU device.
//!
//! A twin cuts its launch into tasks. The calling thread and those of the pool take the next task each until none is
//! left, so a thread that the system holds up does not keep its share of the launch waiting. What a task computes must
//! not depend on who runs it, nor on the order: results are then the same bits on any number of threads.
//!
//! A step is hundreds of launches, many of some ten microseconds, which is what waking a thread costs. The pool's threads
//! therefore look for the next launch for a while before they sleep. A launch allocates nothing.

use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize};
use std::sync::{Condvar, Mutex, OnceLock, TryLockError};
use std::thread::yield_now;

/// Looks for a job, some ten nanoseconds each, before a thread of the pool sleeps. It does not yield between them: where
/// threads compete for processors, a thread that yields is the last to run again, one that is woken the first.
const LOOKS_FOR_JOB: usize = 5_000;
/// Looks for the end of a job before the caller yields: the processor may be what the other thread waits for.
const LOOKS_FOR_END: usize = 10_000;

/// A launch in the making, on the stack of the thread that called [`run`].
struct Job {
    task: &'static (dyn Fn(usize) + Sync),
    tasks: usize,
    /// The next task to take; past `tasks` when all are taken.
    next: AtomicUsize,
    panicked: AtomicBool,
}

impl Job {
    fn work(&self) {
        loop {
            let task = self.next.fetch_add(1, SeqCst);
            if task >= self.tasks {
                return;
            }
            (self.task)(task);
        }
    }
}

#[derive(Default)]
struct Pool {
    threads: usize,
    /// Held by the thread whose job the pool works on. Others do theirs alone meanwhile.
    caller: Mutex<()>,
    /// Null between jobs. A thread of the pool reads it only while it counts as active, and the caller waits for those
    /// before its job goes out of scope.
    job: AtomicPtr<Job>,
    active: AtomicUsize,
    /// Number of jobs so far: how a thread notices a new one.
    jobs: AtomicUsize,
    /// Changed under the lock; what is stored here before `jobs` is looked at for the last time is seen by the caller.
    sleeping: AtomicUsize,
    bed: Mutex<()>,
    wake: Condvar,
}

impl Pool {
    fn start() -> &'static Pool {
        static POOL: OnceLock<&Pool> = OnceLock::new();
        POOL.get_or_init(|| {
            let threads = rayon::current_num_threads();
            let pool: &Pool = Box::leak(Box::new(Pool {
                threads,
                ..Pool::default()
            }));
            for _ in 1..threads {
                let thread = std::thread::Builder::new().name("vstar-twin".into());
                // Without the thread the others do its share.
                let _ = thread.spawn(|| pool.help());
            }
            pool
        })
    }

    /// What a thread of the pool does.
    fn help(&self) {
        let mut seen = 0;
        loop {
            seen = self.next_job(seen);
            self.active.fetch_add(1, SeqCst);
            // SAFETY: not null means that the caller has still to wait for `active` to fall to zero.
            if let Some(job) = unsafe { self.job.load(SeqCst).as_ref() }
                && catch_unwind(AssertUnwindSafe(|| job.work())).is_err()
            {
                job.panicked.store(true, SeqCst);
            }
            self.active.fetch_sub(1, SeqCst);
        }
    }

    /// Waits for a job after number `seen`; returns its number.
    fn next_job(&self, seen: usize) -> usize {
        for _ in 0..LOOKS_FOR_JOB {
            let jobs = self.jobs.load(SeqCst);
            if jobs != seen {
                return jobs;
            }
            spin_loop();
        }
        let mut bed = self.bed.lock().unwrap();
        self.sleeping.fetch_add(1, SeqCst);
        while self.jobs.load(SeqCst) == seen {
            bed = self.wake.wait(bed).unwrap();
        }
        self.sleeping.fetch_sub(1, SeqCst);
        self.jobs.load(SeqCst)
    }

    fn open(&self, job: &Job) {
        self.job.store(std::ptr::from_ref(job).cast_mut(), SeqCst);
        self.jobs.fetch_add(1, SeqCst);
        if self.sleeping.load(SeqCst) > 0 {
            drop(self.bed.lock().unwrap());
            self.wake.notify_all();
        }
    }

    fn close(&self) {
        self.job.store(std::ptr::null_mut(), SeqCst);
        let mut looks = 0;
        while self.active.load(SeqCst) > 0 {
            if looks < LOOKS_FOR_END {
                looks += 1;
                spin_loop();
            } else {
                yield_now();
            }
        }
    }
}

/// Closes the job also when a task panics on the calling thread.
struct Closing<'a>(&'a Pool);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Number of threads that share a launch.
pub fn count() -> usize {
    Pool::start().threads
}

/// Calls `task` with every number below `tasks`, once each, on all threads.
pub fn run(tasks: usize, task: impl Fn(usize) + Sync) {
    let pool = Pool::start();
    let caller = match pool.caller.try_lock() {
        Ok(caller) => Some(caller),
        // The lock guards nothing that a panic could leave half done.
        Err(TryLockError::Poisoned(caller)) => Some(caller.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    };
    if tasks < 2 || pool.threads < 2 || caller.is_none() {
        return (0..tasks).for_each(task);
    }
    let task: &(dyn Fn(usize) + Sync) = &task;
    let job = Job {
        // SAFETY: the job is closed before `task` goes out of scope.
        task: unsafe { std::mem::transmute::<&_, &'static (dyn Fn(usize) + Sync)>(task) },
        tasks,
        next: AtomicUsize::new(0),
        panicked: AtomicBool::new(false),
    };
    {
        let _closing = Closing(pool);
        pool.open(&job);
        job.work();
    }
    assert!(!job.panicked.load(SeqCst), "a task panicked (see above)");
}

/// Data cut into parts that may be used by different threads at once.
pub trait Parts: Sync {
    type Part;

    fn count(&self) -> usize;

    /// # Safety
    /// `index` is below the count, and no index is asked for twice.
    unsafe fn part(&self, index: usize) -> Self::Part;
}

/// Parts of `width` elements; the last may be shorter.
pub struct Chunks<'a, T> {
    data: &'a [T],
    width: usize,
}

/// Parts of `width` elements that may be written; the last may be shorter.
pub struct ChunksMut<'a, T> {
    data: *mut T,
    len: usize,
    width: usize,
    owner: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: gives every thread other elements of what it has borrowed for itself.
unsafe impl<T: Send> Sync for ChunksMut<'_, T> {}

/// Of width 0 there are as many parts as anyone wants, all empty.
fn parts_of(len: usize, width: usize) -> usize {
    len.checked_div(width).map_or(usize::MAX, |whole| {
        whole + (!len.is_multiple_of(width)) as usize
    })
}

/// Cuts `data` into parts of `width` elements.
pub fn chunks<T>(data: &[T], width: usize) -> Chunks<'_, T> {
    Chunks { data, width }
}

/// Cuts `data` into parts of `width` elements that may be written.
pub fn chunks_mut<T>(data: &mut [T], width: usize) -> ChunksMut<'_, T> {
    ChunksMut {
        data: data.as_mut_ptr(),
        len: data.len(),
        width,
        owner: std::marker::PhantomData,
    }
}

/// Parts of `width` elements, of which part `i` is at `index(i)` or, without one, is empty.
pub struct Rising<'a, T, I> {
    data: ChunksMut<'a, T>,
    count: usize,
    index: I,
}

/// Chooses parts of `data` by rising indices, `index(0)` to `index(count - 1)`; `None` if they do not rise strictly.
///
/// # Safety
/// `index` gives the same answers whenever it is asked.
pub unsafe fn rising<T, I: Fn(usize) -> Option<usize>>(
    data: &mut [T],
    width: usize,
    count: usize,
    index: I,
) -> Option<Rising<'_, T, I>> {
    let chosen = (0..count).filter_map(&index);
    chosen.is_sorted_by(|a, b| a < b).then(|| Rising {
        data: chunks_mut(data, width),
        count,
        index,
    })
}

impl<'a, T: Sync> Parts for Chunks<'a, T> {
    type Part = &'a [T];

    fn count(&self) -> usize {
        parts_of(self.data.len(), self.width)
    }

    unsafe fn part(&self, index: usize) -> &'a [T] {
        let rest = &self.data[index * self.width..];
        &rest[..self.width.min(rest.len())]
    }
}

impl<'a, T: Send> Parts for ChunksMut<'a, T> {
    type Part = &'a mut [T];

    fn count(&self) -> usize {
        parts_of(self.len, self.width)
    }

    unsafe fn part(&self, index: usize) -> &'a mut [T] {
        let begin = index * self.width;
        let len = self.width.min(self.len - begin);
        // SAFETY: within the slice, and no other part has these elements.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(begin), len) }
    }
}

impl<'a, T: Send, I: Fn(usize) -> Option<usize> + Sync> Parts for Rising<'a, T, I> {
    type Part = &'a mut [T];

    fn count(&self) -> usize {
        self.count
    }

    unsafe fn part(&self, index: usize) -> &'a mut [T] {
        match (self.index)(index) {
            None => &mut [],
            Some(chosen) => {
                assert!(chosen < self.data.count());
                // SAFETY: below the count, and chosen once, because indices rise.
                unsafe { self.data.part(chosen) }
            }
        }
    }
}

macro_rules! parts_of_several {
    ($($name:ident)+) => {
        /// As many parts as the member with the fewest has.
        impl<$($name: Parts),+> Parts for ($($name,)+) {
            type Part = ($($name::Part,)+);

            fn count(&self) -> usize {
                #[allow(non_snake_case)]
                let ($($name,)+) = self;
                [$($name.count()),+].into_iter().min().unwrap_or(0)
            }

            unsafe fn part(&self, index: usize) -> Self::Part {
                #[allow(non_snake_case)]
                let ($($name,)+) = self;
                // SAFETY: the caller's.
                unsafe { ($($name.part(index),)+) }
            }
        }
    };
}

parts_of_several!(A B);
parts_of_several!(A B C);
parts_of_several!(A B C D);
parts_of_several!(A B C D E);

/// Calls `f` with the number of every part and the part, on all threads, `per_task` parts a task.
pub fn each<P: Parts>(parts: P, per_task: usize, f: impl Fn(usize, P::Part) + Sync) {
    let count = parts.count();
    run(count.div_ceil(per_task), |task| {
        for index in task * per_task..((task + 1) * per_task).min(count) {
            // SAFETY: below the count, and every task has indices of its own.
            f(index, unsafe { parts.part(index) });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_visited_once() {
        for (len, width, per_task) in [(0, 3, 1), (1, 3, 1), (1_000, 7, 1), (1_000, 7, 64)] {
            let (mut data, numbers) = (vec![0; len], (0..len).collect::<Vec<_>>());
            let parts = (chunks_mut(&mut data, width), chunks(&numbers, width));
            each(parts, per_task, |index, (data, numbers)| {
                assert_eq!(numbers[0], index * width);
                data.iter_mut().zip(numbers).for_each(|(d, n)| *d += n + 1);
            });
            assert!(data.iter().zip(&numbers).all(|(d, n)| *d == n + 1));
        }
    }

    #[test]
    fn jobs_from_many_threads_and_within_tasks_are_done() {
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        run(3, |_| {
                            run(2, |_| {
                                done.fetch_add(1, SeqCst);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(done.load(SeqCst), 4 * 500 * 6);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        for bad in 0..8 {
            let outcome = catch_unwind(|| run(8, |task| assert_ne!(task, bad)));
            assert!(outcome.is_err());
            let done = AtomicUsize::new(0);
            run(8, |_| {
                done.fetch_add(1, SeqCst);
            });
            assert_eq!(done.load(SeqCst), 8);
        }
    }

    #[test]
    fn sleepers_are_woken() {
        for pause in [0, 1, 20] {
            std::thread::sleep(std::time::Duration::from_millis(pause));
            let done = AtomicUsize::new(0);
            run(100, |_| {
                done.fetch_add(1, SeqCst);
            });
            assert_eq!(done.load(SeqCst), 100);
        }
    }
}
