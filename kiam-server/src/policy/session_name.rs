//! Session names, as kiam makes them.

/// The longest session name (STS API reference, `AssumeRole`, `RoleSessionName`).
const MAX_BYTES: usize = 64;

/// `kiam-` and the name, with what STS does not take replaced by `-`, cut to its limit.
#[must_use]
pub fn session_name(name: &str) -> String {
    let valid = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    let cleaned = name.chars().map(|c| if valid(c) { c } else { '-' });
    "kiam-".chars().chain(cleaned).take(MAX_BYTES).collect()
}
