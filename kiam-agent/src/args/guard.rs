//! `--guard`: what keeps pods from the metadata service where they are not redirected.

use std::fmt;
use std::str::FromStr;

use super::Redirect;

/// What guards the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// The kernel program on what pods' sockets send.
    pub egress: bool,
    /// The rules on what the node forwards.
    pub route: bool,
}

/// Why a text is no guard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no guard; expected off, or one or more of egress and route, as in egress,route")]
pub struct GuardError(String);

impl Guard {
    /// Nothing.
    pub const OFF: Self = Self {
        egress: false,
        route: false,
    };

    /// All that there is with a way of redirecting.
    #[must_use]
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
    fn guards_are_read_and_printed() {
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
