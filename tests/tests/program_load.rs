//! The object passes the verifier of this kernel: the first thing to know about a kernel.

use aya::{
    EbpfLoader, VerifierLogLevel,
    programs::{ProgramError, SchedClassifier},
};
use netpol_tests::program::object_path;

#[test]
fn every_program_passes_the_verifier() {
    let path = object_path();
    let object = std::fs::read(&path)
        .unwrap_or_else(|error| panic!("read {}: {error}; `cargo xtask ebpf` builds it", path.display()));
    let mut loaded = EbpfLoader::new()
        // Says why it refuses and what it counted, but not each step: that is many megabytes here.
        .verifier_log_level(VerifierLogLevel::STATS)
        .load(&object)
        .unwrap_or_else(|error| panic!("create the maps: {error:?}"));
    let mut seen = Vec::new();
    for (name, program) in loaded.programs_mut() {
        let program: &mut SchedClassifier = program.try_into().expect("all programs are classifiers");
        let refused = program.load().err().map(|error| explain(&error));
        let steps = program
            .info()
            .ok()
            .and_then(|info| info.verified_instruction_count());
        println!("{name}: {steps:?} instructions verified");
        seen.push((name.to_owned(), refused));
    }
    seen.sort();
    let expected = ["arrive", "clock", "from_pod", "settle", "to_pod"].map(|name| (name.to_owned(), None));
    assert_eq!(seen, expected);
}

fn explain(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => format!("{io_error}\n{verifier_log}"),
        other => format!("{other:?}"),
    }
}
