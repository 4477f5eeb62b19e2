//! Plugins: two set-ups at once, damage, and TensorRT for RTX up to its device.

use std::fs;
use std::process::Stdio;

use anyhow::{Result, ensure};

use super::{Check, both, expect};
use crate::run::root;

impl Check {
    /// Plugins, by two set-ups at once.
    pub(super) fn plugins(&self) -> Result<()> {
        let both_at_once = ["setup", "--provider", "openvino,webgpu"];
        let mut children = Vec::new();
        for _ in 0..2 {
            children.push(self.program(&both_at_once).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
        }
        let mut texts = Vec::new();
        for child in children {
            let output = child.wait_with_output()?;
            ensure!(output.status.success(), "{}", both(&output));
            texts.push(both(&output));
        }
        let all = texts.concat();
        for words in
            ["waiting for another setup", "installed openvino 1.8.1 with", "openvino 1.8.1 is already installed"]
        {
            ensure!(all.contains(words), "{words:?} is missing: {all}");
        }
        println!("ok   two set-ups at once: one installs, one waits");
        let looked = ["openvino", "webgpu"].map(|name| format!("{}/providers/{name}", self.home.display()));
        expect("plugins are found", &mut self.program(&["providers"]), 0, &[looked[0].as_str(), looked[1].as_str()])?;
        self.damaged()
    }

    /// What was damaged since it was installed is refused by name, and others take its place only where a list says so.
    fn damaged(&self) -> Result<()> {
        let model = root().join("models/emoji").display().to_string();
        let run = |provider: &'static str| {
            ["--engine", &model, "--prompt", "lemon", "--steps", "1", "--provider", provider].map(str::to_owned)
        };
        let picture = self.folder.join("lemon.png");
        let on = |provider| {
            let words = run(provider);
            let mut command = self.program(&words.each_ref().map(String::as_str));
            command.arg("--output").arg(&picture);
            command
        };
        let plugin = self.home.join("providers/webgpu/0.4.0/libonnxruntime_providers_webgpu.so");
        let whole = fs::read(&plugin)?;
        fs::write(&plugin, &whole[..1000])?;
        let words = ["is damaged: libonnxruntime_providers_webgpu.so: 1000 bytes", "setup --provider webgpu"];
        expect("a plugin that was cut", &mut on("webgpu"), 10, &words)?;
        expect("and is told by providers", &mut self.program(&["providers"]), 0, &words)?;
        expect("a list goes on without it", &mut on("webgpu,cpu"), 0, &words)?;
        fs::write(&plugin, whole)?;

        let (cudnn, away) = (self.installed()?.join("libcudnn.so.9"), self.folder.join("libcudnn.so.9"));
        fs::rename(&cudnn, &away)?;
        let words = ["is damaged: libcudnn.so.9: is missing", "setup --provider cuda"];
        expect("a list goes on without a damaged `cuda`", &mut on("cuda,cpu"), 0, &words)?;
        fs::rename(&away, &cudnn)?;

        let mut providers = self.program(&["providers"]);
        providers.env("DBCACHE_TRT_HOME", self.folder.join("nothing"));
        let words = ["there is no ONNX Runtime", "mend it: dbcache-trt setup --provider webgpu"];
        expect("providers before any set-up", &mut providers, 0, &words)
    }

    /// The plugin of TensorRT for RTX up to its device: it loads with all that it needs, and there is no GPU for it.
    pub(super) fn tensorrt_rtx(&self) -> Result<()> {
        let provider = "tensorrt-rtx";
        let set_up = &mut self.program(&["setup", "--provider", provider]);
        expect("TensorRT for RTX", set_up, 0, &["installed tensorrt-rtx 0.5.0 with"])?;
        let list = ["providers", "--provider", provider];
        let told =
            |word: &'static str| ["tensorrt-rtx not usable", "libonnxruntime_providers_nv_tensorrt_rtx.so", word];
        let on_gpu = |capability| vec![("STAND_IN_GPU", "1"), ("STAND_IN_CAPABILITY", capability)];
        for (driver, variables, word) in [
            ("no device", vec![], "the provider `tensorrt-rtx` cannot be used: no CUDA device was found"),
            ("a GPU of the data centre", on_gpu("90"), "compute capability 9.0; use `cuda`"),
            (
                "a GPU that only the driver sees",
                on_gpu("89"),
                "its plugin offers no GPU here; NVIDIA's driver lists one",
            ),
            (
                "an old driver",
                vec![("STAND_IN_CUDA", "12040")],
                "the provider `tensorrt-rtx` cannot be used: the NVIDIA driver is too old: release 550.54.14",
            ),
        ] {
            let name = format!("TensorRT for RTX: {driver}");
            expect(&name, &mut self.with_driver(&list, &variables), 0, &told(word))?;
        }
        let words = ["needs libcuda.so.1", "install the NVIDIA driver"];
        expect("TensorRT for RTX: no driver", &mut self.program(&list), 0, &words)?;
        let model = root().join("models/emoji").display().to_string();
        let line = ["--engine", &model, "--prompt", "lemon", "--steps", "1", "--provider", provider];
        let words = ["the provider `tensorrt-rtx` cannot be used: no CUDA device was found"];
        expect("TensorRT for RTX: a run without a device", &mut self.with_driver(&line, &[]), 10, &words)?;
        let library = self.home.join("providers/tensorrt-rtx/0.5.0/libtensorrt_rtx.so.1.7.1");
        fs::rename(&library, self.folder.join("away"))?;
        let words =
            ["is damaged: libtensorrt_rtx.so.1.7.1: is missing", "mend it: dbcache-trt setup --provider tensorrt-rtx"];
        expect("TensorRT for RTX: a part of it is gone", &mut self.with_driver(&list, &[]), 0, &words)?;
        let repair = &mut self.program(&["setup", "--provider", provider]);
        expect("TensorRT for RTX: repair", repair, 0, &["repaired tensorrt-rtx"])
    }
}
