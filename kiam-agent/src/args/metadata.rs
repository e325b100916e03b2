//! Flags of the metadata service that pods see.

use std::net::Ipv4Addr;

use kiam_common::metadata_address::METADATA_V4;
use regex::{Regex, RegexBuilder};

/// Maximum size of a compiled regular expression, in bytes.
const MAX_COMPILED_BYTES: usize = 1024 * 1024;
/// Address of the EKS Pod Identity agent.
const POD_IDENTITY: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 23);

/// Paths and formats that pods get beyond the standard paths of their credentials.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Metadata service")]
pub(crate) struct MetadataFlags {
    /// Paths of the node's metadata service that pods may read, as a regular expression
    ///
    /// It must match the whole path, as /latest/meta-data/placement/.* does. The credentials of the
    /// node are never passed on. Default: none.
    #[arg(long, alias = "whitelist-route-regexp", value_name = "REGEXP", value_parser = allowed_routes)]
    pub(crate) allow_route_regexp: Option<Regex>,

    /// Redirect the role's path without a trailing slash to the one with it, as kiam did
    ///
    /// Some clients do not follow the redirect and fail, or continue without credentials.
    #[arg(long)]
    pub(crate) legacy_redirects: bool,

    /// Serve credentials at http://IP/v1/credentials too, for SDKs in containers
    ///
    /// With 169.254.170.2, pods set AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v1/credentials.
    /// Default: off.
    #[arg(long, value_name = "IP", value_parser = container_address)]
    pub(crate) container_credentials_address: Option<Ipv4Addr>,
}

/// Parses an expression that must match a whole path.
pub(crate) fn allowed_routes(text: &str) -> Result<Regex, String> {
    let whole = format!("^(?:{text})$");
    // Compiled alone first, so that none of its parentheses closes the group around it.
    Regex::new(text)
        .and_then(|_valid| {
            RegexBuilder::new(&whole)
                .size_limit(MAX_COMPILED_BYTES)
                .build()
        })
        .map_err(|error| error.to_string())
}

fn container_address(text: &str) -> Result<Ipv4Addr, String> {
    let address: Ipv4Addr = text
        .parse()
        .map_err(|_error| "not an IPv4 address".to_owned())?;
    match address.octets() {
        _ if address == POD_IDENTITY => {
            Err("the address of the EKS Pod Identity agent; use 169.254.170.2".to_owned())
        }
        _ if address == METADATA_V4 => Err("the address of the metadata service itself".to_owned()),
        [169, 254, ..] => Ok(address),
        _ => Err("not a link-local address; use 169.254.170.2".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_matches_whole_paths_only() {
        let matches =
            |expression: &str, path: &str| allowed_routes(expression).unwrap().is_match(path);
        assert!(matches("/a|/b", "/b") && !matches("/a|/b", "/a/x"));
        assert!(!matches("^$", "/") && !matches("", "/"));
        for bad in ["(", ")|(.*", "a{1000}{1000}{1000}"] {
            assert!(allowed_routes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reserved_addresses_are_rejected_for_containers() {
        assert!(container_address("169.254.170.2").is_ok());
        for bad in ["169.254.170.23", "169.254.169.254", "10.0.0.1", "x", "::1"] {
            assert!(container_address(bad).is_err(), "{bad}");
        }
    }
}
