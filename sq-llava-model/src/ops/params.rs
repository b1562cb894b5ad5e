//! Walking over a module's parameters with their paths.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, backend::Backend};

/// Names of fields and numbers of elements from the root to a parameter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParamPath {
    /// Each with whether it is the variant of an enum.
    parts: Vec<(String, bool)>,
}

impl ParamPath {
    /// The path without variants of enums, as files name a parameter.
    pub fn fields(&self) -> Vec<&str> {
        let fields = self.parts.iter().filter(|(_, variant)| !variant);
        fields.map(|(name, _)| name.as_str()).collect()
    }

    /// The whole path with dots, as Burn has it: `mm_projector.Mlp.layers.0.weight`.
    pub fn dotted(&self) -> String {
        let names: Vec<&str> = self.parts.iter().map(|(name, _)| name.as_str()).collect();
        names.join(".")
    }
}

/// Looks at float parameters.
pub trait ParamVisitor<B: Backend> {
    /// Called before the parameters under a path.
    fn enter(&mut self, _path: &ParamPath) {}

    /// Called for each parameter.
    fn visit<const D: usize>(&mut self, path: &ParamPath, param: &Param<Tensor<B, D>>);
}

/// Changes float parameters.
pub trait ParamMapper<B: Backend> {
    /// What becomes of a parameter.
    fn map<const D: usize>(
        &mut self,
        path: &ParamPath,
        param: Param<Tensor<B, D>>,
    ) -> Param<Tensor<B, D>>;
}

/// Shows a module's parameters to a visitor, in the order of its fields.
pub fn visit_params<B: Backend, M: Module<B>>(module: &M, visitor: &mut impl ParamVisitor<B>) {
    module.visit(&mut Walk::new(visitor));
}

/// Changes a module's parameters, in the order of its fields.
#[must_use]
pub fn map_params<B: Backend, M: Module<B>>(module: M, mapper: &mut impl ParamMapper<B>) -> M {
    module.map(&mut Walk::new(mapper))
}

struct Walk<'a, T> {
    path: ParamPath,
    inner: &'a mut T,
}

impl<'a, T> Walk<'a, T> {
    fn new(inner: &'a mut T) -> Self {
        Self {
            path: ParamPath::default(),
            inner,
        }
    }

    fn enter(&mut self, name: &str, container: &str) {
        let variant = container.starts_with("Enum:");
        self.path.parts.push((name.to_owned(), variant));
    }
}

impl<B: Backend, T: ParamVisitor<B>> ModuleVisitor<B> for Walk<'_, T> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.enter(name, container);
        self.inner.enter(&self.path);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.parts.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.inner.visit(&self.path, param);
    }
}

impl<B: Backend, T: ParamMapper<B>> ModuleMapper<B> for Walk<'_, T> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.parts.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        self.inner.map(&self.path, param)
    }
}
