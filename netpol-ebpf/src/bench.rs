//! The object that drives the four programs in `cargo xtask bench`.
//!
//! `rotate` writes the next key of a ring into the packet and its mark into the `skb`, then tail-calls what is measured:
//! one of the four programs, `empty`, or a bare lookup. What a program costs is the difference to `empty`, so the
//! ring costs nothing, and packets change from run to run without a system call between them.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is an object for the kernel; `cargo xtask bench` builds and runs it");
}

#[cfg(target_arch = "bpf")]
mod programs {
    use core::ptr;

    use aya_ebpf::{
        bindings::{__sk_buff, BPF_F_NO_PREALLOC},
        macros::{classifier, map},
        maps::{Array, HashMap, LpmTrie, LruHashMap, ProgramArray, lpm_trie},
        programs::TcContext,
    };
    use netpol_common::flow::{Flow, Key4};

    /// `TC_ACT_SHOT`
    const DROP: i32 = 2;
    /// Where an IPv4 header without options has its addresses, and the ports behind it.
    const TUPLE: usize = 14 + 12;

    /// One packet of the ring: addresses and ports in network byte order, and the mark it comes with.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Packet {
        src: u32,
        dst: u32,
        ports: u32,
        mark: u32,
    }

    /// What `rotate` goes on to.
    #[map(name = "next")]
    static NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);
    #[map(name = "ring")]
    static RING: Array<Packet> = Array::with_max_entries(1 << 17, 0);
    /// The place in the ring, and its length.
    #[map(name = "at")]
    static AT: Array<[u32; 2]> = Array::with_max_entries(1, 0);
    /// As `hosts4`, `nets4` and `flows4`, for lookups without a program around them.
    #[map(name = "hash")]
    static HASH: HashMap<u32, u32> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);
    #[map(name = "trie")]
    static TRIE: LpmTrie<u32, u32> = LpmTrie::with_max_entries(1, 0);
    #[map(name = "flows")]
    static FLOWS: LruHashMap<Key4, Flow> = LruHashMap::with_max_entries(1, 0);

    /// The packet's addresses and ports, where it is long enough to have them.
    #[inline(always)]
    fn tuple(skb: *mut __sk_buff) -> Option<*mut [u32; 3]> {
        // SAFETY: context fields, read once each: the verifier follows the pointers from these loads.
        let (data, end) = unsafe {
            (
                (&raw const (*skb).data).read_volatile() as usize,
                (&raw const (*skb).data_end).read_volatile() as usize,
            )
        };
        (data + TUPLE + 12 <= end).then_some((data + TUPLE) as *mut [u32; 3])
    }

    /// Makes the packet the ring's next.
    #[classifier]
    fn rotate(ctx: TcContext) -> i32 {
        let skb: *mut __sk_buff = ctx.skb.skb;
        let Some(at) = AT.get_ptr_mut(0) else { return DROP };
        // SAFETY: a live map value; the bench runs one packet at a time.
        let [place, length] = unsafe { *at };
        let following = if place + 1 < length { place + 1 } else { 0 };
        // SAFETY: as above.
        unsafe { (*at)[0] = following };
        let Some(packet) = RING.get(place) else {
            return DROP;
        };
        // SAFETY: a context field; volatile, as the verifier takes only a whole word.
        unsafe { ptr::write_volatile(&raw mut (*skb).mark, packet.mark) };
        let Some(tuple) = tuple(skb) else { return DROP };
        // SAFETY: within the packet, as `tuple` has compared.
        unsafe { tuple.write_unaligned([packet.src, packet.dst, packet.ports]) };
        // SAFETY: nothing is left to be dropped.
        unsafe { NEXT.tail_call(&ctx, 0) };
        DROP
    }

    /// What everything is measured against.
    #[classifier]
    fn empty(_ctx: TcContext) -> i32 {
        0
    }

    /// The source address in a hash.
    #[classifier]
    fn bare_hash(ctx: TcContext) -> i32 {
        let Some(tuple) = tuple(ctx.skb.skb) else {
            return DROP;
        };
        // SAFETY: within the packet; the element is not looked into.
        unsafe { HASH.get(tuple.read_unaligned()[0]).is_some() as i32 }
    }

    /// The source address in a trie of prefixes.
    #[classifier]
    fn bare_trie(ctx: TcContext) -> i32 {
        let Some(tuple) = tuple(ctx.skb.skb) else {
            return DROP;
        };
        // SAFETY: within the packet.
        let source = unsafe { tuple.read_unaligned() }[0];
        TRIE.get(lpm_trie::Key::new(32, source)).is_some() as i32
    }

    /// The TCP tuple in a table of flows.
    #[classifier]
    fn bare_flows(ctx: TcContext) -> i32 {
        let Some(tuple) = tuple(ctx.skb.skb) else {
            return DROP;
        };
        // SAFETY: within the packet.
        let [src, dst, ports] = unsafe { tuple.read_unaligned() };
        let [a, b, c, d] = ports.to_ne_bytes();
        let key = Key4 {
            src,
            dst,
            sport: u16::from_ne_bytes([a, b]),
            dport: u16::from_ne_bytes([c, d]),
            proto: 6,
        };
        // SAFETY: the element is not looked into.
        unsafe { FLOWS.get(key).is_some() as i32 }
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        // SAFETY: no code path panics: the verifier rejects the object if one is left.
        unsafe { core::hint::unreachable_unchecked() }
    }

    /// Not part of what is shipped; the kernel counts it as GPL.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 4] = *b"GPL\0";
}
