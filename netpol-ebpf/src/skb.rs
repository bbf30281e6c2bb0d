//! What the programs need of a packet's buffer.

/// A packet at a TC hook.
pub trait Skb {
    /// `N` bytes at `offset` from the link layer header, if they are in the buffer's linear part.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// Brings more of the packet into the linear part; false where all that may be asked for is there already.
    fn pull(&self) -> bool;
    /// Length in bytes, from the link layer header on.
    fn len(&self) -> u32;
    /// Whether the packet has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether the packet begins with its IP header, as the device has no link layer.
    fn is_bare(&self) -> bool;
    /// Says that it does.
    fn set_bare(&mut self);
    /// `skb->protocol`, an Ethernet type in host byte order.
    fn protocol(&self) -> u16;
    /// `skb->mark`
    fn mark(&self) -> u32;
    /// Writes `skb->mark`.
    fn set_mark(&mut self, mark: u32);
    /// The device whose hook runs.
    fn ifindex(&self) -> u32;
    /// The device on which the packet came to this host; 0 = it was made here.
    fn ingress_ifindex(&self) -> u32;
}

#[cfg(target_arch = "bpf")]
pub use kernel::KernelSkb;

#[cfg(target_arch = "bpf")]
mod kernel {
    use core::ptr;

    use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_pull_data};

    use super::Skb;

    /// Offsets beyond this are never asked for; tells the verifier that they are bounded.
    const MAX_OFFSET: u32 = 0x3ff;

    /// The `__sk_buff` of a TC program.
    pub struct KernelSkb {
        ctx: *mut __sk_buff,
        bare: bool,
    }

    impl KernelSkb {
        /// # Safety
        /// `ctx` is the context that the kernel passed to the program.
        #[inline(always)]
        pub unsafe fn new(ctx: *mut __sk_buff) -> Self {
            Self { ctx, bare: false }
        }

        /// Where the linear part begins. Volatile, as LLVM may otherwise keep the 32-bit field across calls and
        /// widen it by shifts, which the verifier rejects for a pointer into the packet.
        #[inline(always)]
        fn data(&self) -> usize {
            // SAFETY: a context field.
            unsafe { (&raw const (*self.ctx).data).read_volatile() as usize }
        }

        /// Where the linear part ends. Volatile as `data`.
        #[inline(always)]
        fn data_end(&self) -> usize {
            // SAFETY: a context field.
            unsafe { (&raw const (*self.ctx).data_end).read_volatile() as usize }
        }
    }

    impl Skb for KernelSkb {
        #[inline(always)]
        fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
            let offset = offset & MAX_OFFSET;
            // SAFETY: `ctx` is the program's context; the bytes are within data..data_end, as the verifier checks.
            unsafe {
                let start = self.data() + offset as usize;
                let end = self.data_end();
                (start + N <= end).then(|| ptr::read_unaligned(start as *const [u8; N]))
            }
        }

        #[inline(always)]
        fn pull(&self) -> bool {
            // SAFETY: `ctx` is the program's context; no pointer into the packet is kept.
            unsafe {
                let wanted = if (*self.ctx).len < MAX_OFFSET {
                    (*self.ctx).len
                } else {
                    MAX_OFFSET
                };
                let end = self.data_end();
                self.data() + wanted as usize > end && bpf_skb_pull_data(self.ctx, wanted) == 0
            }
        }

        #[inline(always)]
        fn len(&self) -> u32 {
            // SAFETY: a context field.
            unsafe { (*self.ctx).len }
        }

        #[inline(always)]
        fn is_bare(&self) -> bool {
            self.bare
        }

        #[inline(always)]
        fn set_bare(&mut self) {
            self.bare = true;
        }

        #[inline(always)]
        fn protocol(&self) -> u16 {
            // SAFETY: a context field, in network byte order.
            u16::from_be(unsafe { (*self.ctx).protocol } as u16)
        }

        #[inline(always)]
        fn mark(&self) -> u32 {
            // SAFETY: a context field.
            unsafe { (*self.ctx).mark }
        }

        #[inline(always)]
        fn set_mark(&mut self, mark: u32) {
            // SAFETY: a context field. Volatile, as LLVM may otherwise narrow the store of a value whose low
            // half is unchanged to 16 bits, which the verifier rejects.
            unsafe { ptr::write_volatile(&raw mut (*self.ctx).mark, mark) }
        }

        #[inline(always)]
        fn ifindex(&self) -> u32 {
            // SAFETY: a context field.
            unsafe { (*self.ctx).ifindex }
        }

        #[inline(always)]
        fn ingress_ifindex(&self) -> u32 {
            if cfg!(feature = "ingress-in-priority") {
                // SAFETY: a context field.
                return unsafe { (*self.ctx).priority };
            }
            // SAFETY: a context field.
            unsafe { (*self.ctx).ingress_ifindex }
        }
    }
}

/// A packet in memory, for tests on the host.
#[cfg(not(target_arch = "bpf"))]
#[derive(Clone, Debug, Default)]
pub struct HostSkb {
    /// From the link layer header on.
    pub bytes: Vec<u8>,
    /// How many bytes are not in the linear part.
    pub paged: std::cell::Cell<usize>,
    /// Whether there is no link layer header.
    pub bare: bool,
    /// `skb->protocol`; read only where there is no link layer header.
    pub protocol: u16,
    /// `skb->mark`
    pub mark: u32,
    /// The device whose hook runs.
    pub ifindex: u32,
    /// Where the packet came in; 0 = made here.
    pub ingress_ifindex: u32,
}

#[cfg(not(target_arch = "bpf"))]
impl Skb for HostSkb {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = offset as usize;
        self.bytes[..self.bytes.len() - self.paged.get()]
            .get(start..start + N)?
            .try_into()
            .ok()
    }

    fn pull(&self) -> bool {
        self.paged.replace(0) != 0
    }

    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn is_bare(&self) -> bool {
        self.bare
    }

    fn set_bare(&mut self) {
        self.bare = true;
    }

    fn protocol(&self) -> u16 {
        self.protocol
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn ingress_ifindex(&self) -> u32 {
        self.ingress_ifindex
    }
}
