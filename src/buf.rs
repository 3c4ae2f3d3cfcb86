//! Buffers for messages that have not arrived whole.
//!
//! An idle connection owns no buffer: bytes are read into the reactor's scratch and parsed there. Only when a
//! message is cut short does the connection lease one from its shard's [`Pool`], and it gives it back when the message
//! is complete or the connection ends.

/// A shard's buffers for unfinished messages. Bounded by `bytes_max` over all leases; a lease that would grow past it
/// is refused, and the caller closes the connection that asked. A small lease is always granted, so that those who hoard large ones do
/// not shut out everybody whose message happens to be cut in two: in all there are `bytes_max` and [`SMALL_BYTES`] a lease, of which a
/// connection has at most three.
#[derive(Debug)]
pub struct Pool {
    /// Buffers to hand out again. Each has at most [`KEPT_BYTES_MAX`] of capacity, and there are at most [`KEPT_MAX`].
    free: Vec<Vec<u8>>,
    /// Capacity of all leases together.
    leased_bytes: usize,
    /// Leases out now.
    leases: usize,
    bytes_max: usize,
}

/// A leased buffer. Not returned by dropping it, so that the pool needs no pointer in each: whoever holds one gives it
/// back with [`Pool::give_back`].
#[derive(Debug)]
#[must_use]
pub struct Lease {
    bytes: Vec<u8>,
}

/// The pool holds as many bytes as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolFull;

/// A buffer larger than this goes back to the allocator rather than to the pool, in bytes.
const KEPT_BYTES_MAX: usize = 16 * 1024;
/// The most buffers a pool keeps for later.
const KEPT_MAX: usize = 64;
/// A lease of up to this many bytes is granted whatever the others hold.
pub const SMALL_BYTES: usize = 4 * 1024;
/// The smallest capacity that is worth an allocation, in bytes.
const CAPACITY_MIN: usize = 256;

impl Pool {
    /// A pool whose leases hold at most `bytes_max` together.
    pub fn new(bytes_max: usize) -> Pool {
        Pool { free: Vec::new(), leased_bytes: 0, leases: 0, bytes_max }
    }

    /// Lets leases hold at least `bytes_max` together. What they may hold already stays: a message that has begun is to end.
    pub fn allow(&mut self, bytes_max: usize) {
        self.bytes_max = self.bytes_max.max(bytes_max);
    }

    /// An empty buffer. It costs nothing until bytes are put in.
    pub fn lease(&mut self) -> Lease {
        self.leases += 1;
        Lease { bytes: Vec::new() }
    }

    /// Appends `bytes` to `lease`. Capacity doubles as bytes really arrive: a length that a peer only claims costs nothing.
    ///
    /// # Errors
    /// [`PoolFull`], and the lease is as it was.
    pub fn extend(&mut self, lease: &mut Lease, bytes: &[u8]) -> Result<(), PoolFull> {
        let needed = lease.bytes.len() + bytes.len();
        let had = lease.bytes.capacity();
        if needed > had {
            let wanted = needed.next_power_of_two().max(CAPACITY_MIN);
            if had == 0
                && let Some(kept) = self.free.pop_if(|kept| kept.capacity() >= needed)
            {
                if needed > SMALL_BYTES && self.leased_bytes + kept.capacity() > self.bytes_max {
                    return Err(PoolFull);
                }
                lease.bytes = kept;
            } else {
                if needed > SMALL_BYTES && self.leased_bytes + wanted - had > self.bytes_max {
                    return Err(PoolFull);
                }
                lease.bytes.reserve_exact(wanted - lease.bytes.len());
            }
            self.leased_bytes += lease.bytes.capacity() - had;
        }
        lease.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Ends a lease.
    pub fn give_back(&mut self, lease: Lease) {
        let bytes = self.end(lease);
        self.keep(bytes);
    }

    /// Ends a lease whose message is whole: while it is carried out it does not count, lest what is kept of it counts twice. There is one
    /// such message at a time. The buffer is for [`Pool::keep`].
    pub fn end(&mut self, lease: Lease) -> Vec<u8> {
        self.leases -= 1;
        self.leased_bytes -= lease.bytes.capacity();
        lease.bytes
    }

    /// Takes back that a lease was ended: the message was not whole after all.
    pub fn renew(&mut self, bytes: Vec<u8>) -> Lease {
        self.leases += 1;
        self.leased_bytes += bytes.capacity();
        Lease { bytes }
    }

    /// Keeps the buffer of a lease that was ended, to hand it out again, if it is worth that.
    pub fn keep(&mut self, mut bytes: Vec<u8>) {
        if bytes.capacity() > 0 && bytes.capacity() <= KEPT_BYTES_MAX && self.free.len() < KEPT_MAX {
            bytes.clear();
            self.free.push(bytes);
        }
    }

    /// Leases that have not come back. 0 when no message is unfinished.
    pub fn leases(&self) -> usize {
        self.leases
    }

    /// Bytes that leases hold now.
    pub fn leased_bytes(&self) -> usize {
        self.leased_bytes
    }
}

impl Lease {
    /// What has been put in.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What has been put in, to change in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_grows_with_what_arrives_and_goes_back() {
        let mut pool = Pool::new(1 << 20);
        let mut lease = pool.lease();
        assert_eq!(pool.leased_bytes(), 0, "an empty lease costs nothing");
        for _ in 0..100 {
            pool.extend(&mut lease, &[7; 100]).expect("well within the bound");
        }
        assert_eq!(lease.bytes().len(), 10_000);
        assert!(pool.leased_bytes() >= 10_000 && pool.leased_bytes() < 32_768);
        pool.give_back(lease);
        assert_eq!((pool.leases(), pool.leased_bytes()), (0, 0));
        let mut again = pool.lease();
        pool.extend(&mut again, &[1]).expect("a kept buffer serves again");
        assert_eq!(again.bytes(), [1]);
        pool.give_back(again);
    }

    #[test]
    fn the_bound_holds_over_all_leases() {
        let mut pool = Pool::new(100_000);
        let (mut one, mut two) = (pool.lease(), pool.lease());
        pool.extend(&mut one, &[0; 50_000]).expect("65,536 of 100,000");
        pool.extend(&mut two, &[0; 100]).expect("a small one");
        assert_eq!(pool.extend(&mut two, &[0; 50_000]), Err(PoolFull));
        assert_eq!(two.bytes().len(), 100, "a refused lease is as it was");
        let mut three = pool.lease();
        pool.extend(&mut three, &[0; SMALL_BYTES]).expect("a small one is always granted");
        pool.give_back(three);
        pool.give_back(one);
        pool.extend(&mut two, &[0; 50_000]).expect("there is room again");
        pool.give_back(two);
        assert_eq!(pool.leased_bytes(), 0);
    }
}
