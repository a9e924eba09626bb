// SPDX-License-Identifier: Apache-2.0
//! Runs every fuzz target on its committed corpus and on a bounded number of inputs derived from it. The derived
//! inputs are the same in every run, so a failure can be repeated; coverage-guided runs are `./dev fuzz`.
#![cfg(target_os = "linux")]

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use arca_fuzz::{TARGETS, Target};

/// Derived inputs for each target.
const DERIVED: usize = 20_000;
/// Longest derived input, in bytes.
const LONGEST: usize = 4096;

/// xorshift64*: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let word = usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).expect("31 bits");
        word % bound.max(1)
    }

    fn byte(&mut self) -> u8 {
        const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'\n', b'"', b'{'];
        let any = u8::try_from(self.below(256)).expect("below 256");
        if self.below(2) == 0 { TELLING[self.below(TELLING.len())] } else { any }
    }

    /// A few random edits of `input`, with pieces of `other`.
    fn mutate(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut out = input.to_vec();
        for _ in 0..=self.below(6) {
            let at = self.below(out.len() + 1);
            match self.below(6) {
                0 if at < out.len() => out[at] = self.byte(),
                1 if at < out.len() => out[at] ^= 1 << self.below(8),
                2 => out.insert(at, self.byte()),
                3 if !out.is_empty() => {
                    let from = at.min(out.len() - 1);
                    let to = from + 1 + self.below(out.len() - from);
                    out.drain(from..to.min(out.len()));
                }
                4 => out.truncate(at),
                _ => {
                    let from = self.below(other.len());
                    let piece = &other[from..from + self.below(other.len() - from + 1)];
                    out.splice(at..at, piece.iter().copied());
                }
            }
        }
        out.truncate(LONGEST);
        out
    }
}

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).expect("a readable file"))).collect()
}

fn run(target: &Target, input: &[u8], what: &str) {
    if catch_unwind(|| (target.run)(input)).is_err() {
        panic!("fuzz target {}: {what} breaks it: {}", target.name, input.escape_ascii());
    }
}

fn run_all(name: &str) {
    let target = arca_fuzz::find(name).expect("a target of that name");
    let corpus = corpus(&target);
    assert!(!corpus.is_empty(), "no corpus for {name}");
    for (path, input) in &corpus {
        run(&target, input, &path.display().to_string());
    }
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for round in 0..DERIVED {
        let input = &corpus[round % corpus.len()].1;
        let other = &corpus[dice.below(corpus.len())].1;
        let derived = dice.mutate(input, other);
        run(&target, &derived, &format!("derived input {round}"));
    }
}

macro_rules! targets {
    ($($name:ident),*) => {
        $(#[test] fn $name() { run_all(stringify!($name)); })*

        #[test]
        fn every_target_is_run_here() {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

targets!(frames, hello, hybrid, ovsdb);

#[test]
fn a_target_that_fails_is_reported() {
    let target = Target { name: "made up", run: |bytes| assert!(bytes.first() != Some(&0xff)) };
    run(&target, &[1], "a good input");
    assert!(catch_unwind(|| run(&target, &[0xff], "a bad input")).is_err());
}
