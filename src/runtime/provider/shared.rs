//! Options that several providers have.

use super::options::{Form, OptionDef};

/// Plugins are libraries of their own.
pub(super) const LIBRARY_OPTION: OptionDef = OptionDef {
    name: "library",
    form: Form::Text,
    key: None,
    about: "the plugin's library file; unless given, looked for where setup puts it, beside ONNX Runtime's library and beside the program",
};

/// How many runs are recorded, on providers that record them.
pub(super) const CAPTURES: OptionDef = OptionDef {
    name: "graph-captures",
    form: Form::Number { min: 1, max: 1000 },
    key: None,
    about: "most runs that each stage records and replays, each with tensors that stay; none unless asked for",
};
