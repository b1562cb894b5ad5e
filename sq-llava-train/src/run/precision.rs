//! Whether a device can train in the number format of a recipe.

use burn::tensor::backend::AutodiffBackend;
use sq_llava_model::kernels::blocks::is_native;

use crate::error::TrainError;
use crate::recipe::{BaseDtype, Recipe};

/// Refuses a format that the device does not compute in, and one that it would lose gradients in;
/// to be called before anything is loaded.
///
/// # Errors
/// If the recipe's format is such a one.
pub(crate) fn check_dtype<B: AutodiffBackend>(
    recipe: &Recipe,
    device: &B::Device,
) -> Result<(), TrainError> {
    let supported = B::supports_dtype(device, recipe.dtype.float().into());
    refusal(recipe.dtype, supported, is_native::<B>()).map_or(Ok(()), |reason| {
        Err(TrainError::Recipe(format!("dtype is {reason}")))
    })
}

/// Why a format does not do. `kernels` is whether the CPU's run, which give gradients in f32.
fn refusal(dtype: BaseDtype, supported: bool, kernels: bool) -> Option<&'static str> {
    match dtype {
        BaseDtype::F16 if !kernels => Some(
            "\"f16\", in which gradients become zero on this device: they pass through its products \
             in 16 bits, and those of a published batch are smaller than f16's smallest number. Use \
             \"bf16\", or \"f32\" where the device has no bf16",
        ),
        BaseDtype::F16 if !supported => {
            Some("\"f16\", which this device does not compute in; use \"f32\"")
        }
        BaseDtype::Bf16 if !supported => {
            Some("\"bf16\", which this device does not compute in; use \"f32\"")
        }
        BaseDtype::F32 if !supported => Some("\"f32\", which this device does not compute in"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Flavour;
    use BaseDtype::{Bf16, F16, F32};

    #[test]
    fn fault_12_f16_trains_on_the_cpu_alone() {
        assert_eq!(refusal(F16, true, true), None);
        assert!(refusal(F16, true, false).is_some_and(|r| r.contains("bf16")));
        assert_eq!(refusal(Bf16, true, false), None);
        assert_eq!(refusal(F32, true, false), None);
    }

    #[test]
    fn fault_14_a_format_that_the_device_lacks_is_refused() {
        for dtype in [F16, Bf16, F32] {
            assert!(refusal(dtype, false, true).is_some(), "{dtype:?}");
            assert!(refusal(dtype, false, false).is_some(), "{dtype:?}");
        }
        let mut recipe = Recipe::published(Flavour::Paper);
        for dtype in [F16, Bf16, F32] {
            recipe.dtype = dtype;
            type Cpu = burn::backend::Autodiff<burn_flex::Flex>;
            assert!(check_dtype::<Cpu>(&recipe, &Default::default()).is_ok());
        }
    }
}
