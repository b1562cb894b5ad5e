//! Several machines, here processes on one, give what one gives; and what happens to the others
//! when one is stopped, killed or hangs.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use golden::Value;

use crate::world::{STEPS, World, complaint, random, said};

/// No process takes as long.
const LONG: Duration = Duration::from_secs(120);

/// A process that does not outlive the test.
struct Process(Option<Child>);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(Some(command.spawn().expect("starts")))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("it runs")
    }

    fn signal(&mut self, name: &str) {
        let id = self.child().id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status();
        assert!(status.expect("kill").success());
    }

    /// Waits for its end, but not for ever. What it says fits into its pipes.
    fn end(mut self) -> Output {
        let start = Instant::now();
        while self.child().try_wait().expect("a process").is_none() {
            assert!(start.elapsed() < LONG, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let child = self.0.take().expect("it runs");
        child.wait_with_output().expect("ends")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `sq-llava orchestrator` on a free port.
struct Orchestrator {
    process: Process,
    address: String,
}

impl Orchestrator {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sq-llava"));
        command.args(["orchestrator", "--listen", "127.0.0.1:0"]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = Process::start(&mut command);
        let output = process.child().stdout.take().expect("a pipe");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("listening on ");
        Self {
            address: address.expect("where it listens").to_owned(),
            process,
        }
    }

    /// Both nodes of a run.
    fn nodes(&self, world: &World, out: &str, more: &[&str]) -> [Process; 2] {
        let node = |rank| Process::start(&mut self.node(world, out, rank, more));
        [node("0"), node("1")]
    }

    fn node(&self, world: &World, out: &str, rank: &str, more: &[&str]) -> Command {
        let mut command = world.command(out, more);
        command.args(["--nodes", "2", "--node-rank", rank]);
        command.args(["--coordinator", &self.address]);
        command
    }
}

/// Waits for both; they must succeed.
fn succeed(nodes: [Process; 2]) {
    for output in nodes.map(Process::end) {
        assert!(output.status.success(), "{}", said(&output));
    }
}

/// Losses and counts of a run's steps.
fn numbers(world: &World, run: &str) -> Vec<f64> {
    let keys = ["loss", "loss_question", "loss_answer", "grad_norm"];
    let counts = [
        "tokens",
        "samples",
        "question_tokens",
        "answer_tokens",
        "truncated",
        "skipped",
    ];
    let value = |line: &Value, key: &str| line[key].as_f64().unwrap_or(-1.0);
    let log = world.log(run, "log.jsonl");
    let lines = log.iter();
    lines
        .flat_map(|line| keys.iter().chain(&counts).map(|key| value(line, key)))
        .collect()
}

#[test]
fn two_nodes_train_as_one() {
    let world = World::new();
    let orchestrator = Orchestrator::start();
    // Steps of two batches and of one: then the second node has none.
    let mut runs = vec![("one", "two", vec![])];
    // Steps of three batches; the first node has two devices.
    let three = ["stage1.accumulation=3", "stage2.accumulation=3"];
    runs.push(("one-3", "two-3", three.to_vec()));
    for (one, two, sets) in runs {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let devices = match two {
            "two" => vec![],
            _ => vec!["--set", "devices=[0,1]"],
        };
        let first = [&sets[..], &devices].concat();
        let nodes = [("0", &first), ("1", &sets)];
        let nodes = nodes
            .map(|(rank, sets)| Process::start(&mut orchestrator.node(&world, two, rank, sets)));
        world.train(one, &sets);
        succeed(nodes);
        let [first, second] = ["node-0", "node-1"].map(|node| format!("{two}/{node}"));
        world.assert_same(&first, &second);
        let compared = world.assert_close(one, &first, 1e-5);
        assert!(compared > 40, "only {compared} tensors");
        let (expected, found) = (numbers(&world, one), numbers(&world, &first));
        assert_eq!(expected.len(), found.len());
        for (a, b) in expected.iter().zip(&found) {
            assert!(
                (a - b).abs() <= 1e-4 * (1.0 + a.abs()),
                "{two}: {a} and {b}"
            );
        }
    }
}

#[test]
fn stopped_and_killed_nodes_go_on_as_if_they_had_not_been() {
    let world = World::new();
    let orchestrator = Orchestrator::start();
    succeed(orchestrator.nodes(&world, "whole", &[]));

    // Ctrl-C on one stops both at the same step.
    let mut nodes = orchestrator.nodes(&world, "run", &[]);
    world.wait_for("run/node-0", 2 + random(STEPS - 4), nodes[0].child());
    nodes[1].signal("INT");
    let outputs = nodes.map(Process::end);
    let steps = world.lines("run/node-0");
    assert!(steps < 2 * STEPS && steps == world.lines("run/node-1"));
    for output in &outputs {
        let error = said(output);
        assert_eq!(output.status.code(), Some(130), "{error}");
        assert!(
            error.contains("go on with --resume on all nodes"),
            "{error}"
        );
    }

    // One is killed, the other says so at once.
    let mut nodes = orchestrator.nodes(&world, "run", &["--resume"]);
    world.wait_for(
        "run/node-0",
        STEPS + 2 + random(STEPS - 4),
        nodes[0].child(),
    );
    nodes[1].signal("KILL");
    let killed = Instant::now();
    let [left, gone] = nodes.map(Process::end);
    assert!(killed.elapsed() < Duration::from_secs(20), "it waited");
    assert_eq!(gone.status.code(), None);
    let error = complaint(&left);
    for part in [
        " step ",
        "rank 1",
        "lost",
        "start all nodes again with --resume",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }

    // They go on from the newest checkpoint that both have.
    let newest = |node: &str| {
        let found = golden::entries(&world.path("run").join(node)).into_iter();
        let steps = found.filter_map(|path| {
            golden::file_name(&path)
                .strip_prefix("checkpoint-2-")?
                .parse()
                .ok()
        });
        steps.max().unwrap_or(0)
    };
    let common: usize = newest("node-0").min(newest("node-1"));
    let missing = world.path(&format!("run/node-1/checkpoint-2-{common}"));
    if common >= 4 {
        // Even where the newest is lost on one of them.
        std::fs::remove_dir_all(missing).expect("removed");
    }
    succeed(orchestrator.nodes(&world, "run", &["--resume"]));
    world.assert_same("run/node-0", "run/node-1");
    world.assert_same("whole/node-0", "run/node-0");
    // Nothing is left to do.
    succeed(orchestrator.nodes(&world, "run", &["--resume"]));
    world.assert_same("whole/node-0", "run/node-1");
}

#[test]
fn a_node_that_hangs_is_not_waited_for_for_ever() {
    let world = World::new();
    let orchestrator = Orchestrator::start();
    let mut nodes = orchestrator.nodes(&world, "run", &["--node-timeout", "5"]);
    world.wait_for("run/node-0", 3, nodes[0].child());
    nodes[1].signal("STOP");
    let start = Instant::now();
    let [left, hanging] = nodes;
    let error = complaint(&left.end());
    assert!(error.contains("did not finish within 5 s"), "{error}");
    assert!(
        error.contains(" step ") && error.contains("--resume"),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(30));
    drop(hanging);
    assert!(world.path("run/node-0/checkpoint-1-2").is_dir());
}

#[test]
fn nodes_that_do_not_fit_say_why() {
    let world = World::new();
    let mut orchestrator = Orchestrator::start();
    // Every difference is told to both.
    let both = |more: [&[&str]; 2]| {
        let nodes = [("0", more[0]), ("1", more[1])];
        let nodes = nodes
            .map(|(rank, more)| Process::start(&mut orchestrator.node(&world, "run", rank, more)));
        nodes.map(|node| complaint(&node.end()))
    };
    for error in both([&[], &["--set", "stage2.lr_llm=1e-4"]]) {
        assert!(
            error.contains("stage2.lr_llm is 0.005 on rank 0 and 0.0001 on rank 1"),
            "{error}"
        );
    }
    // What fails on one is told to the other.
    std::fs::create_dir_all(world.path("run/node-1/full")).expect("made");
    let errors = both([&[], &[]]);
    assert!(errors[0].contains("rank 1 failed"), "{}", errors[0]);
    for error in errors {
        assert!(error.contains("the directory is not empty"), "{error}");
    }

    orchestrator.process.signal("INT");
    let Orchestrator { process, address } = orchestrator;
    assert!(process.end().status.success());
    TcpListener::bind(&address).expect("the port is free again");
    let alone = |more: &str| {
        let more: Vec<&str> = more.split(' ').collect();
        world.command("alone", &more).output().expect("starts")
    };
    // Nobody listens at port 1.
    let place = "--nodes 2 --node-rank 0 --node-timeout 1 --coordinator 127.0.0.1:1";
    let error = complaint(&alone(place));
    assert!(
        error.contains("no orchestrator") && error.contains("within 1 s"),
        "{error}"
    );
    let error = complaint(&alone("--nodes 2 --node-rank 2 --coordinator host:1"));
    assert!(error.contains("--node-rank is 2"), "{error}");
    for half in ["--nodes 2", "--node-rank 0", "--coordinator host:1"] {
        assert_eq!(alone(half).status.code(), Some(2), "{half}");
    }
    // One node needs nobody.
    let place = "--nodes 1 --node-rank 0 --coordinator 127.0.0.1:1";
    let short = "--set stages=[1] --set stage1.epochs=1";
    let output = alone(&format!("{place} {short}"));
    assert!(output.status.success(), "{}", said(&output));
    assert!(world.path("alone/config.json").is_file());
}
