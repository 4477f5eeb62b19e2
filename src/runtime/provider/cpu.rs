//! ONNX Runtime's own CPU provider: always there, and what every other one is compared with.

use super::options::OptionDef;

/// ONNX Runtime's name.
pub(super) const NAME: &str = "CPUExecutionProvider";

/// Threads, spinning and the place of the weights belong to the engine, whatever the provider.
pub(super) const OPTIONS: &[OptionDef] = &[];
