//! A buddy allocator by index: `order` o is 2^o granules, aligned to their own length. Metadata are two
//! links and a byte for each granule, all made at the start; nothing is kept in the memory itself,
//! which the card's cores may not be able to touch.

use super::CLASSES_MAX;

/// No granule.
const NONE: u32 = u32::MAX;
/// [`Node::free_order`] of a granule that does not begin a free block.
const NOT_FREE: u8 = u8::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    previous: u32,
    next: u32,
    /// The order of the free block that begins here.
    free_order: u8,
}

/// Free blocks of `granules` granules.
#[derive(Debug)]
pub(super) struct Buddy {
    nodes: Box<[Node]>,
    heads: [u32; CLASSES_MAX],
    /// Bit o: there is a free block of order o.
    available: u32,
    orders: usize,
    free_granules: u32,
}

impl Buddy {
    /// All of `granules` free, in blocks of at most order `orders - 1`; the rest that no greatest
    /// block fits in, in lesser ones.
    pub(super) fn new(granules: u32, orders: usize) -> Self {
        let node = Node { previous: NONE, next: NONE, free_order: NOT_FREE };
        let mut buddy = Self {
            nodes: vec![node; granules as usize].into_boxed_slice(),
            heads: [NONE; CLASSES_MAX],
            available: 0,
            orders,
            free_granules: granules,
        };
        // From the end, so that the lists begin with the lowest blocks.
        let mut end = granules;
        while end > 0 {
            let order = (end.trailing_zeros() as usize).min(orders - 1);
            end -= 1 << order;
            buddy.link(end, order);
        }
        buddy
    }

    /// Takes a block of `order`, splitting the least longer one when there is none.
    pub(super) fn claim(&mut self, order: usize) -> Option<u32> {
        let fitting = self.available >> order;
        if fitting == 0 {
            return None;
        }
        let mut found = order + fitting.trailing_zeros() as usize;
        let granule = self.heads[found];
        self.unlink(granule, found);
        while found > order {
            found -= 1;
            self.link(granule + (1 << found), found);
        }
        self.free_granules -= 1 << order;
        Some(granule)
    }

    /// Takes a block back and merges it with its free buddies.
    pub(super) fn release(&mut self, granule: u32, order: usize) {
        self.free_granules += 1 << order;
        let (mut granule, mut order) = (granule, order);
        while order + 1 < self.orders {
            let buddy = granule ^ (1 << order);
            // A block at the arena's end may have no buddy, or one of a lesser order.
            let free = self.nodes.get(buddy as usize).map_or(NOT_FREE, |node| node.free_order);
            if usize::from(free) != order {
                break;
            }
            self.unlink(buddy, order);
            granule &= buddy;
            order += 1;
        }
        self.link(granule, order);
    }

    /// Granules in free blocks.
    #[cfg(test)]
    pub(super) fn free_granules(&self) -> u32 {
        self.free_granules
    }

    /// The free blocks as (granule, order), ascending.
    #[cfg(test)]
    pub(super) fn free_blocks(&self) -> Vec<(u32, usize)> {
        (0_u32..)
            .zip(&self.nodes)
            .filter(|(_, node)| node.free_order != NOT_FREE)
            .map(|(granule, node)| (granule, usize::from(node.free_order)))
            .collect()
    }

    fn link(&mut self, granule: u32, order: usize) {
        let next = self.heads[order];
        if next != NONE {
            self.nodes[next as usize].previous = granule;
        }
        self.nodes[granule as usize] = Node { previous: NONE, next, free_order: order as u8 };
        self.heads[order] = granule;
        self.available |= 1 << order;
    }

    fn unlink(&mut self, granule: u32, order: usize) {
        let Node { previous, next, .. } = self.nodes[granule as usize];
        self.nodes[granule as usize].free_order = NOT_FREE;
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        if previous != NONE {
            self.nodes[previous as usize].next = next;
        } else {
            self.heads[order] = next;
            if next == NONE {
                self.available &= !(1 << order);
            }
        }
    }
}
