//! The generated gRPC API, with hand-written `Debug` and `Drop` for messages that carry secrets.

use std::fmt;

use zeroize::Zeroize;

/// The encoded descriptors of both services, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// `kiam.node.v1`: the stream from a server to the agent of one node.
pub mod node {
    /// Version 1.
    #[expect(
        missing_docs,
        clippy::allow_attributes_without_reason,
        clippy::allow_attributes,
        clippy::clone_on_ref_ptr,
        reason = "generated; documented in proto/kiam/node/v1/node.proto"
    )]
    pub mod v1 {
        tonic::include_proto!("kiam.node.v1");
    }
}

/// `kiam`: the API of kiam v3 and v4, for the agents of those versions.
#[expect(
    missing_docs,
    clippy::allow_attributes_without_reason,
    clippy::allow_attributes,
    clippy::clone_on_ref_ptr,
    reason = "generated; documented in proto/kiam/kiam.proto"
)]
pub mod legacy {
    tonic::include_proto!("kiam");
}

impl fmt::Debug for node::v1::CredentialsIssued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialsIssued")
            .field("identity", &self.identity)
            .field("access_key_id", &self.access_key_id)
            .field("expiration", &self.expiration)
            .finish_non_exhaustive()
    }
}

impl Drop for node::v1::CredentialsIssued {
    fn drop(&mut self) {
        self.secret_access_key.zeroize();
        self.session_token.zeroize();
    }
}

impl fmt::Debug for legacy::Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("code", &self.code)
            .field("access_key_id", &self.access_key_id)
            .field("expiration", &self.expiration)
            .finish_non_exhaustive()
    }
}

impl Drop for legacy::Credentials {
    fn drop(&mut self) {
        self.secret_access_key.zeroize();
        self.token.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_omits_secrets_even_in_nested_messages() {
        let mut issued = node::v1::CredentialsIssued::default();
        issued.access_key_id = "ASIAEXAMPLE".into();
        issued.secret_access_key = "hunter2".into();
        issued.session_token = "hunter3".into();
        let response = node::v1::WatchResponse {
            update: Some(node::v1::watch_response::Update::CredentialsIssued(issued)),
        };
        let mut legacy = legacy::Credentials::default();
        legacy.secret_access_key = "hunter2".into();
        legacy.token = "hunter3".into();
        let text = format!("{response:?} {legacy:?}");
        assert!(text.contains("ASIAEXAMPLE"), "{text}");
        assert!(!text.contains("hunter"), "{text}");
    }
}
