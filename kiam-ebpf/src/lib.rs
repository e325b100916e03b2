//! The layouts of the kernel programs' maps.
#![cfg_attr(target_arch = "bpf", no_std)]
