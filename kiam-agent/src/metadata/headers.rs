//! Headers of IMDSv2.

/// Holds a session token.
pub(super) const TOKEN: &str = "x-aws-ec2-metadata-token";
/// Holds the life that is asked for a session token, and the life that it got, in seconds.
pub(super) const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
