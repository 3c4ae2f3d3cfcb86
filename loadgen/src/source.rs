//! Which local address a connection comes from. The kernel's search for a free port slows down when one source
//! address has many, so each address carries at most `PORTS_PER_ADDRESS` connections.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Connections per source address.
pub(crate) const PORTS_PER_ADDRESS: u32 = 2_000;

/// A range of source addresses, for example `127.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sources {
    first: u32,
    /// At least 1.
    addresses: u32,
}

impl Sources {
    /// The addresses to use when none are asked for: all of 127.0.0.0/8 against a loopback target; elsewhere the kernel chooses.
    pub(crate) fn for_target(target: IpAddr) -> Option<Self> {
        match target {
            IpAddr::V4(address) if address.is_loopback() => {
                Some(Self::network(Ipv4Addr::new(127, 0, 0, 0), 8))
            }
            _ => None,
        }
    }

    /// The address connection `index` comes from. After the last address the first has its turn again.
    pub(crate) fn address(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first + index / PORTS_PER_ADDRESS % self.addresses)
    }

    /// The hosts of a network: without its own address and the broadcast address, where there is room for both.
    /// 127.0.0.1 is left out too, for others use it.
    fn network(address: Ipv4Addr, prefix_bits: u32) -> Self {
        let host_bits = 32 - prefix_bits;
        let lowest = (u64::from(address.to_bits()) >> host_bits << host_bits) as u32;
        let addresses = 1u64 << host_bits;
        if addresses <= 2 {
            return Self { first: address.to_bits(), addresses: 1 };
        }
        let mut sources = Self { first: lowest + 1, addresses: (addresses - 2) as u32 };
        if sources.first == Ipv4Addr::LOCALHOST.to_bits() && sources.addresses > 1 {
            sources.first += 1;
            sources.addresses -= 1;
        }
        sources
    }
}

impl FromStr for Sources {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix_bits) = text.split_once('/').unwrap_or((text, "32"));
        let address = address.parse::<Ipv4Addr>().map_err(|_| format!("{address} is not an IPv4 address"))?;
        match prefix_bits.parse::<u32>() {
            Ok(bits @ 1..=32) => Ok(Self::network(address, bits)),
            _ => Err(format!("/{prefix_bits} is not a prefix length between 1 and 32")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_starts_at_the_second_address_and_takes_the_next_after_two_thousand() {
        let sources = Sources::for_target(IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
        assert_eq!(sources, "127.0.0.0/8".parse().unwrap());
        assert_eq!(sources.address(0), Ipv4Addr::new(127, 0, 0, 2));
        assert_eq!(sources.address(1_999), Ipv4Addr::new(127, 0, 0, 2));
        assert_eq!(sources.address(2_000), Ipv4Addr::new(127, 0, 0, 3));
        assert_eq!(sources.address(999_999), Ipv4Addr::new(127, 0, 1, 245));
    }

    #[test]
    fn a_range_is_used_in_turn_and_a_single_address_always() {
        let range: Sources = "10.1.2.77/30".parse().unwrap();
        assert_eq!(range.address(0), Ipv4Addr::new(10, 1, 2, 77));
        assert_eq!(range.address(2_000), Ipv4Addr::new(10, 1, 2, 78));
        assert_eq!(range.address(4_000), Ipv4Addr::new(10, 1, 2, 77));
        let single: Sources = "10.1.2.3".parse().unwrap();
        assert_eq!(single.address(1_000_000), Ipv4Addr::new(10, 1, 2, 3));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "10.0.0.0/0", "10.0.0.0/33", "10.0.0/8", "::1/64"] {
            assert!(text.parse::<Sources>().is_err(), "{text}");
        }
    }

    #[test]
    fn elsewhere_the_kernel_chooses() {
        assert_eq!(Sources::for_target("192.0.2.1".parse().unwrap()), None);
        assert_eq!(Sources::for_target("::1".parse().unwrap()), None);
    }
}
