//! What must be so before several ranks make one generation.

use crate::cancel::CancelToken;
use crate::collective::ContextParallel;
use crate::error::{Error, Result};
use crate::request::Asked;
use crate::request::inputs::Inputs;
use crate::request::options::RequestOptions;

/// Compares what the ranks are asked for.
///
/// # Errors
/// `Usage` where a rank is asked for something else.
pub(super) fn agree(parallel: &ContextParallel, inputs: &Inputs, options: &RequestOptions) -> Result<()> {
    let bits = |tensor: &ndarray::ArrayD<f32>| tensor.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
    let tensors: Vec<_> =
        inputs.tensors.iter().map(|(name, tensor)| (name, tensor.shape().to_vec(), bits(tensor))).collect();
    parallel.agree("input", &(&inputs.prompt, &inputs.negative_prompt, tensors))?;
    let asked = RequestOptions { cancel: CancelToken::default(), ..options.clone() };
    parallel.agree("request", &format!("{asked:?}"))
}

/// Refuses policies that need more of all tokens than sums.
///
/// # Errors
/// `Usage` with the option.
pub(super) fn check(asked: &Asked) -> Result<()> {
    let mut diffs = asked.shares.iter().flat_map(|share| &share.lists).filter_map(|list| list.cache.diff_options());
    if diffs.any(|options| options.important_condition_threshold.is_some()) {
        return Err(Error::option(
            "important_condition_threshold",
            "has no meaning on a share of the tokens: it looks for the tokens that change most among all of them; leave it \
             out, or the option `context-parallel`",
        ));
    }
    Ok(())
}
