//! Progress where there is no terminal: one line every few steps.

use std::collections::HashMap;
use std::io::Write;

use burn::train::LearnerSummary;
use burn::train::logger::MetricLogger;
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{MetricDefinition, MetricId, NumericEntry};
use burn::train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};

use crate::data::loader::Plan;
use crate::report::notes::{Notes, Topic};

/// Writes lines to `out`.
pub struct LineRenderer<W: Write + Send + Sync> {
    out: W,
    every: usize,
    stage: u8,
    steps: usize,
    steps_per_epoch: usize,
    names: HashMap<MetricId, String>,
    values: HashMap<String, f64>,
    validation: HashMap<String, f64>,
    /// Samples cut and left out so far.
    lost: [f64; 2],
    /// Steps that an earlier sitting took.
    done: usize,
    last: usize,
    notes: Notes,
}

impl<W: Write + Send + Sync> LineRenderer<W> {
    /// A line every `every` steps of a plan, `done` of which are taken already.
    pub fn new(out: W, stage: u8, every: usize, plan: &Plan, done: usize, notes: Notes) -> Self {
        Self {
            out,
            every: every.max(1),
            stage,
            steps: plan.steps(),
            steps_per_epoch: plan.steps_per_epoch().max(1),
            names: HashMap::new(),
            values: HashMap::new(),
            validation: HashMap::new(),
            lost: [0.0; 2],
            done,
            last: 0,
            notes,
        }
    }

    /// Writes what was said since.
    fn write_notes(&mut self) {
        for line in self.notes.take_lines() {
            let _ = writeln!(self.out, "{line}");
        }
    }

    fn line(&self, step: usize) -> String {
        let value = |name: &str| self.values.get(name).copied().unwrap_or(0.0);
        let epoch = step.saturating_sub(1) / self.steps_per_epoch + 1;
        let epochs = self.steps.div_ceil(self.steps_per_epoch);
        let left = match self.notes.last(Topic::TimeLeft) {
            left if left.is_empty() => left,
            left => format!(", {left}"),
        };
        let rates: Vec<String> = ["lr_llm", "lr_projector", "lr_vision"]
            .iter()
            .map(|name| value(name))
            .filter(|&rate| rate > 0.0)
            .map(|rate| format!("{rate:.1e}"))
            .collect();
        let norms: Vec<String> = [
            ("llm", "grad_norm_llm"),
            ("projector", "grad_norm_projector"),
            ("vision", "grad_norm_vision"),
        ]
        .iter()
        .filter(|(_, name)| value(name) > 0.0)
        .map(|(group, name)| format!("{group} {:.2}", value(name)))
        .collect();
        let masks = masks(&self.values);
        let mut lost = String::new();
        for (count, what) in self.lost.iter().zip(["cut", "left out"]) {
            if *count > 0.0 {
                lost += &format!(", {count} samples {what}");
            }
        }
        format!(
            "stage {} step {step}/{} epoch {epoch}/{epochs}: loss {:.4} (asking {:.4}, answering \
             {:.4}{masks}), gradient {:.2} ({}), rate {}, {:.0} tokens/s, {:.1} samples/s, {:.0} MiB{lost}{left}",
            self.stage,
            self.steps,
            value("loss"),
            value("loss_question"),
            value("loss_answer"),
            value("grad_norm"),
            norms.join(", "),
            if rates.is_empty() {
                "0".into()
            } else {
                rates.join("/")
            },
            value("tokens_per_second"),
            value("samples_per_second"),
            value("memory_mib"),
        )
    }

    fn validation_line(&self, step: usize) -> String {
        let value = |name: &str| self.validation.get(name).copied().unwrap_or(0.0);
        let masks = masks(&self.validation);
        format!(
            "stage {} step {step}/{} validation: loss {:.4} (asking {:.4}, answering {:.4}{masks}), {:.1} % \
             of the answers' tokens and {:.1} % of the answers right",
            self.stage,
            self.steps,
            value("loss"),
            value("loss_question"),
            value("loss_answer"),
            100.0 * value("answer_accuracy"),
            100.0 * value("exact_answers"),
        )
    }
}

/// The loss of masks, where it is measured.
fn masks(values: &HashMap<String, f64>) -> String {
    let loss = values.get("loss_masks");
    loss.map_or_else(String::new, |loss| format!(", masks {loss:.4}"))
}

impl<W: Write + Send + Sync> MetricsRendererTraining for LineRenderer<W> {
    fn update_train(&mut self, state: MetricState) {
        if let MetricState::Numeric(entry, value) = state
            && let Some(name) = self.names.get(&entry.metric_id)
        {
            match &**name {
                "truncated" => self.lost[0] += value.current(),
                "skipped" => self.lost[1] += value.current(),
                _ => {}
            }
            self.values.insert(name.clone(), value.current());
        }
    }

    fn update_valid(&mut self, state: MetricState) {
        if let MetricState::Numeric(entry, value) = state
            && let Some(name) = self.names.get(&entry.metric_id)
        {
            self.validation.insert(name.clone(), value.current());
        }
    }

    fn render_train(&mut self, item: TrainingProgress, _indicators: Vec<ProgressType>) {
        let step = item.iteration.unwrap_or(0);
        let due = step == self.done + 1 || step.is_multiple_of(self.every) || step == self.steps;
        if due && step != self.last {
            let line = self.line(step);
            // A closed pipe must not end the training.
            let _ = writeln!(self.out, "{line}");
            self.last = step;
        }
        self.write_notes();
    }

    fn render_valid(&mut self, item: TrainingProgress, _indicators: Vec<ProgressType>) {
        let line = self.validation_line(item.iteration.unwrap_or(0));
        let _ = writeln!(self.out, "{line}");
    }

    fn on_train_end(
        &mut self,
        _summary: Option<LearnerSummary>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        self.write_notes();
        Ok(())
    }
}

impl<W: Write + Send + Sync> MetricsRendererEvaluation for LineRenderer<W> {
    fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}

    fn render_test(&mut self, _item: EvaluationProgress, _indicators: Vec<ProgressType>) {}
}

impl<W: Write + Send + Sync> MetricsRenderer for LineRenderer<W> {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.names.insert(definition.metric_id, definition.name);
    }
}

/// Shows nothing.
#[derive(Debug, Clone, Copy)]
pub struct NoRenderer;

impl MetricsRendererTraining for NoRenderer {
    fn update_train(&mut self, _state: MetricState) {}
    fn update_valid(&mut self, _state: MetricState) {}
    fn render_train(&mut self, _item: TrainingProgress, _indicators: Vec<ProgressType>) {}
    fn render_valid(&mut self, _item: TrainingProgress, _indicators: Vec<ProgressType>) {}
}

impl MetricsRendererEvaluation for NoRenderer {
    fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}
    fn render_test(&mut self, _item: EvaluationProgress, _indicators: Vec<ProgressType>) {}
}

impl MetricsRenderer for NoRenderer {
    fn manual_close(&mut self) {}
    fn register_metric(&mut self, _definition: MetricDefinition) {}
}

/// Keeps Burn from writing a file for each metric and epoch: the run's own log has them all.
#[derive(Debug, Clone, Copy)]
pub struct SilentLogger;

impl MetricLogger for SilentLogger {
    fn log(&mut self, _update: MetricsUpdate, _epoch: usize, _split: &Split) {}

    fn read_numeric(
        &mut self,
        name: &str,
        _epoch: usize,
        _split: &Split,
    ) -> Result<Vec<NumericEntry>, String> {
        Err(format!("{name} is not kept"))
    }

    fn log_metric_definition(&mut self, _definition: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _summary: EpochSummary) {}
}
