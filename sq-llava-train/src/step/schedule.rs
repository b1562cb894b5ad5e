//! Learning rate over the steps: linear warm-up, then cosine to zero (LLaVA's
//! `lr_scheduler_type cosine`, transformers' `get_cosine_schedule_with_warmup`).

use burn::lr_scheduler::LrScheduler;
use burn::tensor::backend::Backend;

/// The factor on every group's learning rate, a pure function of the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CosineWarmup {
    /// Steps of the warm-up.
    pub warmup_steps: usize,
    /// All steps, warm-up included.
    pub total_steps: usize,
    /// The step that comes next, from 0.
    next: usize,
}

impl CosineWarmup {
    /// `warmup_ratio` of `total_steps`, rounded up as transformers does.
    pub fn new(total_steps: usize, warmup_ratio: f64) -> Self {
        Self {
            warmup_steps: (total_steps as f64 * warmup_ratio).ceil() as usize,
            total_steps,
            next: 0,
        }
    }

    /// Factor of step `step`, from 0. The first step of a warm-up has factor 0.
    pub fn factor(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps.max(1) as f64;
        }
        let span = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = (step - self.warmup_steps) as f64 / span as f64;
        (0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos())).max(0.0)
    }
}

/// Burn's Learner asks for the next factor; what it gets depends on the number of the step alone.
impl LrScheduler for CosineWarmup {
    type Record<B: Backend> = usize;

    fn step(&mut self) -> f64 {
        let factor = self.factor(self.next);
        self.next += 1;
        factor
    }

    fn to_record<B: Backend>(&self) -> usize {
        self.next
    }

    fn load_record<B: Backend>(mut self, next: usize) -> Self {
        self.next = next;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of transformers' `get_cosine_schedule_with_warmup(warmup 3, total 10)`.
    #[test]
    fn equals_transformers() {
        let schedule = CosineWarmup::new(10, 0.25);
        assert_eq!(schedule.warmup_steps, 3);
        let expected = [
            0.0,
            1.0 / 3.0,
            2.0 / 3.0,
            1.0,
            0.950_484_43,
            0.811_744_9,
            0.611_260_47,
            0.388_739_53,
            0.188_255_1,
            0.049_515_57,
            0.0,
        ];
        for (step, expected) in expected.into_iter().enumerate() {
            assert!(
                (schedule.factor(step) - expected).abs() < 1e-6,
                "step {step}"
            );
        }
    }

    #[test]
    fn stepping_and_asking_agree() {
        let mut schedule = CosineWarmup::new(7, 0.0);
        let asked: Vec<f64> = (0..7).map(|s| schedule.factor(s)).collect();
        let stepped: Vec<f64> = (0..7).map(|_| schedule.step()).collect();
        assert_eq!(asked, stepped);
        assert_eq!(asked[0], 1.0);
    }
}
