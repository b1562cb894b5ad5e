//! AdamW's moments in a file, by the paths of their parameters: ids are another process's.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::record::AdaptorRecord;
use burn::optim::{AdamW, AdamWState, AdaptiveMomentumState};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Tensor, TensorData};
use safetensors::tensor::{Dtype, Metadata, View};
use sq_llava_data::files;
use sq_llava_model::weights::save_tensors;

use crate::error::TrainError;
use crate::step::groups::ParamGroups;

/// Moments of one parameter.
pub(crate) type Moments<B> = AdaptorRecord<AdamW, B>;

/// Name of the file in a checkpoint.
pub(crate) const MOMENTS: &str = "optimizer.safetensors";

/// The two moments of each parameter, by its path.
const NAMES: [&str; 2] = ["moment_1", "moment_2"];

/// A tensor to be written; its values are fetched when its turn comes.
struct Stored {
    shape: Vec<usize>,
    values: Box<dyn Fn() -> TensorData>,
}

impl View for &Stored {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let data = (self.values)().convert_dtype(DType::F32);
        Cow::Owned(data.as_bytes().to_vec())
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * DType::F32.size()
    }
}

/// Writes the moments of a model's trainable parameters.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write<B: AutodiffBackend, M: Module<B>>(
    directory: &Path,
    model: &M,
    groups: &ParamGroups,
    moments: &HashMap<ParamId, Moments<B>>,
) -> Result<(), TrainError> {
    let mut collect = Collect {
        groups,
        moments,
        tensors: Vec::new(),
        times: BTreeMap::new(),
    };
    model.visit(&mut collect);
    let path = directory.join(MOMENTS);
    let tensors = collect.tensors.iter();
    let named = tensors.map(|(name, tensor)| (name.as_str(), tensor));
    Ok(save_tensors(&path, named, &collect.times)?)
}

struct Collect<'a, B: AutodiffBackend> {
    groups: &'a ParamGroups,
    moments: &'a HashMap<ParamId, Moments<B>>,
    tensors: Vec<(String, Stored)>,
    /// Steps of each parameter: one that saw no gradient in a step is behind the others.
    times: BTreeMap<String, String>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Collect<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let (Some(path), Some(moments)) = (self.groups.path(param.id), self.moments.get(&param.id))
        else {
            return;
        };
        let state = moments.clone().into_state::<D>().momentum;
        self.times.insert(path.to_owned(), state.time.to_string());
        for (name, tensor) in NAMES.into_iter().zip([state.moment_1, state.moment_2]) {
            let stored = Stored {
                shape: tensor.dims().to_vec(),
                values: Box::new(move || tensor.to_data()),
            };
            self.tensors.push((format!("{path}.{name}"), stored));
        }
    }
}

/// Reads what [`write`] wrote, for the same model in this process.
///
/// # Errors
/// If the file is damaged or of another model.
pub(crate) fn read<B: AutodiffBackend, M: Module<B>>(
    directory: &Path,
    model: &M,
    groups: &ParamGroups,
) -> Result<HashMap<ParamId, Moments<B>>, TrainError> {
    let mut file = MomentsFile::open(directory.join(MOMENTS))?;
    let mut restore = Restore::<B> {
        groups,
        file: &mut file,
        moments: HashMap::new(),
        error: None,
    };
    model.visit(&mut restore);
    let (moments, error) = (restore.moments, restore.error);
    match error {
        Some(error) => Err(error),
        None if moments.len() == file.times.len() => Ok(moments),
        None => Err(file.fail("it has moments of parameters that this run does not train")),
    }
}

struct Restore<'a, B: AutodiffBackend> {
    groups: &'a ParamGroups,
    file: &'a mut MomentsFile,
    moments: HashMap<ParamId, Moments<B>>,
    error: Option<TrainError>,
}

impl<B: AutodiffBackend> Restore<'_, B> {
    fn moment<const D: usize>(
        &mut self,
        name: &str,
        param: &Param<Tensor<B, D>>,
    ) -> Result<Tensor<B::InnerBackend, D>, TrainError> {
        let shape = param.lazy_shape().to_vec();
        let data = self.file.tensor(name, &shape)?;
        Ok(Tensor::from_data(data, (&param.lazy_device(), DType::F32)))
    }
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Restore<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(path) = self.groups.path(param.id) else {
            return;
        };
        // A parameter that never saw a gradient has no moments.
        let Some(&time) = self.file.times.get(path) else {
            return;
        };
        let names = NAMES.map(|name| format!("{path}.{name}"));
        let read = self
            .moment(&names[0], param)
            .and_then(|first| Ok((first, self.moment(&names[1], param)?)));
        match read {
            Ok((first, second)) => {
                let state = AdamWState::new(AdaptiveMomentumState::new(time, first, second));
                let record = AdaptorRecord::from_state::<D>(state);
                self.moments.insert(param.id, record);
            }
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
    }
}

/// The file, read tensor by tensor.
struct MomentsFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// Where the tensors begin.
    start: u64,
    times: HashMap<String, usize>,
}

impl MomentsFile {
    fn open(path: PathBuf) -> Result<Self, TrainError> {
        let io = |e| TrainError::io(&path, e);
        let damaged = |reason: String| TrainError::RunDirectory {
            path: path.clone(),
            reason: format!("damaged: {reason}"),
        };
        let mut file = files::open(&path)?;
        let length = file.metadata().map_err(io)?.len();
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(io)?;
        let size = u64::from_le_bytes(size);
        if size > length {
            return Err(damaged("its header is longer than the file".into()));
        }
        let mut header = vec![0; size as usize];
        file.read_exact(&mut header).map_err(io)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| damaged(e.to_string()))?;
        let mut times = HashMap::new();
        for (name, time) in metadata.metadata().iter().flatten() {
            let time = time.parse();
            let time = time.map_err(|_| damaged(format!("the steps of {name} are no number")))?;
            times.insert(name.clone(), time);
        }
        Ok(Self {
            path,
            file,
            metadata,
            start: 8 + size,
            times,
        })
    }

    fn fail(&self, reason: impl Into<String>) -> TrainError {
        TrainError::RunDirectory {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<TensorData, TrainError> {
        let Some(info) = self.metadata.info(name) else {
            return Err(self.fail(format!("{name} is missing")));
        };
        if info.shape != shape || info.dtype != Dtype::F32 {
            let found = format!("{:?} {:?}", info.dtype, info.shape);
            return Err(self.fail(format!("{name} is {found}, not F32 {shape:?}")));
        }
        let (start, end) = info.data_offsets;
        let size = shape.iter().product::<usize>() * DType::F32.size();
        if end.checked_sub(start) != Some(size) {
            return Err(self.fail(format!("{name} does not have {size} bytes")));
        }
        let mut bytes = vec![0; size];
        self.file
            .seek(SeekFrom::Start(self.start + start as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|e| TrainError::io(&self.path, e))?;
        let values: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
            .collect();
        Ok(TensorData::new(values, shape.to_vec()))
    }
}
