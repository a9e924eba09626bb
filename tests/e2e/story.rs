// SPDX-License-Identifier: Apache-2.0
//! The demo's story, insisted on.

use arca_tests::{engine::Engine, outside::Outside, story};

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[("holds_from_the_first_step_to_the_last", story_holds)];

fn story_holds() -> anyhow::Result<()> {
    let _outside = Outside::start()?;
    let engine = Engine::start()?;
    engine.load_image()?;
    story::play(&engine, &mut |step| eprintln!("{} -> {} ({:?})", step.title, step.result, step.time))?;
    // As a user would, with containers still running.
    engine.stop_with_containers()
}
