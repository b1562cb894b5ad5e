//! Features of images while the vision tower does not train: computed once, kept on the host.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Features by picture, up to a limit of memory. Nothing is ever thrown out, so what a reader has
/// seen stays there.
#[derive(Debug)]
pub struct FeatureCache {
    limit_bytes: usize,
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    bytes: usize,
    features: HashMap<Arc<str>, Arc<[f32]>>,
}

impl FeatureCache {
    /// Empty.
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            inner: RwLock::default(),
        }
    }

    /// Features of a picture, `tokens · width` row-major.
    pub fn get(&self, key: &str) -> Option<Arc<[f32]>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.features.get(key).cloned()
    }

    /// Keeps the features of a picture if they fit.
    pub fn insert(&self, key: &Arc<str>, features: &Arc<[f32]>) {
        let size = size_of_val::<[f32]>(features);
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if inner.bytes + size <= self.limit_bytes && !inner.features.contains_key(key) {
            inner.bytes += size;
            inner.features.insert(key.clone(), features.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_fits() {
        let cache = FeatureCache::new(12);
        let features: Arc<[f32]> = vec![1.0, 2.0].into();
        cache.insert(&"a".into(), &features);
        cache.insert(&"b".into(), &features);
        assert_eq!(cache.get("a").as_deref(), Some(&[1.0, 2.0][..]));
        assert!(cache.get("b").is_none());
    }
}
