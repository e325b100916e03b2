//! Headers of IMDSv2.

/// Session token.
pub(super) const TOKEN: &str = "x-aws-ec2-metadata-token";
/// Requested and granted lifetime of a session token, in seconds.
pub(super) const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
