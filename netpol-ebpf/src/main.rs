//! The kernel object: four TC classifiers and a clock.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is the kernel object of netpol; `cargo xtask build` builds it for the kernel");
}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
    use netpol_ebpf::{hooks, skb::KernelSkb};

    /// Lets the next program or filter of the device decide (`TCX_NEXT`, `TC_ACT_UNSPEC`).
    const NEXT: i32 = -1;
    /// `TC_ACT_SHOT`
    const DROP: i32 = 2;

    #[inline(always)]
    fn answer(drop: bool) -> i32 {
        if drop { DROP } else { NEXT }
    }

    #[inline(always)]
    fn skb(ctx: &TcContext) -> KernelSkb {
        let raw: *mut __sk_buff = ctx.skb.skb;
        // SAFETY: the context that the kernel passed.
        unsafe { KernelSkb::new(raw) }
    }

    /// TC ingress of a pod's veth.
    #[classifier]
    fn from_pod(ctx: TcContext) -> i32 {
        answer(hooks::from_pod(&mut skb(&ctx)))
    }

    /// TC egress of a pod's veth.
    #[classifier]
    fn to_pod(ctx: TcContext) -> i32 {
        answer(hooks::to_pod(&mut skb(&ctx)))
    }

    /// TC ingress of an outside device.
    #[classifier]
    fn arrive(ctx: TcContext) -> i32 {
        answer(hooks::arrive(&mut skb(&ctx)))
    }

    /// TC egress of an outside device.
    #[classifier]
    fn settle(ctx: TcContext) -> i32 {
        answer(hooks::settle(&mut skb(&ctx)))
    }

    /// Writes `jiffies64` into the first 8 bytes of the packet: user space learns how long a jiffy is.
    #[classifier]
    fn clock(ctx: TcContext) -> i32 {
        let now = netpol_ebpf::maps::jiffies();
        match ctx.store(0, &now, 0) {
            Ok(()) => 0,
            Err(_) => DROP,
        }
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        // SAFETY: no code path panics: the verifier rejects the object if one is left.
        unsafe { core::hint::unreachable_unchecked() }
    }

    /// This object is licensed Apache-2.0 or GPL-2.0; the kernel counts it as GPL.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 4] = *b"GPL\0";
}
