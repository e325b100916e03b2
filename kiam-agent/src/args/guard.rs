//! `--guard`: the guards on paths to the metadata service that are not redirected.

use std::fmt;
use std::str::FromStr;

use super::Redirect;

/// The guards of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// The kernel program that drops packets of pods' sockets.
    pub(crate) egress: bool,
    /// The routing rules that reject forwarded packets.
    pub route: bool,
}

/// Error for a text that names no guards.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a guard: expected off, or egress, route or both, as in egress,route")]
pub struct GuardError(String);

impl Guard {
    const OFF: Self = Self {
        egress: false,
        route: false,
    };

    /// Returns all guards that a redirection mode supports.
    pub const fn all(redirect: Redirect) -> Self {
        Self {
            egress: matches!(redirect, Redirect::Ebpf),
            route: true,
        }
    }
}

impl FromStr for Guard {
    type Err = GuardError;

    fn from_str(text: &str) -> Result<Self, GuardError> {
        let mut guard = Self::OFF;
        if text == "off" {
            return Ok(guard);
        }
        for word in text.split(',') {
            match word {
                "egress" => guard.egress = true,
                "route" => guard.route = true,
                _ => return Err(GuardError(text.to_owned())),
            }
        }
        Ok(guard)
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.egress, self.route) {
            (true, true) => "egress,route",
            (true, false) => "egress",
            (false, true) => "route",
            (false, false) => "off",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_are_parsed_and_printed() {
        for (text, printed) in [
            ("off", "off"),
            ("egress", "egress"),
            ("route", "route"),
            ("egress,route", "egress,route"),
            ("route,egress", "egress,route"),
        ] {
            assert_eq!(text.parse::<Guard>().unwrap().to_string(), printed);
        }
        for text in ["", "on", "egress,", "egress,off", "Route"] {
            assert!(text.parse::<Guard>().is_err(), "{text}");
        }
        assert_eq!(Guard::all(Redirect::Ebpf).to_string(), "egress,route");
        assert_eq!(Guard::all(Redirect::Iptables).to_string(), "route");
    }
}
