//! Session names, in the format of kiam.

/// The longest session name (STS API reference, `AssumeRole`, `RoleSessionName`).
const MAX_BYTES: usize = 64;

/// Returns `kiam-` and the name. Characters that STS rejects are replaced by `-`, and the result is
/// truncated to its limit.
pub fn session_name(name: &str) -> String {
    let valid = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    let cleaned = name.chars().map(|c| if valid(c) { c } else { '-' });
    "kiam-".chars().chain(cleaned).take(MAX_BYTES).collect()
}
