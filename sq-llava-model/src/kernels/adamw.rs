//! The numbers of one step of AdamW.

/// Numbers of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub rate: f64,
    /// Decay rate of the first moment.
    pub beta_1: f32,
    /// Decay rate of the second moment.
    pub beta_2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Steps with these moments, this one included.
    pub time: usize,
    /// Factor of the gradient: what clipping leaves of it.
    pub grad_scale: f32,
}

impl AdamWStep {
    /// `1 − βᵗ` of both moments.
    pub(crate) fn corrections(&self) -> [f32; 2] {
        let time = i32::try_from(self.time).unwrap_or(i32::MAX);
        [self.beta_1, self.beta_2].map(|beta| 1.0 - beta.powi(time))
    }
}
