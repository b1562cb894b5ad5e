//! The processor and its kernels, through the real command.

use std::process::{Command, Output};

fn limits(path: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sq-llava"));
    command.args(["bench", "--device", "cpu", "--limits", "--repeat", "1"]);
    match path {
        Some(path) => command.env("SQ_LLAVA_CPU", path),
        None => command.env_remove("SQ_LLAVA_CPU"),
    };
    command.output().expect("the command starts")
}

#[test]
fn an_unknown_path_of_kernels_is_one_clear_error() {
    let output = limits(Some("sse"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "sse is taken");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    let expected = "SQ_LLAVA_CPU is \"sse\"; this processor has portable";
    assert!(error.contains(expected), "{error}");
}

/// Every unit has a speed or a line that says that it is not there.
#[test]
fn limits_name_the_processor_and_leave_nothing_out() {
    let output = limits(Some("portable"));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{text}");
    assert!(text.starts_with("processor: "), "{text}");
    assert!(text.contains("kernels: portable (of portable"), "{text}");
    let units = [
        "portable f32",
        "AVX2 f32",
        "AVX-512 f32",
        "AVX-512 bf16",
        "AVX-512 VNNI int8",
        "AMX bf16",
        "AMX int8",
    ];
    for unit in units {
        let line = text.lines().find(|l| l.contains(&format!("limit: {unit}")));
        let line = line.unwrap_or_else(|| panic!("{unit} is left out: {text}"));
        let there = line.contains("GFLOP/s") || line.contains("this processor has none");
        assert!(there, "{line}");
    }
    for read in ["32 MiB", "128 MiB", "512 MiB"] {
        assert!(text.contains(&format!("limit: read of {read}")), "{text}");
    }
}
