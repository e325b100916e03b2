//! A clock of its own for a program: steps of the machine's would be everybody's, and the kernel's
//! time namespaces do not cover it. By libfaketime, which follows a file.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use toolchain::{Package, Plan};

/// A program's clock.
#[derive(Debug)]
pub(super) struct Clock(PathBuf);

/// Path of the library in Debian.
fn library() -> PathBuf {
    let arch = std::env::consts::ARCH;
    format!("/usr/lib/{arch}-linux-gnu/faketime/libfaketime.so.1").into()
}

pub(super) fn plan(plan: &mut Plan) {
    if !library().is_file() {
        plan.package(Package {
            name: "libfaketime",
            why: "steps the clock of single programs",
        });
    }
}

impl Clock {
    /// The machine's, for now.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let clock = Self(folder.join("clock"));
        clock.step(0)?;
        Ok(clock)
    }

    /// Sets the clock off by a number of seconds from now on.
    pub(super) fn step(&self, seconds: i64) -> Result<()> {
        let beside = self.0.with_extension("new");
        std::fs::write(&beside, format!("{seconds:+}"))
            .and_then(|()| std::fs::rename(&beside, &self.0))
            .context("cannot set a program's clock")
    }

    /// A shell's words that give a program this clock. Timers go by the monotonic one, which is
    /// left alone, as by a step of the real one.
    pub(super) fn shell(&self) -> String {
        format!(
            "/usr/bin/env LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_CACHE_DURATION=1 \
             FAKETIME_DONT_FAKE_MONOTONIC=1",
            library().display(),
            self.0.display()
        )
    }
}
