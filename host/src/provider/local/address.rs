//! Addresses of local instances: `127.77.X.Y`, X for the lab and Y for the instance.
//!
//! X begins at a hash of the lab's path. Whoever holds the abstract unix socket `labhost-127.77.X` owns all of
//! `127.77.X.0/24`; the kernel frees the name when its holder dies, however it dies. A lab whose agent is dead comes
//! back to its block, so this user's other labs leave it alone (`place` knows them). Addresses are not
//! configured anywhere: all of 127.0.0.0/8 is the loopback interface on Linux.

use std::{
    collections::BTreeSet,
    io,
    net::Ipv4Addr,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
};

use crate::Error;

/// The lowest Y; what is below is left for people's own experiments.
const HOST_MIN: u8 = 11;

/// How many instances one lab may have: what fits into X's block, with room to spare.
pub(super) const INSTANCES_MAX: usize = 200;

/// A lab's block of addresses, held while this value lives.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) octet: u8,
    _holder: UnixListener,
}

impl Block {
    /// Takes exactly this block; errors when another lab holds it.
    pub(super) fn claim(octet: u8) -> io::Result<Self> {
        let name = SocketAddr::from_abstract_name(format!("labhost-127.77.{octet}"))?;
        Ok(Self { octet, _holder: UnixListener::bind_addr(&name)? })
    }

    /// Takes the block that the lab's id points to, or the next free one. Those of `others` are taken last.
    pub(super) fn claim_any(lab: &str, others: &BTreeSet<u8>) -> Result<Self, Error> {
        candidates(lab, others).find_map(|octet| Self::claim(octet).ok()).ok_or_else(|| {
            Error::host("claim addresses: all blocks from 127.77.1.0 to 127.77.254.0 are taken").with_hint(
                "another program holds the abstract unix sockets labhost-127.77.X; `ss -xl` shows them",
            )
        })
    }

    pub(super) fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 77, self.octet, host)
    }

    /// The lowest `count` addresses that no one in `taken` has.
    pub(super) fn free(&self, taken: &BTreeSet<Ipv4Addr>, count: usize) -> Vec<Ipv4Addr> {
        (HOST_MIN..255).map(|host| self.address(host)).filter(|it| !taken.contains(it)).take(count).collect()
    }
}

/// All X, in the order in which they are tried.
fn candidates(lab: &str, others: &BTreeSet<u8>) -> impl Iterator<Item = u8> {
    let start = u32::from_str_radix(lab, 16).unwrap_or(0);
    let blocks = (0..254).map(|step| ((start % 254 + step) % 254 + 1) as u8);
    let (last, first): (Vec<u8>, Vec<u8>) = blocks.partition(|octet| others.contains(octet));
    first.into_iter().chain(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_block_is_skipped_and_free_again_afterwards() {
        let first = Block::claim_any("0000beef", &BTreeSet::new()).unwrap();
        let second = Block::claim_any("0000beef", &BTreeSet::new()).unwrap();
        assert_ne!(first.octet, second.octet);
        assert!(Block::claim(first.octet).is_err());
        let octet = first.octet;
        drop(first);
        assert_eq!(Block::claim(octet).unwrap().octet, octet);
    }

    #[test]
    fn blocks_of_other_labs_are_taken_last() {
        let order: Vec<u8> = candidates("00000005", &BTreeSet::from([6, 8])).collect();
        assert_eq!(order[..3], [7, 9, 10]);
        assert_eq!(order[252..], [6, 8]);
        assert_eq!(order.len(), 254);
    }

    #[test]
    fn the_lowest_free_addresses_are_taken() {
        let block = Block::claim_any("0000cafe", &BTreeSet::new()).unwrap();
        let taken = BTreeSet::from([block.address(11), block.address(13)]);
        assert_eq!(block.free(&taken, 2), [block.address(12), block.address(14)]);
        assert_eq!(block.free(&taken, 999).len(), 242);
    }
}
