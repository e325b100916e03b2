//! Generates the gRPC code from `proto/` with protox, so that no `protoc` is needed.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message as _;

/// Messages that carry secrets: their `Debug` is written by hand in `src/api.rs`.
const SECRET_MESSAGES: [&str; 2] = [".kiam.node.v1.CredentialsIssued", ".kiam.Credentials"];

fn main() -> Result<(), Box<dyn Error>> {
    const PROTOS: [&str; 2] = ["kiam/node/v1/node.proto", "kiam/kiam.proto"];
    println!("cargo:rerun-if-changed=../proto");
    let descriptors = protox::compile(PROTOS, ["../proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .codec_path("crate::codec::LeanCodec")
        .skip_debug(SECRET_MESSAGES)
        .compile_fds(descriptors)?;
    Ok(())
}
