//! The kernel programs of kiam. They attach to the cgroup of all pods only.
//!
//! ```text
//! connect    redirects a TCP connect to port 80 of the metadata service to the agent;
//!            refuses any other connect to it
//! peername   shows the application the address that it connected to
//! guard      drops packets to the metadata service; attests the cgroup that sends a SYN
//!            to the agent
//! events     decisions, one by one, for --kernel-log
//! ```
//!
//! Built by `cargo xtask build-ebpf`; the build for the host only prints that.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        unsafe_code,
        reason = "contexts and packets are kernel memory, checked by the verifier"
    )
)]

#[cfg(target_arch = "bpf")]
mod attest;
#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod events;
#[cfg(target_arch = "bpf")]
mod guard;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod peername;
#[cfg(target_arch = "bpf")]
mod state;

/// Some helpers are available only to programs under a license compatible with the GPL.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing panics: the verifier would reject the endless loop.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
#[expect(clippy::print_stderr, reason = "the only thing that this build does")]
fn main() {
    eprintln!("kiam-ebpf: these are kernel programs; build them with `cargo xtask build-ebpf`");
}
