//! kiam's kernel programs. They attach to the cgroup of the pods, and to nothing else.
//!
//! ```text
//! connect    a TCP connect to port 80 of the metadata service goes to the agent instead;
//!            any other connect to it is refused
//! peername   the application is shown the address that it asked for
//! guard      no packet leaves for the metadata service; a SYN to the agent is noted with the
//!            cgroup that sent it
//! events     what is decided, one by one, for whoever listens
//! ```
//!
//! Built by `cargo xtask build-ebpf`; a build for the host is a program that says so.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        unsafe_code,
        reason = "contexts and packets are the kernel's memory, checked by its verifier"
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

/// The helpers that are used are for programs under a licence compatible with the GPL.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing panics: the verifier would refuse the endless loop.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
#[expect(clippy::print_stderr, reason = "all that this build does")]
fn main() {
    eprintln!("kiam-ebpf: these are kernel programs; build them with `cargo xtask build-ebpf`");
}
