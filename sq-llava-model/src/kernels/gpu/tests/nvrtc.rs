//! NVIDIA's run-time compiler, which needs no GPU.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::{Library, Symbol};

type Program = *mut std::ffi::c_void;

/// The compiler and the folder of the CUDA headers.
pub(super) struct Nvrtc {
    library: Library,
    headers: PathBuf,
}

impl Nvrtc {
    /// Where it is installed: `SQ_LLAVA_NVRTC` names the folder into which pip put
    /// `nvidia-cuda-nvrtc-cu12` and `nvidia-cuda-runtime-cu12`; else the system's and `CUDA_PATH`.
    pub fn find() -> Option<Self> {
        let packages =
            std::env::var_os("SQ_LLAVA_NVRTC").map(|root| Path::new(&root).join("nvidia"));
        let toolkit = std::env::var_os("CUDA_PATH").map(PathBuf::from);
        let headers = [
            packages
                .as_ref()
                .map(|root| root.join("cuda_runtime/include")),
            toolkit.map(|root| root.join("include")),
            Some(PathBuf::from("/usr/local/cuda/include")),
        ];
        let mut headers = headers.into_iter().flatten();
        let headers = headers.find(|folder| folder.join("cuda_runtime.h").is_file())?;
        let folder = packages
            .map(|root| root.join("cuda_nvrtc/lib"))
            .unwrap_or_default();
        let names = ["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"];
        let mut places = names
            .iter()
            .flat_map(|name| [folder.join(name), PathBuf::from(name)]);
        // SAFETY: NVRTC's initialisers have no preconditions.
        let library = places.find_map(|place| unsafe { Library::new(place) }.ok())?;
        Some(Self { library, headers })
    }

    /// Compiles for an architecture such as `sm_90`; `Err` is what the compiler says.
    pub fn compile(&self, source: &str, architecture: &str) -> Result<(), String> {
        let source = CString::new(source).map_err(|error| error.to_string())?;
        let options = [
            format!("--gpu-architecture={architecture}"),
            format!("--include-path={}", self.headers.display()),
        ];
        let options = options.map(|option| CString::new(option).expect("no zero bytes"));
        let options = options.each_ref().map(|option| option.as_ptr());
        // SAFETY: signatures as in nvrtc.h; strings end with zero and outlive the calls, the
        // program is made before it is used and used before it is destroyed.
        unsafe {
            let create: Symbol<
                unsafe extern "C" fn(
                    *mut Program,
                    *const c_char,
                    *const c_char,
                    c_int,
                    *const *const c_char,
                    *const *const c_char,
                ) -> c_int,
            > = self.symbol(b"nvrtcCreateProgram\0");
            let compile: Symbol<
                unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
            > = self.symbol(b"nvrtcCompileProgram\0");
            let log_size: Symbol<unsafe extern "C" fn(Program, *mut usize) -> c_int> =
                self.symbol(b"nvrtcGetProgramLogSize\0");
            let log: Symbol<unsafe extern "C" fn(Program, *mut c_char) -> c_int> =
                self.symbol(b"nvrtcGetProgramLog\0");
            let destroy: Symbol<unsafe extern "C" fn(*mut Program) -> c_int> =
                self.symbol(b"nvrtcDestroyProgram\0");
            let mut program: Program = ptr::null_mut();
            let none = ptr::null();
            let made = create(
                &mut program,
                source.as_ptr(),
                none,
                0,
                ptr::null(),
                ptr::null(),
            );
            assert_eq!(made, 0, "no program is made");
            let status = compile(program, options.len() as c_int, options.as_ptr());
            let mut size = 0;
            log_size(program, &mut size);
            let mut said = vec![0 as c_char; size.max(1)];
            log(program, said.as_mut_ptr());
            destroy(&mut program);
            match status {
                0 => Ok(()),
                _ => Err(CStr::from_ptr(said.as_ptr()).to_string_lossy().into_owned()),
            }
        }
    }

    /// # Safety
    /// `T` is the type of the function of that name.
    unsafe fn symbol<T>(&self, name: &[u8]) -> Symbol<'_, T> {
        // SAFETY: as the caller promises.
        unsafe { self.library.get(name) }.expect("a function of NVRTC")
    }
}
