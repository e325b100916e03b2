//! Durations in Go's notation (`1h30m`, `800ms`), the notation of kiam's flags.

use std::time::Duration;

/// The error of [`parse`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid duration {text:?}; write a number and a unit, for example 800ms, 30s, 15m or 1h30m"
)]
pub struct DurationError {
    text: String,
}

const UNITS: [(&str, f64); 6] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// Parses one or more pairs of a number and a unit (ns, us, ms, s, m, h), or `0`.
///
/// # Errors
/// When the text is anything else, negative, or exceeds [`Duration::MAX`].
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError {
        text: text.to_owned(),
    };
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    loop {
        let number_end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(error)?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let number: f64 = number.parse().ok().ok_or_else(error)?;
        let (_, scale) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(error)?;
        seconds += number * scale;
        rest = tail;
        if rest.is_empty() {
            return Duration::try_from_secs_f64(seconds).ok().ok_or_else(error);
        }
    }
}

/// Formats a duration so that [`parse`] accepts it, truncated to seconds from one minute up and to
/// milliseconds below.
pub fn format(duration: Duration) -> String {
    if duration < Duration::from_secs(60) {
        let millis = duration.as_millis();
        return if millis.is_multiple_of(1000) {
            format!("{}s", millis / 1000)
        } else {
            format!("{millis}ms")
        };
    }
    let seconds = duration.as_secs();
    let parts = [
        (seconds / 3600, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    parts
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, unit)| format!("{n}{unit}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_accepts_the_notation_of_go() {
        for (text, expected) in [
            ("0", 0.0),
            ("0s", 0.0),
            ("800ms", 0.8),
            ("1.5s", 1.5),
            ("15m", 900.0),
            ("1h30m", 5400.0),
            ("1h0m0s", 3600.0),
        ] {
            assert_eq!(parse(text).unwrap().as_secs_f64(), expected, "{text}");
        }
        for text in [
            "",
            "15",
            "m",
            "1x",
            "-1s",
            "1h-5m",
            "1 s",
            "1..5s",
            "9999999999999999999h",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn format_and_parse_are_inverse() {
        for text in ["0s", "800ms", "45s", "15m", "1h30m", "1h1m1s"] {
            assert_eq!(format(parse(text).unwrap()), text);
        }
    }
}
