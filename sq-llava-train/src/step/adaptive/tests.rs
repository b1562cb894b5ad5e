use super::*;

const SETTINGS: AdaptiveSettings = AdaptiveSettings {
    every: 1,
    delta: 0.5,
    bounds: [0.2, 0.8],
    smoothing: 0.75,
    strength: 1.0,
};

fn names() -> Vec<String> {
    ["coco", "gqa"].map(str::to_owned).to_vec()
}

/// An interval of the first source with these mean losses of questions and answers.
fn interval(question: Option<f32>, answer: Option<f32>) -> SourceSums {
    let mut sums = SourceSums::default();
    for (loss, asked) in [(question, true), (answer, false)] {
        if let Some(loss) = loss {
            // Two tokens about the mean.
            sums.add(
                &[loss - 0.25, loss + 0.25],
                &[asked; 2],
                &[Some(0), Some(0)],
            );
        }
    }
    sums
}

/// δ of the first source in the interval at hand and the next, after these intervals.
fn deltas(settings: &AdaptiveSettings, intervals: &[(Option<f32>, Option<f32>)]) -> [f64; 2] {
    let mut state = AskingState::new(&names(), settings);
    for &(question, answer) in intervals {
        state.add(&interval(question, answer));
        state.end_interval(settings);
    }
    // Nothing is said of the second source, which stays.
    let both = state.deltas();
    assert!(both.iter().all(|deltas| deltas[1] == settings.delta));
    both.map(|deltas| deltas[0])
}

#[test]
fn delta_is_the_ratio_to_a_power_within_bounds() {
    let with = |strength, ratio: f64| {
        AdaptiveSettings {
            strength,
            ..SETTINGS
        }
        .delta_of(ratio)
    };
    // By hand.
    for (strength, ratio, delta) in [
        (1.0, 1.0, 0.5),
        (1.0, 1.2, 0.6),
        (1.0, 0.5, 0.25),
        (2.0, 1.2, 0.72),
        (0.5, 0.25, 0.25),
        (0.0, 7.0, 0.5),
        // Bounds.
        (1.0, 9.0, 0.8),
        (3.0, 0.1, 0.2),
        (1.0, 0.0, 0.2),
        (1.0, f64::INFINITY, 0.8),
        // Answers and questions without any loss.
        (1.0, f64::NAN, 0.5),
    ] {
        let found = with(strength, ratio);
        assert!((found - delta).abs() < 1e-12, "{strength} {ratio}: {found}");
    }
}

#[test]
fn questions_that_lag_are_asked_more_and_those_ahead_less() {
    let course = |question, answer| {
        let [_, next] = deltas(
            &SETTINGS,
            &[(Some(4.0), Some(2.0)), (Some(question), Some(answer))],
        );
        next
    };
    // A quarter of what is new counts: questions stand at 1, answers at 3/4 + 1/4 · 1/2.
    assert!((course(4.0, 1.0) - 0.5 / 0.875).abs() < 1e-12);
    assert!((course(2.0, 2.0) - 0.5 * 0.875).abs() < 1e-12);
    // Both halfway, whatever the losses are.
    assert_eq!(course(2.0, 1.0), 0.5);
    // Above where they started.
    assert!(course(6.0, 2.0) > 0.5);
}

#[test]
fn it_moves_an_interval_later_and_starts_where_both_are() {
    let both = (Some(4.0), Some(2.0));
    assert_eq!(deltas(&SETTINGS, &[]), [0.5, 0.5]);
    assert_eq!(deltas(&SETTINGS, &[both]), [0.5, 0.5]);
    let moved = [both, (Some(4.0), Some(1.0))];
    assert_eq!(deltas(&SETTINGS, &moved), [0.5, 0.5 / 0.875]);
    assert_eq!(
        deltas(&SETTINGS, &[&moved[..], &[both]].concat())[0],
        0.5 / 0.875
    );
    // What was measured of answers alone is no start.
    let late = [(None, Some(8.0)), (None, None), both, both];
    assert_eq!(deltas(&SETTINGS, &late), [0.5, 0.5]);
    // An interval without questions leaves theirs as they are: answers fall, so δ rises.
    let silent = [both, (None, Some(1.0))];
    assert_eq!(deltas(&SETTINGS, &silent)[1], 0.5 / 0.875);
}

#[test]
fn an_interval_is_the_mean_over_its_steps() {
    let mut state = AskingState::new(&names(), &SETTINGS);
    for (question, answer) in [(3.0, 1.0), (5.0, 3.0)] {
        state.add(&interval(Some(question), Some(answer)));
    }
    state.end_interval(&SETTINGS);
    let learnt = state.sources[0].learnt.expect("both were measured");
    assert_eq!((learnt.question.start, learnt.answer.start), (4.0, 2.0));
    assert_eq!(state.sources[0].interval, LossSums::default());
    assert_eq!(state.sources[1].learnt, None);
}

#[test]
fn it_is_written_and_read_to_the_last_bit() {
    let mut state = AskingState::new(&names(), &SETTINGS);
    let mut number = 0.1f32;
    let same = |state: &AskingState| {
        let text = serde_json::to_string_pretty(state).unwrap();
        let read: AskingState = serde_json::from_str(&text).unwrap();
        assert_eq!(&read, state);
        // Equal numbers may differ in their sign of zero.
        assert_eq!(serde_json::to_string_pretty(&read).unwrap(), text);
    };
    same(&state);
    for step in 0..400 {
        number = (number * 1.7).fract() + 0.3;
        state.add(&interval(Some(number), Some(1.3 - number)));
        same(&state);
        if step % 3 == 2 {
            state.end_interval(&SETTINGS);
            same(&state);
        }
    }
    assert!(state.sources[0].delta != state.sources[0].next);
}

#[test]
fn a_state_of_another_stage_says_so() {
    let state = AskingState::new(&names(), &SETTINGS);
    assert_eq!(state.fault(&names(), &SETTINGS), None);
    let fewer = state.fault(&names()[..1], &SETTINGS).unwrap();
    assert!(
        fewer.contains("coco, gqa") && fewer.contains("have coco"),
        "{fewer}"
    );
    let narrow = AdaptiveSettings {
        bounds: [0.6, 0.8],
        ..SETTINGS
    };
    let outside = state.fault(&names(), &narrow).unwrap();
    assert!(
        outside.contains("coco is outside of 0.6 to 0.8"),
        "{outside}"
    );
    let mut spoilt = state;
    spoilt.sources[1].next = f64::NAN;
    assert!(spoilt.fault(&names(), &SETTINGS).unwrap().contains("gqa"));
}
