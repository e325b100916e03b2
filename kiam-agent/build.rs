//! Passes the path of the kernel programs' object to the compiler, if the object is built.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=KIAM_EBPF_OBJECT");
    println!("cargo:rustc-check-cfg=cfg(kiam_ebpf_object)");
    let object = env::var_os("KIAM_EBPF_OBJECT").map_or_else(
        || {
            let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
            here.join("../target/kiam-ebpf/kiam-ebpf.o")
        },
        PathBuf::from,
    );
    // A missing file counts as changed when it is created.
    println!("cargo:rerun-if-changed={}", object.display());
    if object.is_file() {
        println!("cargo:rustc-cfg=kiam_ebpf_object");
        println!("cargo:rustc-env=KIAM_EBPF_OBJECT_PATH={}", object.display());
    } else {
        println!(
            "cargo:warning=kiam-agent is built without its kernel programs; run `cargo xtask build-ebpf`, then build again"
        );
    }
}
