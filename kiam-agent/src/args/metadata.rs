//! What of the metadata service pods are given other than their credentials' own paths.

use std::net::Ipv4Addr;

use regex::{Regex, RegexBuilder};

/// The longest expression that is taken, compiled, in bytes.
const MAX_COMPILED_BYTES: usize = 1024 * 1024;
/// Where EKS Pod Identity's agent is.
const POD_IDENTITY: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 23);

/// What pods are given.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Metadata service")]
pub struct MetadataFlags {
    /// Paths of the node's own metadata service that pods may read, as a regular expression for the
    /// whole path, as in /latest/meta-data/placement/.*; the node's credentials never. None if not
    /// given
    #[arg(long, alias = "whitelist-route-regexp", value_name = "REGEXP", value_parser = allowed_routes)]
    pub allow_route_regexp: Option<Regex>,

    /// Answer the role's path without a slash at its end by a redirect to the one with it, as kiam
    /// did. Some clients do not follow it and fail, or go on without credentials
    #[arg(long)]
    pub legacy_redirects: bool,

    /// Serve the credentials to containers' SDKs as well, at http://IP/v1/credentials; with
    /// 169.254.170.2, pods set AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v1/credentials. Off if not
    /// given
    #[arg(long, value_name = "IP", value_parser = container_address)]
    pub container_credentials_address: Option<Ipv4Addr>,
}

/// An expression that the whole of a path must match.
pub(crate) fn allowed_routes(text: &str) -> Result<Regex, String> {
    let whole = format!("^(?:{text})$");
    // Checked on its own, so that no parenthesis of it ends the one around it.
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
        .map_err(|_no| "is no IPv4 address".to_owned())?;
    match address.octets() {
        _ if address == POD_IDENTITY => {
            Err("that is where the agent of EKS Pod Identity is; take 169.254.170.2".to_owned())
        }
        [169, 254, 169, 254] => Err("that is the metadata service itself".to_owned()),
        [169, 254, ..] => Ok(address),
        _ => Err("no link-local address, as 169.254.170.2 is".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_for_the_whole_path() {
        let matches =
            |expression: &str, path: &str| allowed_routes(expression).unwrap().is_match(path);
        assert!(matches("/a|/b", "/b") && !matches("/a|/b", "/a/x"));
        assert!(!matches("^$", "/") && !matches("", "/"));
        for bad in ["(", ")|(.*", "a{1000}{1000}{1000}"] {
            assert!(allowed_routes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_container_s_address_is_nobody_else_s() {
        assert!(container_address("169.254.170.2").is_ok());
        for bad in ["169.254.170.23", "169.254.169.254", "10.0.0.1", "x", "::1"] {
            assert!(container_address(bad).is_err(), "{bad}");
        }
    }
}
