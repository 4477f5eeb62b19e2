//! Hosts: those that own the loop, those that combine the branches themselves, and those that only watch.

use std::ops::ControlFlow;
use std::path::Path;

use crate::common::{emoji, relative_l1};
use dbcache_trt::cache::Branch;
use dbcache_trt::trace::StepRecord;
use dbcache_trt::{
    CancelToken, Denoiser, Engine, EngineOptions, ErrorKind, GuidanceBy, Image, Inputs, Observer, Phase, Progress,
    RequestOptions, load_library,
};
use ndarray::ArrayD;

/// Sums on the host and in a graph may round in another order.
const LATENT_RELATIVE_L1: f64 = 1e-5;

fn engine() -> Engine {
    Engine::load(emoji(), &EngineOptions::default()).unwrap()
}

fn options(cache: &str, steps: usize) -> RequestOptions {
    RequestOptions { cache: cache.parse().unwrap(), steps: Some(steps), seed: 5, ..RequestOptions::default() }
}

/// Euler, with the host's own guidance where the session has two branches.
fn drive(session: &mut Denoiser, scale: f32) -> ArrayD<f32> {
    let sigmas = session.sigmas().to_vec();
    let mut latents = session.latents().unwrap();
    for pair in sigmas.windows(2) {
        let mut velocities = Vec::new();
        for branch in session.branches() {
            velocities.push((branch, session.velocity(branch, &latents, pair[0]).unwrap().0));
        }
        let find = |branch| &velocities.iter().find(|(known, _)| *known == branch).unwrap().1;
        let velocity = match velocities.as_slice() {
            [(_, only)] => only.clone(),
            _ => {
                let (cond, uncond) = (find(Some(Branch::Cond)), find(Some(Branch::Uncond)));
                uncond + scale * (cond - uncond)
            }
        };
        latents = latents + (pair[1] - pair[0]) * velocity;
    }
    latents
}

#[test]
fn a_host_that_owns_the_loop_gets_the_same_picture() {
    let engine = engine();
    let inputs = Inputs::prompt("lemon");
    for (cache, scale) in
        [("f1b0w2r0.3", None), ("f1b0w2r0.3", Some(2.0)), ("f1b0w2r0.3cf1", Some(3.0)), ("f1b0w2r0.3cds0", Some(2.0))]
    {
        let options = options(cache, 10);
        let whole = RequestOptions { guidance: scale, ..options.clone() };
        let expected = engine.request(&inputs, &whole).unwrap().run(&mut ()).unwrap();
        assert!(expected.trace.skipped() > 0);
        let by = if scale.is_some() { GuidanceBy::Host } else { GuidanceBy::Library };
        let mut session = engine.denoiser(&inputs, &options, by).unwrap();
        let latents = drive(&mut session, scale.unwrap_or_default());
        let error = relative_l1(&latents, &expected.latents);
        assert!(error <= LATENT_RELATIVE_L1, "{cache} {scale:?}: {error:e}");
        let output = session.output(&latents).unwrap();
        for branch in [Branch::Cond, Branch::Uncond] {
            assert_eq!(output.trace.decisions(branch), expected.trace.decisions(branch), "{cache} {scale:?}");
        }
        assert!(output.images[0].psnr(&expected.images[0]).unwrap() > 60.0);
        let refused = session.velocity(session.branches()[0], &latents, 1.0).unwrap_err();
        assert!(refused.to_string().contains("all 10 steps of the request are done"), "{refused}");
        assert_eq!(refused.kind(), ErrorKind::State);
    }
}

#[test]
fn what_a_session_refuses() {
    let engine = engine();
    let inputs = Inputs::prompt("lemon");
    let guided = RequestOptions { guidance: Some(2.0), ..options("none", 2) };
    let refused = engine.denoiser(&inputs, &guided, GuidanceBy::Host).err().unwrap();
    assert_eq!((refused.kind(), refused.field()), (ErrorKind::Usage, Some("guidance")), "{refused}");

    let mut session = engine.denoiser(&inputs, &options("none", 2), GuidanceBy::Host).unwrap();
    let latents = session.latents().unwrap();
    for (branch, words) in [(Some(Branch::Uncond), "expects cond now"), (None, "the branch is both")] {
        let refused = session.velocity(branch, &latents, 1.0).unwrap_err();
        assert!(refused.to_string().contains(words), "{refused}");
        assert_eq!((refused.kind(), refused.field()), (ErrorKind::State, Some("branch")));
    }
    for (sigma, kind) in [(f32::NAN, ErrorKind::Numeric), (f32::INFINITY, ErrorKind::Numeric), (-1.0, ErrorKind::Input)]
    {
        let refused = session.velocity(Some(Branch::Cond), &latents, sigma).unwrap_err();
        assert_eq!((refused.kind(), refused.field()), (kind, Some("sigma")), "{refused}");
    }
    let mut holed = latents.clone();
    holed[[0, 0, 0]] = f32::NAN;
    let refused = session.velocity(Some(Branch::Cond), &holed, 1.0).unwrap_err();
    assert_eq!((refused.kind(), refused.field()), (ErrorKind::Numeric, Some("latents")), "{refused}");
    let refused = session.velocity(Some(Branch::Cond), &ArrayD::zeros(vec![1, 2, 3]), 1.0).unwrap_err();
    assert_eq!((refused.kind(), refused.field()), (ErrorKind::Input, Some("latents")));
    session.velocity(Some(Branch::Cond), &latents, 1.0).unwrap();

    let cancelled = RequestOptions { cancel: CancelToken::default(), ..options("none", 2) };
    let mut session = engine.denoiser(&inputs, &cancelled, GuidanceBy::Host).unwrap();
    cancelled.cancel.cancel();
    assert_eq!(session.velocity(Some(Branch::Cond), &latents, 1.0).unwrap_err().kind(), ErrorKind::Cancelled);
    let refused = session.velocity(Some(Branch::Cond), &latents, 1.0).unwrap_err();
    assert!(refused.to_string().contains("has failed in the middle of a step"), "{refused}");
}

/// Watches everything, and breaks at one progress.
#[derive(Default)]
struct Watcher {
    steps: usize,
    progress: Vec<(Phase, usize)>,
    previews: Vec<(usize, Image)>,
    breaks_at: Option<(Phase, usize)>,
    breaks_preview: bool,
}

impl Observer for Watcher {
    fn on_step(&mut self, _: &StepRecord) -> ControlFlow<()> {
        self.steps += 1;
        ControlFlow::Continue(())
    }

    fn on_progress(&mut self, progress: Progress) -> ControlFlow<()> {
        assert_eq!(progress.steps, 4);
        let at = (progress.phase, progress.done);
        self.progress.push(at);
        if self.breaks_at == Some(at) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn wants_preview(&mut self, step: usize) -> bool {
        step.is_multiple_of(3)
    }

    fn on_preview(&mut self, step: usize, images: &[Image]) -> ControlFlow<()> {
        self.previews.push((step, images[0].clone()));
        if self.breaks_preview { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[test]
fn progress_and_previews_come_in_order() {
    let engine = engine();
    let run =
        |watcher: &mut Watcher| engine.request(&Inputs::prompt("lemon"), &options("none", 4)).unwrap().run(watcher);
    let mut watcher = Watcher::default();
    let output = run(&mut watcher).unwrap();
    let steps = [0, 1, 2, 3, 4].map(|done| (Phase::Steps, done));
    assert_eq!(watcher.progress, [&steps[..], &[(Phase::Decode, 4)]].concat());
    assert_eq!(watcher.steps, 4);
    let previews: Vec<usize> = watcher.previews.iter().map(|(step, _)| *step).collect();
    assert_eq!(previews, [0, 3]);
    // The last step goes to the picture in one stride, as a preview does.
    let psnr = |index: usize| watcher.previews[index].1.psnr(&output.images[0]).unwrap();
    assert!(psnr(1) > 60.0 && psnr(0) < 40.0, "{} {}", psnr(0), psnr(1));

    for breaks_at in watcher.progress.clone() {
        let mut watcher = Watcher { breaks_at: Some(breaks_at), ..Watcher::default() };
        assert_eq!(run(&mut watcher).unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(watcher.progress.last(), Some(&breaks_at));
    }
    let mut watcher = Watcher { breaks_preview: true, ..Watcher::default() };
    assert_eq!(run(&mut watcher).unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!((watcher.steps, watcher.previews.len()), (1, 1));
}

#[test]
fn a_library_is_loaded_by_its_path_once() {
    let engine = engine();
    let path = engine.library().path.clone();
    load_library(&path).unwrap();
    let refused = load_library(Path::new("no/such.so")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Library);
    assert!(refused.to_string().contains("has already loaded"), "{refused}");
}
