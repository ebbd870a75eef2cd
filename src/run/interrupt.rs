//! Being asked to stop: SIGINT (Ctrl-C) and SIGTERM.

use std::fmt::{self, Display, Formatter};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::state::Stage;

/// Whether the run was asked to stop. Clones know alike.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
    /// The signal that asked.
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// From now on the first SIGINT or SIGTERM asks, and the second ends the process at once.
    ///
    /// # Errors
    /// The system refuses.
    pub fn listen() -> Result<Interrupt> {
        let interrupt = Interrupt::default();
        for signal in [SIGINT, SIGTERM] {
            let listen = || -> std::io::Result<()> {
                let asked = || interrupt.asked.clone();
                // In this order: the first signal finds nothing asked yet.
                flag::register_conditional_shutdown(signal, exit_code(signal), asked())?;
                flag::register_usize(signal, interrupt.signal.clone(), signal as usize)?;
                flag::register(signal, asked())?;
                Ok(())
            };
            listen().context("cannot listen for SIGINT and SIGTERM")?;
        }
        Ok(interrupt)
    }

    /// Asks the run to stop.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    /// Whether to stop as soon as nothing is lost by it.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// The error to end the run with: it stands after `step` of `stage`, and can be gone on with from there.
    pub fn error(&self, stage: Stage, step: u64) -> anyhow::Error {
        let signal = match self.signal.load(Ordering::SeqCst) {
            0 => SIGINT,
            signal => signal as i32,
        };
        Interrupted {
            stage,
            step,
            signal,
        }
        .into()
    }
}

/// The run was asked to stop, and has stopped.
#[derive(Debug)]
pub struct Interrupted {
    stage: Stage,
    /// Steps of the stage that are kept.
    step: u64,
    signal: i32,
}

impl Interrupted {
    /// The process's exit code, as shells have it for the signal.
    pub fn exit_code(&self) -> u8 {
        exit_code(self.signal) as u8
    }
}

impl Display for Interrupted {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "interrupted")?;
        match self.stage {
            Stage::Eval => write!(f, " in the final evaluation, which begins anew"),
            stage => write!(
                f,
                " after {} step {}, which is kept",
                stage.name(),
                self.step
            ),
        }
    }
}

impl std::error::Error for Interrupted {}

fn exit_code(signal: i32) -> i32 {
    128 + signal
}
