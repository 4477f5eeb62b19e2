//! The packages of the providers, file by file. Computed from the wheels for Linux on x86-64, the one system on which they
//! were tried; a wheel that several Pythons can use is the one for Python 3.12.

use super::TENSORRT_RTX_LIBRARIES;
use super::bundle::{Bundle, Pinned, Wheel};

/// What setup can install for a provider.
pub(crate) const BUNDLES: &[Bundle] = if cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")) {
    &[CUDA, TENSORRT_RTX, OPENVINO, WEBGPU]
} else {
    &[]
};

const fn file(name: &'static str, bytes: u64, sha256: &'static str) -> Pinned {
    Pinned { name, bytes, sha256 }
}

/// ONNX Runtime's build for NVIDIA's GPUs, with CUDA 13.0: the oldest that it takes, so that it runs with the oldest drivers.
const CUDA: Bundle = Bundle {
    name: "cuda",
    version: "1.31.1-cuda13.0-cudnn9.28.1",
    preload: &[
        "libcudart.so.13",
        "libcublasLt.so.13",
        "libcublas.so.13",
        "libcufft.so.12",
        "libcurand.so.10",
        "libnvrtc-builtins.so.13.0",
        "libnvrtc.so.13",
        "libcudnn.so.9",
    ],
    wheels: &[
        Wheel {
            package: "onnxruntime-gpu",
            version: "1.31.1",
            platform: "manylinux_2_28_x86_64",
            bytes: 255_569_273,
            folder: "onnxruntime/capi",
            files: &[
                file(
                    "libonnxruntime.so.1.31.1",
                    29_421_832,
                    "5104254339ecadae808da771bd0b63b240f0dbd466514234905e54372435c303",
                ),
                file(
                    "libonnxruntime_providers_shared.so",
                    14_632,
                    "086ec1d5388f64153d9c63470d126693db9a182c8ce236d3a1119068471b8a0d",
                ),
                file(
                    "libonnxruntime_providers_cuda.so",
                    284_014_752,
                    "8387867e857499e045caff5d13ac6a5de29571c801562fa2dde0e45f1f31de52",
                ),
                file(
                    "libonnxruntime_providers_tensorrt.so",
                    994_968,
                    "1882ee49fdb0e6fc2d272b00cfaf9a3310bf8580a34385c0eec4d82014ea172e",
                ),
            ],
        },
        Wheel {
            package: "nvidia-cuda-runtime",
            version: "13.0.96",
            platform: "manylinux_2_17_x86_64",
            bytes: 2_243_632,
            folder: "nvidia/cu13/lib",
            files: &[file(
                "libcudart.so.13",
                704_288,
                "96c42e418cec19054186b9429c321603cc190bf26a18104e19408117a2a817b0",
            )],
        },
        Wheel {
            package: "nvidia-cublas",
            version: "13.1.0.3",
            platform: "manylinux_2_27_x86_64",
            bytes: 423_133_236,
            folder: "nvidia/cu13/lib",
            files: &[
                file(
                    "libcublasLt.so.13",
                    541_595_600,
                    "656298c804f5adbb0df930545c17911b9584ab4e5101c0eeb65d1fe881d880f8",
                ),
                file("libcublas.so.13", 54_177_976, "e70f38efabe986acd5eb683497c62f0f1730a6176ee291d9d24c6e339d1fbf86"),
            ],
        },
        Wheel {
            package: "nvidia-cufft",
            version: "12.0.0.61",
            platform: "manylinux_2_17_x86_64",
            bytes: 214_085_489,
            folder: "nvidia/cu13/lib",
            files: &[file(
                "libcufft.so.12",
                286_542_352,
                "0933f68bb7e3bf90f86d70bc87cd2f69027f7757e89e5de5e19ec33a53fd8d3a",
            )],
        },
        Wheel {
            package: "nvidia-curand",
            version: "10.4.0.35",
            platform: "manylinux_2_27_x86_64",
            bytes: 59_544_258,
            folder: "nvidia/cu13/lib",
            files: &[file(
                "libcurand.so.10",
                132_698_328,
                "b53732a66b302b11926e00f762e2c2ba67058347ff93cf4ae709de45e93e06da",
            )],
        },
        Wheel {
            package: "nvidia-cuda-nvrtc",
            version: "13.0.88",
            platform: "manylinux_2_12_x86_64",
            bytes: 90_215_200,
            folder: "nvidia/cu13/lib",
            files: &[
                file(
                    "libnvrtc-builtins.so.13.0",
                    4_380_616,
                    "91dcd944d01da9c0f08fff5d779db136a47f6d62bdb63bae900d2f481e92c3a2",
                ),
                file("libnvrtc.so.13", 109_338_064, "a49e67e8e74590f1e98de55c39c6287efd3f59e3c3797464d7bbe0fe01349b11"),
            ],
        },
        Wheel {
            package: "nvidia-cudnn-cu13",
            version: "9.28.1.4",
            platform: "manylinux_2_27_x86_64",
            bytes: 516_817_937,
            folder: "nvidia/cudnn/lib",
            files: &[
                file("libcudnn.so.9", 137_432, "f756cabeed9b481134769fdbc0c2ae022cf52ac39aab08be26ea990a56da2efc"),
                file(
                    "libcudnn_adv.so.9",
                    92_392_360,
                    "d69ed7d8adc4524ddb6cbf5e10211e35f580d14e40924692f0cdf1b78cf23ab2",
                ),
                file(
                    "libcudnn_cnn.so.9",
                    4_204_144,
                    "2512f47e6e33000e12be5b2e59ac71eb8f5805a548561e7637e4413d1b7cdeb7",
                ),
                file(
                    "libcudnn_engines_precompiled.so.9",
                    260_072_128,
                    "51bd1d25591ae2994120aac5c5be172e31b973e0fdeba43a50647949096ee40a",
                ),
                file(
                    "libcudnn_engines_runtime_compiled.so.9",
                    41_978_752,
                    "738655d1b9441a752fde9b9911780635e60fe96113f2b06c1af6d70458ef5174",
                ),
                file(
                    "libcudnn_engines_tensor_ir.so.9",
                    249_581_552,
                    "ff088c803f896fd9a92c0ab861026ff3b7ee5a4222713c3dd8221e1c843e74ec",
                ),
                file(
                    "libcudnn_ext.so.9",
                    10_492_592,
                    "46c273e178b7733ffa5d56bd9719f378a20b94e07d2ccf23c4078e22bced0652",
                ),
                file(
                    "libcudnn_graph.so.9",
                    149_118_552,
                    "06c28f04f028466cf33461a7d645210146015d425a0dae6c7dc7e60c07c4d973",
                ),
                file(
                    "libcudnn_heuristic.so.9",
                    96_473_968,
                    "7738da4dd6fee9597680ff595863743b2bc4bd5b0ec3edb4e8e9d28a2b5e629d",
                ),
                file(
                    "libcudnn_ops.so.9",
                    35_661_648,
                    "e849b0a7353eec5bb5c9f75d841d075d786e205d84f8fd07b092770554674e48",
                ),
            ],
        },
    ],
};

/// NVIDIA's plugin, with TensorRT for RTX itself and CUDA's runtime. Its package also has a library that records calls, which
/// nothing asks for.
const TENSORRT_RTX: Bundle = Bundle {
    name: "tensorrt-rtx",
    version: "0.5.0",
    preload: &TENSORRT_RTX_LIBRARIES,
    wheels: &[Wheel {
        package: "onnxruntime-ep-nv-tensorrt-rtx-cu13",
        version: "0.5.0",
        platform: "manylinux_2_28_x86_64",
        bytes: 146_476_965,
        folder: "onnxruntime_ep_nv_tensorrt_rtx",
        files: &[
            file(
                "libonnxruntime_providers_nv_tensorrt_rtx.so",
                5_113_208,
                "d83dde283dd583376fa17b49fbc9d7c85674ae1a077f7e5671f79c4e2f056d78",
            ),
            file("libcudart.so.13.4.36", 798_496, "82d50fc923566a86ff5449cb190d58007a26280669b4f62be2c284cacb51ed24"),
            file(
                "libtensorrt_onnxparser_rtx.so.1.7.1",
                4_097_984,
                "8bc09093b0e460f494d0410d8a2d2739b3e4de441d016e1f8ffa74bfb99a49aa",
            ),
            file(
                "libtensorrt_plugins.so",
                69_706_480,
                "45eb50eb35378a737ba96e63f7aa8b4ef1f7c7e1739f9066fe869a7074d7a0d4",
            ),
            file(
                "libtensorrt_rtx.so.1.7.1",
                234_013_248,
                "6980f8946580af43f06ccbd82a06c65d61638ff76329d726764a0a408747be84",
            ),
        ],
    }],
};

/// Intel's plugin, with OpenVINO itself.
const OPENVINO: Bundle = Bundle {
    name: "openvino",
    version: "1.8.1",
    preload: &[],
    wheels: &[Wheel {
        package: "onnxruntime-ep-openvino",
        version: "1.8.1",
        platform: "manylinux_2_28_x86_64",
        bytes: 52_587_628,
        folder: "onnxruntime_ep_openvino",
        files: &[
            file(
                "libonnxruntime_providers_openvino_plugin.so",
                3_069_280,
                "99644306dea90173d2fac5e2ad8d10c9574ecf6e6e71ca30e426531abd5a717f",
            ),
            file("cache.json", 8_840_377, "0b2ad2a99516a3411ce3fef274e8ae2880b41a6f00c9bac6768cd4a94b87c41c"),
            file("libhwloc.so.15", 473_321, "e91be9f5bc1c87aadb08f2e19ebcb742979adda0a5434f72650a154e317e7fb1"),
            file("libopenvino.so.2641", 20_526_937, "9b9a80ac1f18e07b13ed54459d9a865bcfe9dc170dbf8fe740c2974b85ecedc1"),
            file(
                "libopenvino_auto_batch_plugin.so",
                265_129,
                "1e7102276dd42ef917078a09be4f1838c41c3611ca2e10c34fb7ea31f1fef561",
            ),
            file(
                "libopenvino_auto_plugin.so",
                685_129,
                "3971fe197490e31479727aa761e8abc972f7967f67eaa39cac75859f1e19e017",
            ),
            file(
                "libopenvino_hetero_plugin.so",
                559_265,
                "387eec6f2341230ceb13e1cca0476fcee87ca0e9e2386e2a9db00e6cea8378a9",
            ),
            file(
                "libopenvino_intel_cpu_plugin.so",
                63_691_929,
                "6599e3dd300d047b5ed72f8e48101c5f312c25321f35f57f803641ff8372900b",
            ),
            file(
                "libopenvino_intel_gpu_plugin.so",
                41_732_569,
                "e494cf8fb428f1fecfad35e2bac7b2fb24159ac6b13fe19027f0c4ae36374b33",
            ),
            file(
                "libopenvino_intel_npu_plugin.so",
                10_595_337,
                "911ead691e0f96df5cac7202a74ab1b07a93f0167e404701c0d3548fadbc15e5",
            ),
            file(
                "libopenvino_ir_frontend.so.2641",
                640_313,
                "554e9fd3d4a0fbc587c14379464b2324e24b8ea736cfb749ad2cd9e74dfc09e0",
            ),
            file(
                "libopenvino_onnx_frontend.so.2641",
                6_827_321,
                "82d499f5b5e8514def7aaa1ecd5a9f570542d33ae9d00a0077f707cccd0e0192",
            ),
            file("libtbb.so.12", 369_313, "ac9518497a4f2cb6729792730f145ee58367316031511923fef263c9ac81ca61"),
            file("libtbbbind_2_5.so.3", 33_025, "179ebd1223abd20a461dc978f24090d7ef7c1308b8dff14e4adfe4a21d75543f"),
            file("libtbbmalloc.so.2", 159_729, "0cccbdb4783bf190da19b34540fb7f749b0955ec1982d7ac8e5f398365399895"),
            file("libtbbmalloc_proxy.so.2", 28_377, "ecd654634c8a40fe45850c230e2fdbead674c4a1d6a54e89c117e919b61a6df0"),
        ],
    }],
};

/// The plugin for Vulkan.
const WEBGPU: Bundle = Bundle {
    name: "webgpu",
    version: "0.4.0",
    preload: &[],
    wheels: &[Wheel {
        package: "onnxruntime-ep-webgpu",
        version: "0.4.0",
        platform: "manylinux_2_28_x86_64",
        bytes: 6_892_120,
        folder: "onnxruntime_ep_webgpu",
        files: &[file(
            "libonnxruntime_providers_webgpu.so",
            16_450_888,
            "9f76e3dc4459421958ad086a9da03bf7e5de9289e9a3a56e28bbb459773dec81",
        )],
    }],
};
