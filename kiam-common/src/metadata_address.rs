//! The addresses of the EC2 instance metadata service, as AWS documents them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// 169.254.169.254, the address of the service on every instance.
pub const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// fd00:ec2::254, its address on Nitro instances that have IPv6 enabled.
pub const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// 169.254.169.254:80, the address that SDKs use by default.
pub const METADATA_SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(METADATA_V4), 80);
