//! `--device`: which of the compiled backends runs, and whether it can.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use burn::tensor::backend::Backend;

/// A backend and the number of its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best that is compiled in and present.
    Auto,
    /// burn-flex.
    Cpu,
    /// burn-cuda.
    Cuda(usize),
    /// burn-wgpu on Vulkan.
    Vulkan(usize),
    /// burn-wgpu on Metal.
    Metal(usize),
    /// burn-wgpu on WebGPU.
    WebGpu(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, index) = match text.split_once(':') {
            None => (text, 0),
            Some((name, index)) => {
                let number = index.parse();
                (
                    name,
                    number.map_err(|_| format!("\"{index}\" is no device number"))?,
                )
            }
        };
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(index)),
            "vulkan" => Ok(Self::Vulkan(index)),
            "metal" => Ok(Self::Metal(index)),
            "webgpu" => Ok(Self::WebGpu(index)),
            _ => Err("known are auto, cpu, cuda[:i], vulkan[:i], metal[:i] and webgpu[:i]".into()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(i) => write!(f, "cuda:{i}"),
            Self::Vulkan(i) => write!(f, "vulkan:{i}"),
            Self::Metal(i) => write!(f, "metal:{i}"),
            Self::WebGpu(i) => write!(f, "webgpu:{i}"),
        }
    }
}

/// Work that can be done on any backend.
pub trait Work {
    /// Does it.
    ///
    /// # Errors
    /// Whatever goes wrong.
    fn on<B: Backend>(self, device: &B::Device) -> Result<()>;
}

impl DeviceChoice {
    /// What `auto` stands for on this machine.
    pub fn resolved(self) -> Self {
        match self {
            Self::Auto => best(),
            chosen => chosen,
        }
    }

    /// Does the work on this device. Concrete backends are named here and nowhere else.
    ///
    /// # Errors
    /// If the backend is not compiled in or its driver is missing, or the work fails.
    pub fn run(self, work: impl Work) -> Result<()> {
        match self {
            Self::Auto => self.resolved().run(work),
            #[cfg(feature = "cpu")]
            Self::Cpu => {
                // Kernels take it for granted that the path can be taken.
                sq_llava_model::processor::KernelPath::chosen()?;
                work.on::<burn_flex::Flex>(&burn_flex::FlexDevice)
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => {
                cuda::probe(index)?;
                work.on::<burn_cuda::Cuda>(&burn_cuda::CudaDevice::new(index))
            }
            #[cfg(feature = "vulkan")]
            Self::Vulkan(index) => {
                graphics::run::<graphics::Vulkan, burn_wgpu::Vulkan>(self, index, work)
            }
            #[cfg(feature = "metal")]
            Self::Metal(index) => {
                graphics::run::<graphics::Metal, burn_wgpu::Metal>(self, index, work)
            }
            // Outside a browser WebGPU stands on the system's own interface.
            #[cfg(feature = "webgpu")]
            Self::WebGpu(index) => {
                graphics::run::<graphics::AutoGraphicsApi, burn_wgpu::WebGpu>(self, index, work)
            }
            #[allow(unreachable_patterns)] // Reached where a feature is off.
            other => {
                let name = other.to_string();
                let feature = name.split(':').next().unwrap_or_default();
                bail!("device {name} is not compiled in; build with --features {feature}")
            }
        }
    }
}

/// CUDA, then a real GPU through a graphics interface, then the CPU.
fn best() -> DeviceChoice {
    #[cfg(feature = "cuda")]
    if cuda::probe(0).is_ok() {
        return DeviceChoice::Cuda(0);
    }
    #[cfg(feature = "metal")]
    if graphics::has_gpu(wgpu::Backends::METAL) {
        return DeviceChoice::Metal(0);
    }
    #[cfg(feature = "vulkan")]
    if graphics::has_gpu(wgpu::Backends::VULKAN) {
        return DeviceChoice::Vulkan(0);
    }
    DeviceChoice::Cpu
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::ffi::{c_int, c_uint};
    use std::path::{Path, PathBuf};

    use anyhow::{Context, Result, bail};
    use libloading::{Library, Symbol};

    /// What burn-cuda needs at run time, asked for before it panics.
    pub fn probe(index: usize) -> Result<()> {
        let count = devices().context("device cuda is not present")?;
        if index >= count {
            bail!("device cuda:{index} is not present; the driver knows {count}");
        }
        if ![
            "libnvrtc.so",
            "libnvrtc.so.13",
            "libnvrtc.so.12",
            "nvrtc64_120_0.dll",
        ]
        .iter()
        // SAFETY: NVRTC's initialisers have no preconditions.
        .any(|name| unsafe { Library::new(name) }.is_ok())
        {
            bail!("device cuda needs NVRTC: libnvrtc.so is not found; install the CUDA toolkit");
        }
        // The folder that cubecl-cuda takes: the first that exists, not the first with headers.
        let root = std::env::var_os("CUDA_PATH")
            .map(PathBuf::from)
            .or_else(|| {
                let places = [
                    ("/usr/local/cuda", "/usr/local/cuda"),
                    ("/opt/cuda", "/opt/cuda"),
                    ("/usr/bin/nvcc", "/usr"),
                ];
                let found = places.iter().find(|(sign, _)| Path::new(sign).exists());
                found.map(|(_, root)| PathBuf::from(root))
            });
        let Some(root) = root else {
            bail!(
                "device cuda needs the CUDA headers: no toolkit is found; set CUDA_PATH to its folder"
            );
        };
        let header = root.join("include").join("cuda_runtime.h");
        if !header.is_file() {
            bail!(
                "device cuda needs the CUDA headers: {} is missing; set CUDA_PATH to the toolkit",
                header.display()
            );
        }
        Ok(())
    }

    fn devices() -> Result<usize> {
        // SAFETY: the driver's library; its initialisers have no preconditions.
        let library =
            unsafe { Library::new("libcuda.so.1").or_else(|_| Library::new("nvcuda.dll")) };
        let library = library.context("the NVIDIA driver (libcuda.so.1) is not installed")?;
        // SAFETY: signatures as in cuda.h: CUresult cuInit(unsigned), cuDeviceGetCount(int *).
        let (init, count): (
            Symbol<unsafe extern "C" fn(c_uint) -> c_int>,
            Symbol<unsafe extern "C" fn(*mut c_int) -> c_int>,
        ) = unsafe {
            (
                library.get(b"cuInit\0")?,
                library.get(b"cuDeviceGetCount\0")?,
            )
        };
        let mut found = 0;
        // SAFETY: cuInit takes 0; the count is written to a valid place after it.
        let status = unsafe {
            match init(0) {
                0 => count(&mut found),
                failed => failed,
            }
        };
        if status != 0 {
            bail!("the NVIDIA driver reports error {status}");
        }
        Ok(usize::try_from(found).unwrap_or(0))
    }
}

#[cfg(any(feature = "vulkan", feature = "metal", feature = "webgpu"))]
mod graphics {
    use anyhow::{Result, bail};
    use burn::tensor::backend::Backend;
    use burn_wgpu::graphics::GraphicsApi;
    #[allow(unused_imports)] // Which of them are used depends on the features.
    pub use burn_wgpu::graphics::{AutoGraphicsApi, Metal, Vulkan};
    use burn_wgpu::{RuntimeOptions, WgpuDevice, init_setup};
    use wgpu::{Backends, DeviceType};

    use super::{DeviceChoice, Work};

    fn adapters(backends: Backends) -> Vec<wgpu::AdapterInfo> {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = backends;
        let instance = wgpu::Instance::new(descriptor);
        let found = burn::tensor::try_read_sync(instance.enumerate_adapters(backends));
        let found = found.unwrap_or_default();
        found.iter().map(wgpu::Adapter::get_info).collect()
    }

    /// Whether there is an adapter that is not a software driver.
    pub fn has_gpu(backends: Backends) -> bool {
        adapters(backends).iter().any(|info| {
            matches!(
                info.device_type,
                DeviceType::DiscreteGpu | DeviceType::IntegratedGpu
            )
        })
    }

    /// The index-th adapter, real GPUs first, then software ones.
    pub fn run<G: GraphicsApi, B: Backend<Device = WgpuDevice>>(
        choice: DeviceChoice,
        index: usize,
        work: impl Work,
    ) -> Result<()> {
        let mut order: Vec<WgpuDevice> = vec![];
        let backends = Backends::from(G::backend());
        let found = adapters(backends);
        let of = |kind: DeviceType| found.iter().filter(move |i| i.device_type == kind).count();
        order.extend((0..of(DeviceType::DiscreteGpu)).map(WgpuDevice::DiscreteGpu));
        order.extend((0..of(DeviceType::IntegratedGpu)).map(WgpuDevice::IntegratedGpu));
        order.extend((0..of(DeviceType::VirtualGpu)).map(WgpuDevice::VirtualGpu));
        if of(DeviceType::Cpu) > 0 {
            order.push(WgpuDevice::Cpu);
        }
        let Some(device) = order.get(index) else {
            if order.is_empty() {
                bail!("device {choice} is not present: no driver for it is installed");
            }
            bail!("device {choice} is not present; there are {}", order.len());
        };
        init_setup::<G>(device, RuntimeOptions::default());
        work.on::<B>(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_shown() {
        for (text, shown) in [("cpu", "cpu"), ("cuda", "cuda:0"), ("vulkan:2", "vulkan:2")] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), shown);
        }
        assert!("cuda:x".parse::<DeviceChoice>().is_err());
        assert!("tpu".parse::<DeviceChoice>().is_err());
    }
}
