//! The exchange among threads in place of processes; `sq-llava/tests/train/nodes.rs` has those.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use burn::backend::Autodiff;
use burn::module::{Param, ParamId};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use sq_llava_model::ops::params::{ParamPath, ParamVisitor, visit_params};

use super::*;
use crate::step::groups::{ParamGroup, ParamGroups, TrainedParam};

type B = Autodiff<Flex>;

/// What a thread gives, and where its result goes.
enum Part {
    Sum(Vec<f32>, Sender<Vec<f32>>),
    Gather(Vec<u8>, Sender<Vec<Vec<u8>>>),
}

/// Each thing that was asked for, by its number, and who has asked for it so far.
type Asked = Mutex<HashMap<usize, BTreeMap<usize, Part>>>;

struct Threads {
    rank: usize,
    count: usize,
    number: AtomicUsize,
    asked: Arc<Asked>,
}

impl Threads {
    fn give(&self, part: Part) {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let mut asked = self.asked.lock().expect("no panic");
        let parts = asked.entry(number).or_default();
        parts.insert(self.rank, part);
        if parts.len() < self.count {
            return;
        }
        let parts: Vec<Part> = asked
            .remove(&number)
            .expect("there")
            .into_values()
            .collect();
        let (mut sum, mut texts) = (Vec::new(), Vec::new());
        for part in &parts {
            match part {
                Part::Sum(values, _) if sum.is_empty() => sum.clone_from(values),
                Part::Sum(values, _) => {
                    assert_eq!(sum.len(), values.len(), "ranks sum other things");
                    sum.iter_mut()
                        .zip(values)
                        .for_each(|(sum, value)| *sum += value);
                }
                Part::Gather(text, _) => texts.push(text.clone()),
            }
        }
        // Ranks that ask for different things wait for ever in MPI.
        assert!(sum.is_empty() || texts.is_empty());
        for part in parts {
            match part {
                Part::Sum(_, outbox) => outbox.send(sum.clone()).expect("it waits"),
                Part::Gather(_, outbox) => outbox.send(texts.clone()).expect("it waits"),
            }
        }
    }
}

impl World for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.count
    }

    fn sum(&self, values: Vec<f32>) -> Receiver<Vec<f32>> {
        let (outbox, result) = channel();
        self.give(Part::Sum(values, outbox));
        result
    }

    fn gather(&self, text: Vec<u8>) -> Receiver<Vec<Vec<u8>>> {
        let (outbox, result) = channel();
        self.give(Part::Gather(text, outbox));
        result
    }

    fn leave(&self) {}

    fn abort(&self) {}
}

/// Gives work to every node of a run.
fn nodes<T: Send>(count: usize, bucket_values: usize, work: impl Fn(&Nodes) -> T + Sync) -> Vec<T> {
    let asked = Arc::new(Asked::default());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|rank| {
                let (asked, work) = (asked.clone(), &work);
                scope.spawn(move || {
                    let world = Threads {
                        rank,
                        count,
                        number: AtomicUsize::new(0),
                        asked,
                    };
                    work(&Nodes {
                        world: Box::new(world),
                        stop: StopSignal::new(),
                        bucket_values,
                    })
                })
            })
            .collect();
        let done = threads.into_iter().map(|t| t.join().expect("no panic"));
        done.collect()
    })
}

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

/// An exchange that sends nothing early.
fn exchange(
    nodes: &Nodes,
    model: &Vec<Linear<B>>,
    groups: &ParamGroups,
    id: StepId,
    mine: NodeStep,
) -> Result<NodeStep, TrainError> {
    let trainable = || Trainable { model, groups };
    let order = nodes.order::<B, _>(&trainable(), &HashMap::new());
    let exchange = nodes.exchange(trainable(), &order, GradientsParams::new());
    exchange.finish::<B>(id, mine)
}

fn nothing_of(report: StepReport) -> NodeStep {
    NodeStep {
        grads: GradientsParams::new(),
        report,
        stop: false,
    }
}

/// The model's second linear comes first on the way back, then its first one.
fn known_after(model: &[Linear<B>]) -> HashMap<ParamId, usize> {
    let ids = |linear: &Linear<B>| [linear.weight.id, linear.bias.as_ref().expect("a bias").id];
    let stages = [(&model[1], 1), (&model[0], 2)].into_iter();
    let known = stages.flat_map(|(linear, stage)| ids(linear).map(|id| (id, stage)));
    known.collect()
}

#[test]
fn gradients_are_summed_whatever_the_buckets_and_however_early_they_go() {
    // One bucket; some; one for each parameter.
    for (bucket, early) in [(1000, [0, 1]), (20, [1, 2]), (12, [1, 3]), (1, [2, 4])] {
        let sums = nodes(3, bucket, |nodes| {
            let (model, groups) = model();
            // The fifth tensor has a gradient on one node alone, the sixth on none.
            let has = |place: usize| place < 4 || (place == 4 && nodes.rank() == 1);
            let id = StepId {
                step: 6,
                step_tokens: 9,
                step_masked: 0,
            };
            let trainable = || Trainable {
                model: &model,
                groups: &groups,
            };
            let order = nodes.order::<B, _>(&trainable(), &known_after(&model));
            let known = [1, 2].map(|stage| order.known_after(stage));
            assert_eq!(known, early, "buckets of {bucket}");
            // Half of it from an earlier batch; the third node has no batch.
            let none = GradientsParams::new;
            let (before, mut fresh) = match nodes.rank() {
                2 => (none(), none()),
                rank => (
                    grads(&model, rank, |i| i % 2 == 0 && has(i)),
                    grads(&model, rank, has),
                ),
            };
            let mut exchange = nodes.exchange(trainable(), &order, before);
            if nodes.rank() == 0 {
                exchange.known_after::<B>(1, &mut fresh);
                exchange.known_after::<B>(2, &mut fresh);
            }
            let mine = NodeStep {
                grads: fresh,
                ..nothing_of(StepReport::default())
            };
            let all = exchange.finish::<B>(id, mine).expect("a sum");
            assert!(!all.stop);
            all_values(&model, &all.grads)
        });
        for sum in sums {
            let shapes = [vec![2, 3], vec![3], vec![3, 5], vec![5], vec![1, 4]];
            for (place, shape) in shapes.into_iter().enumerate() {
                let times = if place % 2 == 0 { 2.0 } else { 1.0 };
                let each = |rank: usize| times * (rank as f32 + 1.0 + place as f32 / 4.0);
                let expected = match place {
                    4 => each(1),
                    _ => each(0) + each(1),
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
    // The second node has no token of the first source, the first none of the last.
    let by_source = |rank: usize| {
        let mut sums = SourceSums::default();
        let sources = [Some(1), Some(2 * rank)];
        sums.add(&[0.1 + rank as f32, 3.0], &[true, false], &sources);
        sums
    };
    let report = |rank: usize| StepReport {
        sums: LossSums {
            question: 0.1 * (rank + 1) as f64,
            answer: if rank == 1 { f64::NAN } else { 2.5 },
            question_tokens: many,
            answer_tokens: rank,
        },
        masks: MaskSums {
            loss: 0.25,
            pictures: 1 + rank,
        },
        by_source: by_source(rank),
        samples: rank + 1,
        tokens: many + rank,
        truncated: rank,
        skipped: 1 - rank,
        ..StepReport::default()
    };
    let reports = nodes(2, 1000, |nodes| {
        let (model, groups) = model();
        let place = StepId {
            step: 0,
            step_tokens: 2,
            step_masked: 0,
        };
        let wish = nodes.rank() == 1;
        let mine = NodeStep {
            stop: wish,
            ..nothing_of(report(nodes.rank()))
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
        let mut all = by_source(0);
        all.merge(&by_source(1));
        assert_eq!(report.by_source, all);
        assert_eq!(report.by_source.of(1).question_tokens, 2);
        assert_eq!(report.sums.question_tokens, 2 * many);
        assert_eq!(report.sums.answer_tokens, 1);
        assert_eq!((report.samples, report.tokens), (3, 2 * many + 1));
        assert_eq!((report.truncated, report.skipped), (1, 1));
        assert_eq!((report.masks.loss, report.masks.pictures), (0.5, 3));
    }
}

/// What each of two nodes says where they do not do the same.
fn errors(news: impl Fn(usize) -> StepId + Sync) -> Vec<String> {
    nodes(2, 1000, |nodes| {
        let (model, groups) = model();
        let mine = nothing_of(StepReport::default());
        let exchanged = exchange(nodes, &model, &groups, news(nodes.rank()), mine);
        exchanged.err().expect("they differ").to_string()
    })
}

#[test]
fn nodes_at_different_steps_stop() {
    let place = |step, step_tokens| StepId {
        step,
        step_tokens,
        step_masked: 3,
    };
    let masks = |rank| StepId {
        step_masked: 2 + rank,
        ..place(4, 2)
    };
    for error in errors(masks) {
        assert!(
            error.contains("2 pictures with masks on rank 0 and 3"),
            "{error}"
        );
    }
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
fn one_that_says_something_else_is_named() {
    let said = nodes(2, 1000, |nodes| match nodes.rank() {
        0 => nodes.gather("at the start", &3).map(|_| ()),
        _ => nodes
            .gather("at the start", &"three".to_owned())
            .map(|_| ()),
    });
    let error = said[0].as_ref().expect_err("a text").to_string();
    assert!(
        error.contains("at the start rank 1 does something else"),
        "{error}"
    );
}
