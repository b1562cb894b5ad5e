//! Several nodes, here processes on one, give what one gives; and what happens to the others when
//! one is stopped or killed. They are started by `mpirun`.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use golden::Value;

use crate::adaptive;
use crate::world::{STEPS, World, random, said};

/// No job takes as long.
const LONG: Duration = Duration::from_secs(300);

/// `mpirun` and its ranks.
struct Job(Option<Child>);

impl Job {
    fn start(command: &mut Command) -> Self {
        Self(Some(command.spawn().expect("mpirun, of Open MPI")))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("it runs")
    }

    fn signal(&mut self, name: &str) {
        send(name, self.child().id());
    }

    /// Process of a rank.
    fn rank(&mut self, rank: usize) -> u32 {
        let mpirun = self.child().id().to_string();
        let variable = format!("OMPI_COMM_WORLD_RANK={rank}");
        let of_it = |process: &Path| {
            let read = |file: &str| std::fs::read(process.join(file)).unwrap_or_default();
            let stat = String::from_utf8_lossy(&read("stat")).into_owned();
            let behind_name = stat.rsplit(')').next().unwrap_or_default();
            let parent = behind_name.split_whitespace().nth(1);
            let environment = read("environ");
            let mut variables = environment.split(|&byte| byte == 0);
            parent == Some(&mpirun) && variables.any(|v| v == variable.as_bytes())
        };
        let processes = golden::entries(Path::new("/proc")).into_iter();
        let found = processes.filter(|process| of_it(process));
        let mut ids = found.filter_map(|process| golden::file_name(&process).parse().ok());
        ids.next().expect("it runs")
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

    /// The same; it must succeed.
    fn succeed(self) -> String {
        let output = self.end();
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    }

    /// The same; it must fail.
    fn fail(self) -> String {
        let output = self.end();
        let error = said(&output);
        assert!(!output.status.success(), "{error}");
        assert!(!error.contains("panicked"), "{error}");
        error
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended by itself; its ranks go with it.
            let _ = kill("TERM", child.id()).status();
            let _ = child.wait();
        }
    }
}

fn send(name: &str, id: u32) {
    let sent = kill(name, id).status();
    assert!(sent.expect("kill").success());
}

fn kill(name: &str, id: u32) -> Command {
    let mut command = Command::new("kill");
    command.args(["-s", name, &id.to_string()]);
    command.stderr(Stdio::null());
    command
}

/// `mpirun` of two ranks, each with more arguments of its own.
fn mpirun(world: &World, out: &str, more: [&[&str]; 2]) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--bind-to", "none"]);
    // It then waits so many seconds before SIGTERM, and again before SIGKILL.
    command.args(["--mca", "odls_base_sigkill_timeout", "4"]);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1");
    command.env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    // Jobs that run side by side clean up the same folder under one another.
    command.env("TMPDIR", world.path(""));
    // Containers forbid to read another process's memory.
    command.env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
    for (rank, more) in more.into_iter().enumerate() {
        let own = world.command(out, more);
        command.args([":"].iter().filter(|_| rank > 0));
        command.args(["-n", "1"]);
        command.arg(own.get_program()).args(own.get_args());
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Both nodes of a run, with the same arguments.
fn both(world: &World, out: &str, more: &[&str]) -> Job {
    Job::start(&mut mpirun(world, out, [more, more]))
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
    // Steps of two batches and of one: then the second node has none.
    let mut runs = vec![("one", "two", vec![])];
    // Steps of three batches; the first node sends the sums over two of them layer by layer, the
    // second has two devices.
    let three = [
        "stage1.accumulation=3",
        "stage2.accumulation=3",
        "gradient_checkpointing=blocks",
    ];
    runs.push(("one-3", "two-3", three.to_vec()));
    for (one, two, sets) in runs {
        // A large ε: else Adam makes whole steps out of how a gradient near nothing was rounded.
        let steady = ["stage1.eps=1e-2", "stage2.eps=1e-2"];
        let sets = sets.into_iter().chain(steady);
        let sets: Vec<&str> = sets.flat_map(|set| ["--set", set]).collect();
        let devices = match two {
            "two" => vec![],
            _ => vec!["--set", "devices=[0,1]"],
        };
        let first = [&sets[..], &["-vv"]].concat();
        let second = [&sets[..], &devices].concat();
        let job = Job::start(&mut mpirun(&world, two, [&first, &second]));
        world.train(one, &sets);
        let words = job.succeed();
        if two == "two-3" {
            let early = words.matches("1 of 2 buckets went during the backward pass");
            assert!(early.count() >= STEPS / 2, "{words}");
        }
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
fn two_nodes_measure_and_ask_as_one() {
    let world = World::new();
    let sets = adaptive::prepare(&world, 1);
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let job = both(&world, "two", &sets);
    world.train("one", &sets);
    job.succeed();
    let [first, second] = ["two/node-0", "two/node-1"];
    adaptive::assert_moves(&world, first, 1);
    world.assert_same(first, second);
    assert_eq!(
        adaptive::deltas(&world, first),
        adaptive::deltas(&world, second)
    );
    // Sums in another order, and yet the same questions.
    let asked = |run: &str| -> Vec<f64> {
        let log = world.log(run, "log.jsonl");
        let tokens = log.iter().map(|line| line["question_tokens"].as_f64());
        tokens.map(|tokens| tokens.expect("a count")).collect()
    };
    assert_eq!(asked("one"), asked(first));
}

#[test]
fn stopped_and_killed_nodes_go_on_as_if_they_had_not_been() {
    let world = World::new();
    both(&world, "whole", &[]).succeed();

    // mpirun passes this signal on: all stop at the same step.
    let mut job = both(&world, "run", &[]);
    world.wait_for("run/node-0", 2 + random(STEPS - 8), job.child());
    job.signal("USR1");
    let error = job.fail();
    let steps = world.lines("run/node-0");
    assert!(steps < 2 * STEPS && steps == world.lines("run/node-1"));
    for part in [
        "stopped, saved in",
        "go on with the same command and --resume",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }

    // One is killed; the other, which waits for it, says when, and the job ends.
    let mut job = both(&world, "run", &["--resume"]);
    world.wait_for("run/node-0", STEPS + 2 + random(STEPS - 8), job.child());
    send("KILL", job.rank(1));
    let killed = Instant::now();
    let error = job.fail();
    assert!(killed.elapsed() < Duration::from_secs(120), "it waited");
    for part in [" step ", "lost", "start all again with --resume"] {
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
    both(&world, "run", &["--resume"]).succeed();
    world.assert_same("run/node-0", "run/node-1");
    world.assert_same("whole/node-0", "run/node-0");
    // Nothing is left to do.
    both(&world, "run", &["--resume"]).succeed();
    world.assert_same("whole/node-0", "run/node-1");
}

#[test]
fn ctrl_c_of_mpirun_leaves_a_checkpoint_on_every_node() {
    let world = World::new();
    // It would not end by itself.
    let long = ["--set", "stage1.epochs=100000", "--set", "save_every=0"];
    let mut job = both(&world, "run", &long);
    world.wait_for("run/node-0", 2, job.child());
    job.signal("INT");
    let error = job.fail();
    assert!(error.contains("stopped, saved in"), "{error}");
    let steps = world.lines("run/node-0");
    assert_eq!(steps, world.lines("run/node-1"));
    for node in [0, 1] {
        let checkpoint = format!("run/node-{node}/checkpoint-1-{steps}");
        assert!(world.path(&checkpoint).is_dir(), "no {checkpoint}");
    }
}

#[test]
fn nodes_that_do_not_fit_say_why() {
    let world = World::new();
    let more: [&[&str]; 2] = [&[], &["--set", "stage2.lr_llm=1e-4"]];
    let error = Job::start(&mut mpirun(&world, "run", more)).fail();
    let differs = "the recipe's stage2.lr_llm is 0.005 on rank 0 and 0.0001 on rank 1";
    assert!(error.contains(differs), "{error}");
    assert!(error.contains("error: rank "), "{error}");

    // What fails on one ends the other.
    std::fs::create_dir_all(world.path("run/node-1/full")).expect("made");
    let error = both(&world, "run", &[]).fail();
    let reason = "error: rank 1: ";
    assert!(error.contains(reason), "{error}");
    assert!(error.contains("the directory is not empty"), "{error}");

    // Another MPI's launcher, or srun without its help: each process would be alone.
    let mut command = world.command("alone", &[]);
    let output = command.env("PMI_SIZE", "2").env("PMI_RANK", "0").output();
    let error = said(&output.expect("starts"));
    assert!(
        error.contains("PMI_SIZE is 2, but MPI sees 1 rank(s)"),
        "{error}"
    );
    assert!(!world.path("alone").exists());
    // One rank needs nobody.
    let short = ["--set", "stages=[1]", "--set", "stage1.epochs=1"];
    let mut command = world.command("alone", &short);
    let output = command.env("PMI_SIZE", "1").env("PMI_RANK", "0").output();
    let output = output.expect("starts");
    assert!(output.status.success(), "{}", said(&output));
    assert!(world.path("alone/config.json").is_file());
}
