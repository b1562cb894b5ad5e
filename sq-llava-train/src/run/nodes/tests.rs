use burn::backend::Autodiff;
use burn::module::Param;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use sq_llava_model::ops::params::{ParamPath, ParamVisitor, visit_params};

use super::*;
use crate::run::stop::StopSignal;
use crate::step::groups::{ParamGroup, ParamGroups, TrainedParam};

type B = Autodiff<Flex>;

/// Gives work to every node of a run on this machine.
fn nodes<T: Send>(
    count: usize,
    bucket_values: usize,
    timeout: Duration,
    work: impl Fn(&Nodes) -> T + Sync,
) -> Vec<T> {
    let orchestrator = Orchestrator::bind("127.0.0.1:0").expect("a port");
    let coordinator = orchestrator.address().expect("bound").to_string();
    let stop = StopSignal::new();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| orchestrator.run(&stop));
        let threads: Vec<_> = (0..count)
            .map(|rank| {
                let (coordinator, work) = (coordinator.clone(), &work);
                scope.spawn(move || {
                    let config = NodeConfig {
                        nodes: count,
                        rank,
                        coordinator,
                        address: None,
                        timeout,
                    };
                    let nodes = Nodes::join(&config).expect("they meet");
                    let nodes = nodes.expect("more than one");
                    work(&Nodes {
                        bucket_values,
                        ..nodes
                    })
                })
            })
            .collect();
        let done = threads.into_iter().map(|t| t.join());
        let done: Vec<_> = done.collect();
        stop.stop();
        running.join().expect("no panic").expect("it ran");
        done.into_iter().map(|one| one.expect("no panic")).collect()
    })
}

const LONG: Duration = Duration::from_secs(30);

/// Three linears; all of their parameters train.
fn model() -> (Vec<Linear<B>>, ParamGroups) {
    struct Mark(ParamGroups);
    impl ParamVisitor<B> for Mark {
        fn visit<const D: usize>(&mut self, path: &ParamPath, param: &Param<Tensor<B, D>>) {
            let trained = TrainedParam {
                id: param.id,
                group: ParamGroup::Llm,
                values: param.lazy_shape().num_elements(),
            };
            self.0.add(path.dotted(), trained);
        }
    }
    let device = Default::default();
    let linear = |[from, to]: [usize; 2]| LinearConfig::new(from, to).init(&device);
    let model: Vec<Linear<B>> = [[2, 3], [3, 5], [1, 4]].map(linear).to_vec();
    let mut mark = Mark(ParamGroups::default());
    visit_params(&model, &mut mark);
    (model, mark.0)
}

/// Gradients of a node: every value of the `i`th tensor is `rank + 1 + i / 4`; only where `has`.
fn grads(model: &[Linear<B>], rank: usize, has: impl Fn(usize) -> bool) -> GradientsParams {
    let mut grads = GradientsParams::new();
    for (i, linear) in model.iter().enumerate() {
        let value = |place: usize| rank as f32 + 1.0 + place as f32 / 4.0;
        if has(2 * i) {
            let of = linear.weight.val().inner();
            grads.register(linear.weight.id, of.full_like(value(2 * i)));
        }
        let bias = linear.bias.as_ref().expect("a bias");
        if has(2 * i + 1) {
            let of = bias.val().inner();
            grads.register(bias.id, of.full_like(value(2 * i + 1)));
        }
    }
    grads
}

fn all_values(model: &[Linear<B>], grads: &GradientsParams) -> Vec<Option<TensorData>> {
    let weight = |linear: &Linear<B>| {
        grads
            .get::<Flex, 2>(linear.weight.id)
            .map(Tensor::into_data)
    };
    let bias = |linear: &Linear<B>| {
        let bias = linear.bias.as_ref().expect("a bias");
        grads.get::<Flex, 1>(bias.id).map(Tensor::into_data)
    };
    let both = |linear| [weight(linear), bias(linear)];
    model.iter().flat_map(both).collect()
}

fn exchange(
    nodes: &Nodes,
    model: &Vec<Linear<B>>,
    groups: &ParamGroups,
    place: StepId,
    mine: NodeStep,
) -> Result<NodeStep, TrainError> {
    nodes.exchange(&Trainable { model, groups }, place, mine)
}

#[test]
fn gradients_are_summed_whatever_the_buckets() {
    // One bucket; some; one for each parameter.
    for bucket in [1000, 12, 1] {
        let sums = nodes(3, bucket, LONG, |nodes| {
            let (model, groups) = model();
            // The fifth tensor has a gradient on one node alone, the sixth on none.
            let has = |place: usize| place < 4 || (place == 4 && nodes.rank() == 1);
            let own = grads(&model, nodes.rank(), has);
            let place = StepId {
                step: 6,
                step_tokens: 9,
            };
            let mine = NodeStep {
                grads: own,
                report: StepReport::default(),
                stop: false,
            };
            let all = exchange(nodes, &model, &groups, place, mine).expect("a sum");
            assert!(!all.stop);
            all_values(&model, &all.grads)
        });
        for sum in sums {
            let shapes = [vec![2, 3], vec![3], vec![3, 5], vec![5], vec![1, 4]];
            for (place, shape) in shapes.into_iter().enumerate() {
                let each = |rank: usize| rank as f32 + 1.0 + place as f32 / 4.0;
                let expected = match place {
                    4 => each(1),
                    _ => (0..3).map(each).sum::<f32>(),
                };
                let count = shape.iter().product();
                let expected = TensorData::new(vec![expected; count], shape);
                assert_eq!(sum[place].as_ref(), Some(&expected), "tensor {place}");
            }
            assert_eq!(sum[5], None);
        }
    }
}

#[test]
fn reports_are_added_up_and_one_wish_is_enough() {
    // More than f32 counts, and a loss that is no number.
    let many = (1 << 24) + 1;
    let report = |rank: usize| StepReport {
        sums: LossSums {
            question: 0.1 * (rank + 1) as f64,
            answer: if rank == 1 { f64::NAN } else { 2.5 },
            question_tokens: many,
            answer_tokens: rank,
        },
        samples: rank + 1,
        tokens: many + rank,
        truncated: rank,
        skipped: 1 - rank,
        ..StepReport::default()
    };
    let reports = nodes(2, 1000, LONG, |nodes| {
        let (model, groups) = model();
        let place = StepId {
            step: 0,
            step_tokens: 2,
        };
        let wish = nodes.rank() == 1;
        let mine = NodeStep {
            grads: GradientsParams::new(),
            report: report(nodes.rank()),
            stop: wish,
        };
        let all = exchange(nodes, &model, &groups, place, mine).expect("a sum");
        assert!(all.stop && all.grads.is_empty());
        assert!(nodes.any("now", wish).expect("an answer"));
        assert!(!nodes.any("now", false).expect("an answer"));
        let first = nodes.of_first("now", nodes.rank() as f64 + 0.1);
        assert_eq!(first.expect("a number"), 0.1);
        all.report
    });
    for report in reports {
        assert_eq!(report.sums.question, 0.1 + 0.2);
        assert!(report.sums.answer.is_nan());
        assert_eq!(report.sums.question_tokens, 2 * many);
        assert_eq!(report.sums.answer_tokens, 1);
        assert_eq!((report.samples, report.tokens), (3, 2 * many + 1));
        assert_eq!((report.truncated, report.skipped), (1, 1));
    }
}

/// What each of two nodes says where they do not do the same.
fn errors(news: impl Fn(usize) -> StepId + Sync) -> Vec<String> {
    nodes(2, 1000, LONG, |nodes| {
        let (model, groups) = model();
        let mine = NodeStep {
            grads: GradientsParams::new(),
            report: StepReport::default(),
            stop: false,
        };
        let exchanged = exchange(nodes, &model, &groups, news(nodes.rank()), mine);
        exchanged.err().expect("they differ").to_string()
    })
}

#[test]
fn nodes_at_different_steps_stop() {
    let place = |step, step_tokens| StepId { step, step_tokens };
    for error in errors(|rank| place(4 + rank, 2)) {
        assert!(
            error.contains("rank 0 is at step 5, rank 1 at step 6"),
            "{error}"
        );
    }
    for error in errors(|rank| place(4, 2 + rank)) {
        assert!(
            error.contains("2 learnable tokens on rank 0 and 3"),
            "{error}"
        );
    }
}

#[test]
fn what_fails_on_one_node_is_told_to_all() {
    let said = nodes(3, 1000, LONG, |nodes| {
        if nodes.rank() == 1 {
            nodes.tell(&TrainError::Recipe("no such thing".into()));
            return None;
        }
        nodes.gather("at step 7", &3).err().map(|e| e.to_string())
    });
    assert_eq!(said[1], None);
    for error in [&said[0], &said[2]] {
        let error = error.as_ref().expect("an error");
        assert!(
            error.contains("rank 1") && error.contains("no such thing"),
            "{error}"
        );
    }
}

#[test]
fn a_lost_node_ends_the_exchange_of_the_others() {
    // One goes; another only stays silent.
    let said = nodes(2, 1000, LONG, |nodes| match nodes.rank() {
        0 => nodes.gather("at step 7", &3).err().map(|e| e.to_string()),
        _ => None,
    });
    let error = said[0].as_ref().expect("an error");
    for part in ["at step 7", "rank 1", "lost", "--resume"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let (over, heard) = (StopSignal::new(), Duration::from_secs(1));
    let said = nodes(2, 1000, heard, |nodes| {
        if nodes.rank() == 1 {
            while !over.is_set() {
                std::thread::sleep(Duration::from_millis(10));
            }
            return None;
        }
        let first = nodes.gather("at step 7", &3).err().map(|e| e.to_string());
        // And from then on at once.
        let start = Instant::now();
        assert!(nodes.gather("at step 8", &3).is_err() && start.elapsed() < heard);
        over.stop();
        first
    });
    let error = said[0].as_ref().expect("an error");
    assert!(error.contains("did not finish within 1 s"), "{error}");
}

#[test]
fn flags_are_packed() {
    let flags: Vec<bool> = (0..19).map(|i| i % 3 == 0).collect();
    assert_eq!(pack(&flags), [0b0100_1001, 0b1001_0010, 0b100]);
    assert!(unpack(&pack(&flags)).take(19).eq(flags));
}

#[test]
fn impossible_places_are_refused() {
    let fine = NodeConfig {
        nodes: 2,
        rank: 1,
        coordinator: "host:4000".into(),
        address: None,
        timeout: LONG,
    };
    fine.validate().expect("fine");
    assert_eq!(
        fine.run_directory(Path::new("run")),
        Path::new("run/node-1")
    );
    let cases = [
        (
            NodeConfig {
                rank: 2,
                ..fine.clone()
            },
            "--node-rank is 2",
        ),
        (
            NodeConfig {
                nodes: 0,
                ..fine.clone()
            },
            "--nodes is 0",
        ),
        (
            NodeConfig {
                coordinator: "host".into(),
                ..fine.clone()
            },
            "--coordinator: host is not",
        ),
        (
            NodeConfig {
                address: Some("host:x".into()),
                ..fine.clone()
            },
            "--node-address: host:x",
        ),
        (
            NodeConfig {
                timeout: Duration::ZERO,
                ..fine.clone()
            },
            "--node-timeout",
        ),
        // fault 29: the end of the wait was no time that the system knows.
        (
            NodeConfig {
                timeout: Duration::from_secs(u64::MAX),
                ..fine.clone()
            },
            "--node-timeout",
        ),
        (
            NodeConfig {
                nodes: usize::MAX,
                ..fine.clone()
            },
            "--nodes",
        ),
    ];
    for (config, part) in cases {
        let error = config.validate().expect_err("not fine").to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    let alone = NodeConfig {
        nodes: 1,
        rank: 0,
        ..fine
    };
    assert!(Nodes::join(&alone).expect("fine").is_none());
    assert_eq!(alone.run_directory(Path::new("run")), Path::new("run"));
}
