//! Trying a device nobody here has seen: its driver may fail, panic or never answer.

use anyhow::{Result, anyhow, bail};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::Duration;

/// Does `work` on a thread of its own. Errors: those of `work`; that it panicked; that it took longer than `limit`, and
/// then its thread is left behind, for a call into a driver cannot be stopped.
pub fn attempt<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|p| Err(panicked(&*p)));
        // Nobody listens after the limit.
        let _ = sender.send(outcome);
    });
    match receiver.recv_timeout(limit) {
        Ok(outcome) => outcome,
        Err(_) => bail!("no answer within {} s", limit.as_secs_f64()),
    }
}

fn panicked(payload: &(dyn Any + Send)) -> anyhow::Error {
    let text = match payload.downcast_ref::<String>() {
        Some(text) => text,
        None => *payload.downcast_ref().unwrap_or(&"no message"),
    };
    anyhow!("panicked: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn message(outcome: Result<()>) -> String {
        outcome.unwrap_err().to_string()
    }

    #[test]
    fn whatever_happens_becomes_an_outcome() {
        assert_eq!(attempt(LONG, || Ok(7)).unwrap(), 7);
        assert_eq!(message(attempt(LONG, || bail!("broken"))), "broken");
        let number = 3;
        assert_eq!(
            message(attempt(LONG, move || panic!("lost {number}"))),
            "panicked: lost 3"
        );
        assert_eq!(message(attempt(LONG, || panic!("lost"))), "panicked: lost");
    }

    #[test]
    fn a_device_that_never_answers_is_given_up() {
        let never = || {
            loop {
                std::thread::park();
            }
        };
        let outcome = attempt(Duration::from_millis(1), never);
        assert_eq!(message(outcome), "no answer within 0.001 s");
    }
}
