//! Processor architectures, by the names that Debian, Rust and QEMU have for them.

use std::fmt;

use anyhow::{Result, bail};

/// A processor architecture that kiam is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Architecture {
    /// x86-64.
    Amd64,
    /// aarch64.
    Arm64,
}

impl Architecture {
    /// This machine's.
    ///
    /// # Errors
    /// Fails when kiam is not built for it.
    pub fn native() -> Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("kiam is built for x86_64 and aarch64, and this is {other}"),
        }
    }

    /// Returns whether this machine's processor has this architecture.
    pub fn is_native(self) -> bool {
        Self::native().is_ok_and(|native| native == self)
    }

    /// Debian's, Go's and images' name.
    pub const fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Rust's target.
    pub const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Debian's folder of libraries, and the prefix of cross compilers.
    pub const fn multiarch(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        }
    }

    /// Program that links programs for it.
    pub fn linker(self) -> String {
        format!("{}-gcc", self.multiarch())
    }

    /// Name of the architecture as used by QEMU and the makers of processors.
    pub const fn processor(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.debian())
    }
}
