//! A runtime without a device: it makes CUDA source of what is launched on it.

use std::sync::{Arc, Mutex};

use burn_cubecl::cubecl;
use cubecl::bytes::Bytes;
use cubecl::client::ComputeClient;
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::device::{DeviceId, DeviceService, ServerUtilitiesHandle};
use cubecl::features::Plane;
use cubecl::future::DynFut;
use cubecl::ir::{
    DeviceProperties, HardwareProperties, MemoryDeviceProperties, TargetProperties, VectorSize,
};
use cubecl::prelude::*;
use cubecl::profile::{ProfileDuration, TimingMethod};
use cubecl::server::{
    Binding, ComputeServer, CopyDescriptor, Handle, KernelArguments, MemoryLayout,
    MemoryLayoutDescriptor, MemoryLayoutPolicy, ProfileError, ProfilingToken, ServerCommunication,
    ServerError, ServerUtilities,
};
use cubecl::stream_id::StreamId;
use cubecl::zspace::{Shape, Strides};
use cubecl::{CubeTask, MemoryAllocationMode, MemoryUsage};
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::ManagedMemoryHandle;
use cubecl_runtime::storage::{BytesStorage, ManagedResource};

type Cuda = <CudaRuntime as Runtime>::Compiler;

/// A kernel's name and its source.
pub(super) type Source = (String, String);

static SOURCES: Mutex<Vec<Source>> = Mutex::new(vec![]);

/// Sources of what was launched since the last time.
pub(super) fn sources(client: &ComputeClient<Paper>) -> Vec<Source> {
    cubecl::future::block_on(client.sync()).expect("nothing runs");
    std::mem::take(&mut SOURCES.lock().expect("no test panicked"))
}

#[derive(Debug, Clone)]
pub(super) struct Paper;

impl Runtime for Paper {
    type Compiler = Cuda;
    type Server = Server;
    type Device = CudaDevice;

    fn client(device: &CudaDevice) -> ComputeClient<Self> {
        ComputeClient::load(device)
    }

    fn name(_: &ComputeClient<Self>) -> &'static str {
        "paper"
    }

    fn require_array_lengths() -> bool {
        CudaRuntime::require_array_lengths()
    }

    fn max_cube_count() -> (u32, u32, u32) {
        CudaRuntime::max_cube_count()
    }

    fn can_read_tensor(shape: &Shape, strides: &Strides) -> bool {
        CudaRuntime::can_read_tensor(shape, strides)
    }

    fn target_properties() -> TargetProperties {
        CudaRuntime::target_properties()
    }

    fn enumerate_devices(_: u16, (): &()) -> Vec<DeviceId> {
        vec![]
    }
}

/// Memory that nobody reads.
#[derive(Debug)]
pub(super) struct Layout;

impl MemoryLayoutPolicy for Layout {
    fn apply(
        &self,
        stream: StreamId,
        descriptors: &[MemoryLayoutDescriptor],
    ) -> (Handle, Vec<MemoryLayout>) {
        let bytes = |d: &MemoryLayoutDescriptor| d.shape.iter().product::<usize>() * d.elem_size;
        let total: usize = descriptors.iter().map(bytes).sum();
        let whole = Handle::new(stream, total as u64);
        let mut start = 0;
        let layouts = descriptors.iter().map(|descriptor| {
            let end = start + bytes(descriptor);
            let memory = whole.clone().offset_start(start as u64);
            let memory = memory.offset_end((total - end) as u64);
            start = end;
            let mut stride = 1;
            let mut strides: Vec<usize> = vec![];
            for dim in descriptor.shape.iter().rev() {
                strides.insert(0, stride);
                stride *= dim;
            }
            MemoryLayout::new(memory, Strides::from(strides))
        });
        let layouts = layouts.collect();
        (whole, layouts)
    }
}

#[derive(Debug)]
pub(super) struct Server(Arc<ServerUtilities<Self>>);

impl DeviceService for Server {
    fn init(_: DeviceId) -> Self {
        let memory = MemoryDeviceProperties {
            max_page_size: 1 << 30,
            alignment: 256,
        };
        // An H100's.
        let hardware = HardwareProperties {
            load_width: 128,
            plane_size_min: 32,
            plane_size_max: 32,
            max_bindings: 1024,
            max_shared_memory_size: 227 << 10,
            max_cube_count: Paper::max_cube_count(),
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: Some(132),
            num_tensor_cores: Some(4),
            min_tensor_cores_dim: Some(8),
            num_cpu_cores: None,
            max_vector_size: VectorSize::MAX,
        };
        let mut properties =
            DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System);
        properties.features.plane.insert(Plane::Ops);
        let logger = Arc::new(ServerLogger::default());
        Self(Arc::new(ServerUtilities::new(
            properties,
            logger,
            (),
            Layout,
        )))
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        self.0.clone() as ServerUtilitiesHandle
    }
}

impl ServerCommunication for Server {
    const SERVER_COMM_ENABLED: bool = false;
}

impl ComputeServer for Server {
    type Kernel = Box<dyn CubeTask<Cuda>>;
    type Info = ();
    type MemoryLayoutPolicy = Layout;
    type Storage = BytesStorage;

    fn initialize_memory(&mut self, _: ManagedMemoryHandle, _: u64, _: StreamId) {}

    fn logger(&self) -> Arc<ServerLogger> {
        self.0.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities<Self>> {
        self.0.clone()
    }

    fn read(
        &mut self,
        _: Vec<CopyDescriptor>,
        _: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        unreachable!("there is nothing to read")
    }

    fn write(&mut self, _: Vec<(CopyDescriptor, Bytes)>, _: StreamId) {}

    fn sync(&mut self, _: StreamId) -> DynFut<Result<(), ServerError>> {
        Box::pin(async { Ok(()) })
    }

    fn get_resource(
        &mut self,
        _: Binding,
        _: StreamId,
    ) -> Result<
        ManagedResource<<BytesStorage as cubecl_runtime::storage::ComputeStorage>::Resource>,
        ServerError,
    > {
        unreachable!("there is no memory")
    }

    unsafe fn launch(
        &mut self,
        kernel: Self::Kernel,
        _: CubeCount,
        _: KernelArguments,
        mode: ExecutionMode,
        _: StreamId,
    ) {
        let mut options = <Cuda as cubecl::Compiler>::CompilationOptions::default();
        options.supports_features.fast_math = true;
        options.supports_features.grid_constants = true;
        let address = kernel.address_type();
        let source = match kernel.compile(&mut Default::default(), &options, mode, address) {
            Ok(compiled) => compiled.source,
            // NVRTC will say that this is no program.
            Err(error) => format!("{error:?}"),
        };
        SOURCES
            .lock()
            .expect("no test panicked")
            .push((kernel.name().into(), source));
    }

    fn flush(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn memory_usage(&mut self, _: StreamId) -> Result<MemoryUsage, ServerError> {
        unreachable!("there is no memory")
    }

    fn memory_cleanup(&mut self, _: StreamId) {}

    fn start_profile(&mut self, _: StreamId) -> Result<ProfilingToken, ServerError> {
        unreachable!("nothing runs")
    }

    fn end_profile(
        &mut self,
        _: StreamId,
        _: ProfilingToken,
    ) -> Result<ProfileDuration, ProfileError> {
        unreachable!("nothing runs")
    }

    fn allocation_mode(&mut self, _: MemoryAllocationMode, _: StreamId) {}
}
