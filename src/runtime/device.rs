//! Where an engine computes: a provider of the loaded library, and the memory that its tensors lie in.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use ort::session::builder::SessionBuilder;

use super::build_cache::key::KeyTarget;
use super::cuda_stream::Stream;
use super::errors::runtime_error;
use super::exchange;
use super::library::Loaded;
use super::memory::Memory;
use super::provider::assignment::{RECORD, strays};
use super::provider::compile::Extra;
use super::provider::{Provider, ProviderKind, ProviderSpec, Providers, Role};
use super::source::SessionSource;
use crate::collective::Collective;
use crate::error::{At, Error, ErrorKind, Result};

/// A provider in use. All sessions and tensors of an engine are made for it.
pub(crate) struct Device {
    pub(crate) library: Arc<Loaded>,
    provider: Provider,
    memory: Memory,
    allows_fallback: bool,
    fallbacks: Mutex<Vec<String>>,
    /// Stages whose runs are not recorded although that was asked for.
    unrecorded: Mutex<BTreeSet<String>>,
    /// The processes with which graphs exchange tokens.
    group: Option<Arc<dyn Collective>>,
}

impl Device {
    /// # Errors
    /// `Provider` when it cannot be used here.
    pub(crate) fn open(
        library: &Arc<Loaded>,
        spec: &ProviderSpec,
        allows_fallback: bool,
        group: Option<&Arc<dyn Collective>>,
    ) -> Result<Arc<Self>> {
        let provider = Provider::open(library, spec, allows_fallback)?;
        let memory = provider.memory(library)?;
        let (fallbacks, unrecorded) = Default::default();
        let (library, group) = (Arc::clone(library), group.cloned());
        Ok(Arc::new(Self { library, provider, memory, allows_fallback, fallbacks, unrecorded, group }))
    }

    /// The first of several providers on which `load` succeeds, with what it gave, and why not on those before it.
    ///
    /// # Errors
    /// Those of the last provider; any that is not about the provider.
    pub(crate) fn first<T>(
        library: &Arc<Loaded>,
        providers: &Providers,
        allows_fallback: bool,
        group: Option<&Arc<dyn Collective>>,
        mut load: impl FnMut(&Self) -> Result<T>,
    ) -> Result<(Arc<Self>, T, Vec<String>)> {
        let mut refused: Vec<String> = Vec::new();
        let mut specs = providers.iter().peekable();
        while let Some(spec) = specs.next() {
            let opened = Self::open(library, spec, allows_fallback, group);
            match opened.and_then(|device| Ok((load(&device)?, device))) {
                Ok((loaded, device)) => return Ok((device, loaded, refused)),
                Err(error) if error.kind() == ErrorKind::Provider && specs.peek().is_some() => {
                    refused.push(error.to_string());
                }
                Err(error) if refused.is_empty() => return Err(error),
                Err(error) => return Err(error.at(format!("{}; and then", refused.join("; ")))),
            }
        }
        Err(Error::internal("a list of no providers"))
    }

    /// The provider and its options.
    pub(crate) fn spec(&self) -> &ProviderSpec {
        self.provider.spec()
    }

    /// Whether only one thread at a time may use the provider. The WebGPU plugin crashes otherwise (0.4.0): its sessions share
    /// one device. And what other threads launch while a run is recorded would be recorded with it.
    pub(super) fn takes_turns(&self) -> bool {
        self.spec().kind() == ProviderKind::WebGpu || self.spec().captures().is_some()
    }

    /// The stream on which runs may be left unfinished; `None` if each run waits for its end.
    pub(super) fn unwaited(&self) -> Option<Stream> {
        self.provider.unwaited()
    }

    /// How many runs a session of this role records at most; `None` if it records none.
    pub(super) fn captures(&self, role: Role) -> Option<usize> {
        self.spec().captures().filter(|_| role == Role::Stage)
    }

    /// Whether a session was refused because its runs cannot be recorded. Noted, since it is then loaded without.
    pub(super) fn refuses_capture(&self, source: &SessionSource<'_>, error: &Error) -> bool {
        let text = error.to_string();
        let refuses = self.captures(source.role).is_some() && text.contains("graph capture");
        if refuses {
            let remedy = match source.fixed {
                [] => "; with an option `profile` that gives each dimension one extent such nodes fold away",
                _ => "; they do not depend on dimensions that the option `profile` fixes",
            };
            let told = format!("{}: ONNX Runtime would run some of its nodes on the host{remedy}", source.name);
            self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner).insert(told);
        }
        refuses
    }

    /// Stages whose runs are not recorded although that was asked for, and why.
    pub(crate) fn unrecorded(&self) -> Vec<String> {
        self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// What builds of this provider depend on, beside their graphs.
    pub(crate) fn target(&self) -> KeyTarget {
        self.provider.target(&self.library)
    }

    /// What the timings of kernels depend on, which builders share.
    pub(crate) fn timing_target(&self) -> KeyTarget {
        self.provider.timing_target(&self.library)
    }

    /// Whether the host may read and write its tensors.
    pub(crate) fn is_host(&self) -> bool {
        self.memory.is_host()
    }

    /// The kind of memory that its tensors lie in.
    pub(super) fn memory(&self) -> Memory {
        self.memory
    }

    /// Nodes that run on another provider, a line for each graph; only where that is allowed.
    pub(crate) fn fallbacks(&self) -> Vec<String> {
        self.fallbacks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A session's options for this provider.
    pub(super) fn builder(&self, role: Role, extra: &Extra) -> Result<SessionBuilder> {
        let mut builder = self.library.session_builder().map_err(runtime_error)?;
        if let Some(group) = self.group.as_ref().filter(|_| role == Role::Stage) {
            let operators = exchange::operators(group).map_err(runtime_error)?;
            builder = builder.with_operators(operators).map_err(|error| runtime_error(error.into()))?;
        }
        // Some providers read the session's settings when they are appended.
        for (key, value) in &extra.session {
            builder = builder.with_config_entry(key, value).map_err(|error| runtime_error(error.into()))?;
        }
        let builder = self.provider.append(&self.library, builder, role, &extra.provider)?;
        if !self.is_foreign(role) {
            return Ok(builder);
        }
        builder.with_config_entry(RECORD, "1").map_err(|error| runtime_error(error.into()))
    }

    /// Whether graphs of this role run on another provider than ONNX Runtime's own.
    pub(super) fn is_foreign(&self, role: Role) -> bool {
        self.provider.ort_name(role) != ProviderKind::Cpu.ort_name()
    }

    /// Refuses a graph of which a part runs elsewhere, or notes it where that is allowed.
    ///
    /// # Errors
    /// `Provider` with the graph, and how many nodes of which operators.
    pub(super) fn check(&self, session: &ort::session::Session, source: &SessionSource<'_>) -> Result<()> {
        let SessionSource { name, model, role, .. } = *source;
        if role == Role::Copy || !self.is_foreign(role) {
            return Ok(());
        }
        let strays = strays(session, model, self.provider.ort_name(role)).at(name)?;
        if strays.is_empty() {
            return Ok(());
        }
        let described: Vec<String> = strays.iter().map(|strays| strays.describe()).collect();
        let told = format!("{name}: {}", described.join(", "));
        if self.allows_fallback {
            self.fallbacks.lock().unwrap_or_else(PoisonError::into_inner).push(told);
            return Ok(());
        }
        let kind = self.spec().kind();
        Err(Error::new(
            ErrorKind::Provider,
            format!(
                "the provider `{kind}` would not run all of {told}; pass the option `allow-fallback` to permit it, or use another \
                 provider"
            ),
        ))
    }
}
