// SPDX-License-Identifier: Apache-2.0
//! Generates the gRPC code with protox, a compiler in Rust: no `protoc` is needed on the machine.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 6] = [
    "arca/machine/v1/machine.proto",
    "arca/init/v1/init.proto",
    "arca/tap/v1/tap.proto",
    "arca/relay/v1/relay.proto",
    "arca/helper/v1/helper.proto",
    "arca/netd/v1/netd.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("arca_descriptor.bin");
    fs::write(out, prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
