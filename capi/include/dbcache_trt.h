/* dbcache-trt for C and C++ hosts. Generated from capi/src by `cargo xtask header`; not to be edited.
 *
 * Conventions, everywhere:
 * - A call that can fail returns NULL on success, else an error that the caller frees with dbcache_error_free.
 * - The line `Errors:` of a function names what it gives, without DBCACHE_ERROR_. DBCACHE_ERROR_INTERNAL and _PANIC, which
 *   are bugs of the library, can come from each function, and are not named again.
 * - docs/json.md names the members of all JSON texts.
 * - Outputs are written on success only, but for the length of a text whose buffer is too small. NULL for an argument is an
 *   error unless its comment allows it.
 * - The first argument is the object; inputs come before outputs. Texts are UTF-8 and end with a zero.
 * - Each object is freed with the function of its type, which takes NULL; nothing is ever freed with free().
 * - Numbers of constants are never reused. Options have names, so that new ones change nothing here.
 * - A handle that was freed must not be used: that is not found out. Objects that others were made of may be freed in
 *   any order.
 * - A callback must return: it must not throw, longjmp, nor end its thread (pthread_exit, cancellation). It may call exit().
 *   dbcache_trt.hpp keeps exceptions from getting out; hosts that do not use it do so themselves.
 *
 * The end of the process:
 * - exit(), from whichever thread: what runs or loads is cancelled, and waited for where it uses ONNX Runtime, before that is
 *   destroyed; a session that is being made is made to its end. Callbacks are not waited for. Calls that come later, such as
 *   those of static objects of C++, can only free; others give DBCACHE_ERROR_CANCELLED. What a host owes: not to call exit()
 *   in the few milliseconds in which the first engine of the process loads ONNX Runtime's file (without GNU's C library: and
 *   starts it), and no call from a thread that goes on while exit() runs but with handles that are not freed meanwhile. _exit() waits for nothing.
 * - fork(): a child has none of the library's threads. It can free what it has, call exit() or exec; calls that need ONNX
 *   Runtime give DBCACHE_ERROR_LIBRARY. Load the first engine after the last fork().
 * - dlclose() leaves the library where it is, and a later dlopen() finds it as it was. A host that links the archive into a
 *   plugin of its own links that with -Wl,-z,nodelete.
 */

#ifndef DBCACHE_TRT_H
#define DBCACHE_TRT_H

#include <stddef.h>
#include <stdint.h>

/* The version of the library that this header belongs to. */
#define DBCACHE_VERSION "0.1.0"

#if defined(__GNUC__) || defined(__clang__)
#define DBCACHE_MUST_USE __attribute__((warn_unused_result))
#else
#define DBCACHE_MUST_USE
#endif

/**
 * The prompt is encoded, and tensors are allocated.
 */
#define DBCACHE_PHASE_PREPARE 1

/**
 * Denoising steps.
 */
#define DBCACHE_PHASE_STEPS 2

/**
 * Latents become pixels.
 */
#define DBCACHE_PHASE_DECODE 3

/**
 * Blocks ran.
 */
#define DBCACHE_DECISION_COMPUTE 0

/**
 * What was kept of blocks was used again.
 */
#define DBCACHE_DECISION_SKIP 1

/**
 * Single blocks decided, and at least one was skipped.
 */
#define DBCACHE_DECISION_PER_BLOCK 2

/**
 * Something failed.
 */
#define DBCACHE_LOG_ERROR 1

/**
 * Something is suspicious, such as a cache that never skips.
 */
#define DBCACHE_LOG_WARN 2

/**
 * What happens, now and then.
 */
#define DBCACHE_LOG_INFO 3

/**
 * Every step.
 */
#define DBCACHE_LOG_DEBUG 4

/**
 * Everything.
 */
#define DBCACHE_LOG_TRACE 5

/**
 * The library combines the guidance branches: one call a step, with DBCACHE_BRANCH_BOTH.
 */
#define DBCACHE_GUIDANCE_LIBRARY 0

/**
 * The host combines them: one call a branch and step.
 */
#define DBCACHE_GUIDANCE_HOST 1

/**
 * The branch with the prompt.
 */
#define DBCACHE_BRANCH_COND 0

/**
 * The branch without it, or with the negative prompt.
 */
#define DBCACHE_BRANCH_UNCOND 1

/**
 * All branches of a step, combined by the library.
 */
#define DBCACHE_BRANCH_BOTH 2

/**
 * Success: what dbcache_error_code says of NULL.
 */
#define DBCACHE_OK 0

/**
 * An option is malformed, impossible, or would have no effect. The numbers of errors never change; removed ones are
 * never used again.
 */
#define DBCACHE_ERROR_USAGE 2

/**
 * ONNX Runtime's library is missing, too old, wrong or damaged, or another one is loaded already.
 */
#define DBCACHE_ERROR_LIBRARY 3

/**
 * The engine directory is incomplete, damaged, or lies.
 */
#define DBCACHE_ERROR_ENGINE_DIRECTORY 4

/**
 * A prompt, tensor or size does not fit the model.
 */
#define DBCACHE_ERROR_INPUT 5

/**
 * ONNX Runtime failed.
 */
#define DBCACHE_ERROR_RUNTIME 6

/**
 * A number that must be finite is not.
 */
#define DBCACHE_ERROR_NUMERIC 7

/**
 * Outputs differ from those they were checked against: the command says so, no function of this library.
 */
#define DBCACHE_ERROR_CHECK 8

/**
 * A file cannot be read or written.
 */
#define DBCACHE_ERROR_IO 9

/**
 * The provider is missing something, cannot be used here, or would run only a part of a graph.
 */
#define DBCACHE_ERROR_PROVIDER 10

/**
 * A build of the provider is missing, and compiling was forbidden.
 */
#define DBCACHE_ERROR_NOT_BUILT 11

/**
 * No memory or no thread is to be had, or a size asks for more than there can be.
 */
#define DBCACHE_ERROR_RESOURCES 12

/**
 * An argument of a call is NULL, not UTF-8, of the wrong length, or not one of the known constants.
 */
#define DBCACHE_ERROR_ARGUMENT 20

/**
 * The call does not fit what the object is doing, such as a second run of one request.
 */
#define DBCACHE_ERROR_STATE 21

/**
 * A bug of this library: please report it.
 */
#define DBCACHE_ERROR_INTERNAL 70

/**
 * A bug of this library that stopped the call in the middle: please report it. The objects of the call are not to be
 * used further, but can be freed.
 */
#define DBCACHE_ERROR_PANIC 71

/**
 * The caller cancelled.
 */
#define DBCACHE_ERROR_CANCELLED 130

/**
 * It can still be set up.
 */
#define DBCACHE_STATE_NEW 0

/**
 * It runs.
 */
#define DBCACHE_STATE_RUNNING 1

/**
 * It has a result or an error, which dbcache_request_wait gives at once.
 */
#define DBCACHE_STATE_ENDED 2

/**
 * The caller has its result or error.
 */
#define DBCACHE_STATE_TAKEN 3

/**
 * 32-bit floats.
 */
#define DBCACHE_DTYPE_F32 1

/**
 * 16-bit floats of IEEE 754.
 */
#define DBCACHE_DTYPE_F16 2

/**
 * The upper halves of 32-bit floats.
 */
#define DBCACHE_DTYPE_BF16 3

/**
 * What the processor reads.
 */
#define DBCACHE_MEMORY_HOST 0

/**
 * The memory of NVIDIA GPUs.
 */
#define DBCACHE_MEMORY_CUDA 1

/**
 * The version of the binary interface: programs that were compiled with another one must be compiled again. It is part
 * of the shared library's file name.
 */
#define DBCACHE_ABI_VERSION 1

/**
 * One generation, driven by the host call by call. The cache lives in it.
 */
typedef struct dbcache_denoiser dbcache_denoiser;

/**
 * A loaded model. Immutable: requests may run on several threads at once.
 */
typedef struct dbcache_engine dbcache_engine;

/**
 * Why a call failed. Immutable: any number of threads may read it.
 */
typedef struct dbcache_error dbcache_error;

/**
 * Options of engines and requests, by the names of the long flags of the command `dbcache-trt`. One object can serve
 * both: an engine reads those of its kind, a request the others.
 */
typedef struct dbcache_options dbcache_options;

/**
 * One generation. It runs once.
 */
typedef struct dbcache_request dbcache_request;

/**
 * Latents, pictures or videos, and what happened. Immutable: any number of threads may read it. It needs neither its
 * request nor its engine any more.
 */
typedef struct dbcache_result dbcache_result;

/**
 * A tensor in host memory, immutable: any number of threads may read it. Its numbers are 32-bit floats, row-major.
 */
typedef struct dbcache_tensor dbcache_tensor;

/**
 * One message of the library or of ONNX Runtime.
 */
typedef struct dbcache_log {
  /**
   * Of this struct, in bytes.
   */
  size_t struct_size;
  /**
   * One of DBCACHE_LOG_….
   */
  int32_t level;
  /**
   * The part of the library that speaks.
   */
  const char *target;
  /**
   * One line of UTF-8.
   */
  const char *message;
} dbcache_log;

/**
 * Called with each message, one at a time. It must return; not 0 cancels. What `log` points to lives until it returns. It may cancel and
 * poll requests; loading, running and waiting are errors, because what speaks may hold a lock.
 */
typedef int32_t (*dbcache_log_fn)(const struct dbcache_log *log, void *user);

/**
 * How far a request is.
 */
typedef struct dbcache_progress {
  /**
   * Of this struct, in bytes.
   */
  size_t struct_size;
  /**
   * One of DBCACHE_PHASE_….
   */
  int32_t phase;
  /**
   * Steps that are done.
   */
  size_t done;
  /**
   * Steps of the request; 0 while it is prepared.
   */
  size_t steps;
  /**
   * Wall time since the first step began.
   */
  double elapsed_ms;
} dbcache_progress;

/**
 * Called when a phase begins and after each step. It must return; not 0 cancels. What `progress` points to lives until it returns.
 */
typedef int32_t (*dbcache_progress_fn)(const struct dbcache_progress *progress, void *user);

/**
 * One decision: what one branch of one step did.
 */
typedef struct dbcache_step {
  /**
   * Of this struct, in bytes.
   */
  size_t struct_size;
  /**
   * From 0.
   */
  size_t step;
  /**
   * Steps of the request.
   */
  size_t steps;
  /**
   * `cond` or `uncond`.
   */
  const char *branch;
  /**
   * The picture of the batch that decided, from 0; -1 where the batch decides as one.
   */
  int64_t sample;
  /**
   * One of DBCACHE_DECISION_….
   */
  int32_t decision;
  /**
   * The rule that decided, such as `warmup` or `below`; docs/json.md names all.
   */
  const char *reason;
  /**
   * Noise level, 1 … 0, dimensionless.
   */
  double sigma;
  /**
   * Relative L1 change against the last computed step, dimensionless; NaN where no diff was taken.
   */
  double diff;
  /**
   * What the diff was compared with; NaN where no diff was taken.
   */
  double threshold;
  /**
   * How many blocks ran.
   */
  size_t blocks_run;
  /**
   * Wall time of this branch of the step.
   */
  double elapsed_ms;
  /**
   * Which blocks ran: `blocks_run` numbers in rising order, counted from the start of the model. NULL where none did.
   */
  const size_t *blocks;
  /**
   * The list of blocks that was decided on, from 0; -1 where all blocks are one list.
   */
  int64_t list;
  /**
   * Runs of ONNX Runtime sessions for this branch and list of the step.
   */
  size_t session_runs;
} dbcache_step;

/**
 * Called after each branch of each step (and list of blocks and picture that decides for itself). It must return; not 0
 * cancels. What
 * `step` and its members point to lives until it returns.
 */
typedef int32_t (*dbcache_step_fn)(const struct dbcache_step *step, void *user);

/**
 * One picture as the model expects it after a step.
 */
typedef struct dbcache_preview {
  /**
   * Of this struct, in bytes.
   */
  size_t struct_size;
  /**
   * From 0.
   */
  size_t step;
  /**
   * The picture or video of the batch, from 0; of a video the frame in its middle is shown.
   */
  size_t index;
  /**
   * In pixels.
   */
  uint32_t width;
  /**
   * In pixels.
   */
  uint32_t height;
  /**
   * `height * width * 3` bytes, row by row, red green blue.
   */
  const uint8_t *rgb;
  /**
   * How many they are.
   */
  size_t bytes;
} dbcache_preview;

/**
 * Called with each picture of the batch. It must return; not 0 cancels. What `preview` points to lives until it returns.
 */
typedef int32_t (*dbcache_preview_fn)(const struct dbcache_preview *preview, void *user);

/**
 * A picture of a result, or a frame of a video.
 */
typedef struct dbcache_picture {
  /**
   * Of this struct, in bytes; the caller sets it before the call. Afterwards it is how many bytes were filled.
   */
  size_t struct_size;
  /**
   * In pixels.
   */
  uint32_t width;
  /**
   * In pixels.
   */
  uint32_t height;
  /**
   * `height * width * 3` bytes, row by row, red green blue.
   */
  const uint8_t *rgb;
  /**
   * How many they are.
   */
  size_t bytes;
  /**
   * With which the picture or video was made.
   */
  uint64_t seed;
  /**
   * Frames of the video; 1 for a picture.
   */
  size_t frames;
  /**
   * Frames per second of the video; 0 for a picture.
   */
  double fps;
} dbcache_picture;

/**
 * Numbers in memory of the caller, on a device or not.
 */
typedef struct dbcache_memory {
  /**
   * Of this struct, in bytes; the caller sets it before the call.
   */
  size_t struct_size;
  /**
   * One of DBCACHE_MEMORY_….
   */
  int32_t kind;
  /**
   * Which device of that kind; 0 for the host.
   */
  int32_t device_id;
  /**
   * The stream on which work on the numbers was queued. No provider takes one yet: synchronise it, and leave NULL here.
   */
  void *stream;
  /**
   * The numbers, row-major, at a multiple of 4 bytes.
   */
  void *data;
  /**
   * How many bytes they have.
   */
  size_t bytes;
} dbcache_memory;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Opens a session with the engine, options, inputs and callbacks (step and log) of a request that has not run, and that
 * stays as it is. `guidance` is one of DBCACHE_GUIDANCE_….
 *
 * Errors: USAGE, LIBRARY, ENGINE_DIRECTORY, INPUT, RUNTIME, NUMERIC, IO, PROVIDER, NOT_BUILT, RESOURCES, ARGUMENT,
 * STATE, CANCELLED.
 * Threads: any. Ownership: the request may be freed before the session; the caller owns `*out`, and frees it with
 * dbcache_denoiser_free.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_denoiser_new(const struct dbcache_request *request,
                                           int32_t guidance,
                                           struct dbcache_denoiser **out);

/**
 * How many steps the session has, and the shape of its latents (`[batch, tokens, features]`, or as the engine has them).
 *
 * Errors: ARGUMENT.
 * Threads: any. Ownership: `*shape` is the session's and lives as long.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_denoiser_shape(const struct dbcache_denoiser *denoiser,
                                             size_t *steps,
                                             const int64_t **shape,
                                             size_t *rank);

/**
 * The branches of each step in the order in which they must be called, DBCACHE_BRANCH_…: at most two to `branches`, how
 * many to `*count`.
 *
 * Errors: ARGUMENT, STATE.
 * Threads: any. Ownership: the numbers are copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_denoiser_branches(const struct dbcache_denoiser *denoiser,
                                                int32_t *branches,
                                                size_t *count);

/**
 * The noise levels of the engine's own scheduler: exactly steps + 1 numbers. A host may use others.
 *
 * Errors: ARGUMENT, STATE.
 * Threads: any. Ownership: the numbers are copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_denoiser_sigmas(const struct dbcache_denoiser *denoiser,
                                              float *sigmas,
                                              size_t count);

/**
 * The latents that the session starts with: the noise of the request's seed, or its tensor `latents`. Exactly as many
 * numbers as dbcache_denoiser_shape says.
 *
 * Errors: LIBRARY, RUNTIME, RESOURCES, ARGUMENT, STATE, CANCELLED.
 * Threads: any, before the first step. Ownership: the numbers are copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_denoiser_latents(const struct dbcache_denoiser *denoiser,
                                               float *latents,
                                               size_t count);

/**
 * The velocity for latents at the noise level `sigma` (1 noise … 0 picture; a timestep of flow matching is 1000 sigma):
 * Euler's step is `latents += (next sigma - sigma) * velocity`. `branch` is the next one of dbcache_denoiser_branches;
 * the last one ends the step. Both arrays have `count` numbers; that they overlap is an error.
 *
 * Errors: USAGE, LIBRARY, INPUT, RUNTIME, NUMERIC, RESOURCES, ARGUMENT, STATE, CANCELLED.
 * Threads: one at a time, else an error; callbacks are called on it. Ownership: the numbers are copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_denoiser_velocity(const struct dbcache_denoiser *denoiser,
                                                int32_t branch,
                                                float sigma,
                                                const float *latents,
                                                float *velocity,
                                                size_t count);

/**
 * A result of a host's final latents: decoded, with the trace and statistics of the session. The session goes on.
 *
 * Errors: LIBRARY, RUNTIME, NUMERIC, RESOURCES, ARGUMENT, STATE, CANCELLED.
 * Threads: one at a time, else an error. Ownership: the numbers are copied; the caller owns `*out`, and frees it with
 * dbcache_result_free.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_denoiser_result(const struct dbcache_denoiser *denoiser,
                                              const float *latents,
                                              size_t count,
                                              struct dbcache_result **out);

/**
 * Asks a call of dbcache_denoiser_velocity to stop within one block of the model; later calls fail, too.
 *
 * Errors: ARGUMENT.
 * Threads: any, also signal handlers and callbacks. Ownership: none changes.
 */
DBCACHE_MUST_USE struct dbcache_error *dbcache_denoiser_cancel(const struct dbcache_denoiser *denoiser);

/**
 * Frees a session. NULL is allowed.
 *
 * Threads: one, when no other uses the session; not in its own callbacks. Ownership: takes the session; results stay.
 */
void dbcache_denoiser_free(struct dbcache_denoiser *denoiser);

/**
 * Loads ONNX Runtime's shared library from a path. A process has one: another path later is an error. Without this call
 * the first engine looks for it where the option `ort-library`, the variable ORT_DYLIB_PATH, `dbcache-trt setup` and the
 * system put it. It stays loaded until the process ends.
 *
 * Errors: LIBRARY, ARGUMENT, STATE, CANCELLED.
 * Threads: any. Ownership: the path is copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_runtime_load(const char *path);

/**
 * What an engine directory is, as JSON with a member `version`: blocks, parameters, bytes, defaults, limits, licence.
 * Nothing is loaded, and ONNX Runtime is not needed. Of the options only `weights` and `verify` are read; NULL is none.
 *
 * Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer. One that is too
 * small is an error, with the bytes in `*length`.
 *
 * Errors: USAGE, ENGINE_DIRECTORY, IO, ARGUMENT, STATE, CANCELLED.
 * Threads: any; one at a time for the options. Ownership: the text is copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_inspect(const char *directory,
                                      const struct dbcache_options *options,
                                      char *buffer,
                                      size_t capacity,
                                      size_t *length);

/**
 * What dbcache_engine_load and a request with these options will do, as JSON with a member `version`: sessions and stages,
 * bytes by kind (weights as stored and packed, graphs, what the cache will keep at most), and for a provider that
 * compiles the builds, of which the build cache has some (`hits`) and lacks others (`misses`). No model is loaded, and
 * ONNX Runtime is needed for a provider that compiles only. `text_length` is the number of text tokens, 0 where the engine
 * knows it: that of its tokenizer, or the most that it takes. NULL for no options.
 *
 * Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer. One that is too
 * small is an error, with the bytes in `*length`: between two calls the build cache may have changed, and so the text. Give
 * the second call some bytes more, and make it again where it tells that they are too few.
 *
 * Errors: USAGE, LIBRARY, ENGINE_DIRECTORY, INPUT, RUNTIME, IO, PROVIDER, RESOURCES, ARGUMENT, STATE, CANCELLED.
 * Threads: any; one at a time for the options. Ownership: the text is copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_plan(const char *directory,
                                   const struct dbcache_options *options,
                                   uint64_t text_length,
                                   char *buffer,
                                   size_t capacity,
                                   size_t *length);

/**
 * Loads an engine directory. Of the options those of engines are read; NULL is none.
 *
 * Errors: USAGE, LIBRARY, ENGINE_DIRECTORY, INPUT, RUNTIME, IO, PROVIDER, NOT_BUILT, RESOURCES, ARGUMENT, STATE,
 * CANCELLED.
 * Threads: any; one at a time for the options. Ownership: the texts are copied; the caller owns `*out`, and frees it
 * with dbcache_engine_free.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_engine_load(const char *directory,
                                          const struct dbcache_options *options,
                                          struct dbcache_engine **out);

/**
 * What was loaded and how, as JSON with a member `version`: the members of dbcache_inspect, `load_ms`, `weights_mode`,
 * and `onnxruntime` with its version, path and threads.
 *
 * Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer. One that is too
 * small is an error, with the bytes in `*length`.
 *
 * Errors: ARGUMENT.
 * Threads: any. Ownership: the text is copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_engine_info(const struct dbcache_engine *engine,
                                          char *buffer,
                                          size_t capacity,
                                          size_t *length);

/**
 * Frees an engine. NULL is allowed. Requests and sessions that were made with it go on; its memory goes with the last.
 *
 * Threads: one, when no other call uses the handle. Ownership: takes the engine.
 */
void dbcache_engine_free(struct dbcache_engine *engine);

/**
 * The number of an error, one of `DBCACHE_ERROR_…`; DBCACHE_OK for NULL.
 *
 * Threads: any. Ownership: none changes.
 */
int32_t dbcache_error_code(const struct dbcache_error *error);

/**
 * What happened, where, why and how to mend it, in UTF-8; an empty text for NULL. It is one line, but for
 * DBCACHE_ERROR_LIBRARY, which has one for each place where ONNX Runtime was looked for. Options are named as the command's
 * flags.
 *
 * Threads: any. Ownership: the text is the error's and lives as long.
 */
const char *dbcache_error_message(const struct dbcache_error *error);

/**
 * What the error is about: an option or argument by its name, a file by its path, or the graph or branch that failed;
 * NULL where no one thing is to blame, and for NULL.
 *
 * Threads: any. Ownership: the text is the error's and lives as long.
 */
const char *dbcache_error_field(const struct dbcache_error *error);

/**
 * Frees an error. NULL is allowed.
 *
 * Threads: one, when no other uses the error. Ownership: takes the error.
 */
void dbcache_error_free(struct dbcache_error *error);

/**
 * Makes an object without options: everything is the library's default.
 *
 * Errors: ARGUMENT.
 * Threads: any. Ownership: the caller owns `*out`, and frees it with dbcache_options_free.
 */
DBCACHE_MUST_USE struct dbcache_error *dbcache_options_new(struct dbcache_options **out);

/**
 * Sets one option, such as `cache` to `f8b16`, `steps` to `28` or `spin` to `true`; a second value replaces the first.
 * Unknown names (the error tells the nearest known one, or the call that does it) and texts that are no value are errors, and
 * change nothing.
 *
 * Errors: USAGE, INPUT, IO, ARGUMENT.
 * Threads: one at a time for one object. Ownership: the texts are copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_options_set(struct dbcache_options *options,
                                          const char *name,
                                          const char *value);

/**
 * Hands on the messages that the library and ONNX Runtime give during calls that take these options and look at or load
 * an engine (dbcache_inspect, dbcache_plan, dbcache_engine_load), up to the level `most` (DBCACHE_LOG_ERROR …
 * DBCACHE_LOG_TRACE); NULL for no longer. A callback that does not answer with 0 makes the call end with
 * DBCACHE_ERROR_CANCELLED. Requests have their own: dbcache_request_on_log.
 *
 * Errors: ARGUMENT.
 * Threads: one at a time for one object; the callback is called on the thread of the call and on those that load for it,
 * one at a time. Ownership: `user` is handed back, and must live until these calls have returned.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_options_on_log(struct dbcache_options *options,
                                             int32_t most,
                                             dbcache_log_fn callback,
                                             void *user);

/**
 * The names of all options, as a JSON list.
 *
 * Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer. One that is too
 * small is an error, with the bytes in `*length`.
 *
 * Errors: ARGUMENT.
 * Threads: any. Ownership: the text is copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_options_names(char *buffer,
                                            size_t capacity,
                                            size_t *length);

/**
 * Frees options. NULL is allowed. Engines and requests that were made with them stay as they are.
 *
 * Threads: one, when no other uses the object. Ownership: takes the object.
 */
void dbcache_options_free(struct dbcache_options *options);

/**
 * Makes a request. Of the options those of requests are read, NULL is none; options of engines must be those with which
 * the engine was loaded.
 *
 * Errors: USAGE, ARGUMENT.
 * Threads: any; one at a time for the options. Ownership: the options are copied, the engine may be freed before the
 * request; the caller owns `*out`, and frees it with dbcache_request_free.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_request_new(const struct dbcache_engine *engine,
                                          const struct dbcache_options *options,
                                          struct dbcache_request **out);

/**
 * Says what to make; for engines with text graphs.
 *
 * Errors: ARGUMENT, STATE.
 * Threads: any. Ownership: the text is copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_request_set_prompt(struct dbcache_request *request,
                                                 const char *prompt);

/**
 * Says what to keep away from; needs classifier-free guidance.
 *
 * Errors: ARGUMENT, STATE.
 * Threads: any. Ownership: the text is copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_request_set_negative_prompt(struct dbcache_request *request,
                                                          const char *prompt);

/**
 * Gives a tensor instead of what the engine would compute: a text input by the name in the manifest (with `negative_` in
 * front for the uncond branch), `latents` `[batch, tokens, features]`, or `sigmas` `[steps + 1]`.
 *
 * Errors: ARGUMENT, STATE.
 * Threads: any. Ownership: the tensor may be freed afterwards.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_request_set_tensor(struct dbcache_request *request,
                                                 const char *name,
                                                 const struct dbcache_tensor *tensor);

/**
 * Reports phases and steps; NULL for no longer.
 *
 * Errors: ARGUMENT, STATE.
 * Threads: any; the callback is called on the thread that runs the request, which is that of dbcache_request_run, or one
 * of the library after dbcache_request_start. It may call any function, but not wait for its own request. Ownership:
 * `user` is handed back, and must live until the request has ended.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_request_on_progress(struct dbcache_request *request,
                                                  dbcache_progress_fn callback,
                                                  void *user);

/**
 * Reports every decision; NULL for no longer.
 *
 * Errors: ARGUMENT, STATE.
 * Threads and ownership: as dbcache_request_on_progress.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_request_on_step(struct dbcache_request *request,
                                              dbcache_step_fn callback,
                                              void *user);

/**
 * Shows what the picture will be after each `every` steps; each costs a decode. NULL for no longer. Engines without a
 * decode graph show nothing.
 *
 * Errors: ARGUMENT, STATE.
 * Threads and ownership: as dbcache_request_on_progress.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_request_on_preview(struct dbcache_request *request,
                                                 size_t every,
                                                 dbcache_preview_fn callback,
                                                 void *user);

/**
 * Hands on the messages that the library and ONNX Runtime give on the thread of the request, up to the level `most`
 * (DBCACHE_LOG_ERROR … DBCACHE_LOG_TRACE); NULL for no longer. For what an engine says while it is loaded:
 * dbcache_options_on_log.
 *
 * Errors: ARGUMENT, STATE.
 * Threads and ownership: as dbcache_request_on_progress; where a request loads more of an engine, on the threads that do
 * so as well, one at a time. It may cancel and poll, but not load, run or wait.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_request_on_log(struct dbcache_request *request,
                                             int32_t most,
                                             dbcache_log_fn callback,
                                             void *user);

/**
 * Runs a request on this thread until it has ended.
 *
 * Errors: USAGE, LIBRARY, ENGINE_DIRECTORY, INPUT, RUNTIME, NUMERIC, IO, PROVIDER, NOT_BUILT, RESOURCES, ARGUMENT,
 * STATE, CANCELLED.
 * Threads: any; requests of one engine run at the same time. Ownership: the caller owns `*out`, and frees it with
 * dbcache_result_free.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_request_run(struct dbcache_request *request,
                                          struct dbcache_result **out);

/**
 * Starts a request on a thread of the library, and returns at once.
 *
 * Errors: RESOURCES, ARGUMENT, STATE.
 * Threads: any. Ownership: none changes.
 */
DBCACHE_MUST_USE struct dbcache_error *dbcache_request_start(struct dbcache_request *request);

/**
 * What a request is doing, one of DBCACHE_STATE_…; does not wait.
 *
 * Errors: ARGUMENT.
 * Threads: any. Ownership: none changes.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_request_poll(const struct dbcache_request *request,
                                           int32_t *state);

/**
 * Waits until a started request has ended, and gives its result or its error, once.
 *
 * Errors: USAGE, LIBRARY, ENGINE_DIRECTORY, INPUT, RUNTIME, NUMERIC, IO, PROVIDER, NOT_BUILT, RESOURCES, ARGUMENT,
 * STATE, CANCELLED.
 * Threads: any but the request's own callbacks, where it is an error. Ownership: the caller owns `*out`, and frees it
 * with dbcache_result_free.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_request_wait(struct dbcache_request *request,
                                           struct dbcache_result **out);

/**
 * Asks a request to stop: it ends with DBCACHE_ERROR_CANCELLED within one block of the model, unless it has ended. Does
 * not wait, can be repeated, and cancels a request that was not started, too.
 *
 * Errors: ARGUMENT.
 * Threads: any, also signal handlers and callbacks. Ownership: none changes.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_request_cancel(const struct dbcache_request *request);

/**
 * Frees a request. NULL is allowed. One that runs is cancelled and waited for: afterwards no callback is made any more. In
 * one of its own callbacks it does not wait: that callback is the last one, and the rest goes when it has returned. Nor
 * does it wait in a log callback of another one.
 *
 * Threads: one, when no other call begins with the handle; a thread in dbcache_request_run or dbcache_request_wait gets
 * its error. Ownership: takes the request; results stay.
 */
void dbcache_request_free(struct dbcache_request *request);

/**
 * The final latents, `[batch, tokens, features]` or as the engine has them.
 *
 * Errors: ARGUMENT.
 * Threads: any. Ownership: `*out` is the result's and lives as long; it must not be freed.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_result_latents(const struct dbcache_result *result,
                                             const struct dbcache_tensor **out);

/**
 * How many pictures or videos there are: one for each of the batch, 0 for an engine without a decode graph.
 *
 * Errors: ARGUMENT.
 * Threads: any. Ownership: none changes.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_result_pictures(const struct dbcache_result *result,
                                              size_t *count);

/**
 * One picture, or the first frame of a video, counted from 0 in the batch. `picture->struct_size` must be
 * `sizeof(dbcache_picture)`.
 *
 * Errors: ARGUMENT.
 * Threads: any. Ownership: the pixels are the result's and live as long.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_result_picture(const struct dbcache_result *result,
                                             size_t index,
                                             struct dbcache_picture *picture);

/**
 * One frame of a video, both counted from 0; a picture has one. Else as dbcache_result_picture, whose `frames` tells how
 * many there are.
 *
 * Errors: ARGUMENT.
 * Threads: any. Ownership: the pixels are the result's and live as long.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_result_frame(const struct dbcache_result *result,
                                           size_t index,
                                           size_t frame,
                                           struct dbcache_picture *picture);

/**
 * Writes one picture as a PNG file that tells how it was made; the file appears when it is complete. For videos there is
 * dbcache_result_write_video.
 *
 * Errors: USAGE, IO, ARGUMENT, STATE.
 * Threads: any. Ownership: the path is copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_result_write_png(const struct dbcache_result *result,
                                               size_t index,
                                               const char *path);

/**
 * Writes one video, in the format of its name, as the command does: `.png` (animated), `.gif`, `name_%04d.png` (one PNG a
 * frame), no ending (a folder of such), and by the program ffmpeg `.mp4` and `.webm`. PNG files tell how it was made. It
 * appears when it is complete. For pictures there is dbcache_result_write_png.
 *
 * Errors: USAGE, INPUT, IO, RESOURCES, ARGUMENT, STATE, CANCELLED.
 * Threads: any. Ownership: the path is copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_result_write_video(const struct dbcache_result *result,
                                                 size_t index,
                                                 const char *path);

/**
 * The record of every decision, as the command's --trace writes it, and --replay and the option `replay` read it: a JSON
 * list with one object, which has a member `version`.
 *
 * Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer. One that is too
 * small is an error, with the bytes in `*length`.
 *
 * Errors: ARGUMENT.
 * Threads: any. Ownership: the text is copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_result_trace(const struct dbcache_result *result,
                                           char *buffer,
                                           size_t capacity,
                                           size_t *length);

/**
 * What happened in numbers, as JSON with a member `version`: decisions, steps and blocks that ran and were skipped,
 * diffs, times, bytes, warnings. New members may come without a new version.
 *
 * Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer. One that is too
 * small is an error, with the bytes in `*length`.
 *
 * Errors: ARGUMENT.
 * Threads: any. Ownership: the text is copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_result_statistics(const struct dbcache_result *result,
                                                char *buffer,
                                                size_t capacity,
                                                size_t *length);

/**
 * The same in a few lines for people.
 *
 * Two calls: with NULL and 0 it only writes the bytes that are needed to `*length`, then it fills the buffer. One that is too
 * small is an error, with the bytes in `*length`.
 *
 * Errors: ARGUMENT.
 * Threads: any. Ownership: the text is copied.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_result_summary(const struct dbcache_result *result,
                                             char *buffer,
                                             size_t capacity,
                                             size_t *length);

/**
 * Frees a result. NULL is allowed. What it lent (latents, pixels) is gone with it.
 *
 * Threads: one, when no other uses the result. Ownership: takes the result.
 */
void dbcache_result_free(struct dbcache_result *result);

/**
 * Makes a tensor from host memory: `rank` extents in `shape` and `bytes` bytes of numbers of `dtype` (DBCACHE_DTYPE_F32,
 * _F16 or _BF16), row-major. Halves become 32-bit floats.
 *
 * Errors: RESOURCES, ARGUMENT.
 * Threads: any. Ownership: shape and numbers are copied; the caller owns `*out`, and frees it with dbcache_tensor_free.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_tensor_new(int32_t dtype,
                                         const int64_t *shape,
                                         size_t rank,
                                         const void *data,
                                         size_t bytes,
                                         struct dbcache_tensor **out);

/**
 * Makes a tensor from memory of a kind that the engine's provider knows: DBCACHE_MEMORY_HOST always, DBCACHE_MEMORY_CUDA
 * for the providers `cuda` and `tensorrt`. `memory->struct_size` must be `sizeof(dbcache_memory)`; dtype and shape as in
 * dbcache_tensor_new.
 *
 * Errors: USAGE, LIBRARY, RUNTIME, RESOURCES, ARGUMENT, STATE, CANCELLED.
 * Threads: any. Ownership: the numbers are copied to host memory before it returns; the caller owns `*out`, and frees it
 * with dbcache_tensor_free.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_tensor_import(const struct dbcache_engine *engine,
                                            const struct dbcache_memory *memory,
                                            int32_t dtype,
                                            const int64_t *shape,
                                            size_t rank,
                                            struct dbcache_tensor **out);

/**
 * The extents of a tensor and how many there are.
 *
 * Errors: ARGUMENT.
 * Threads: any. Ownership: `*shape` is the tensor's and lives as long.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_tensor_shape(const struct dbcache_tensor *tensor,
                                           const int64_t **shape,
                                           size_t *rank);

/**
 * The numbers of a tensor, row-major, and how many there are.
 *
 * Errors: ARGUMENT.
 * Threads: any. Ownership: `*data` is the tensor's and lives as long.
 */
DBCACHE_MUST_USE
struct dbcache_error *dbcache_tensor_data(const struct dbcache_tensor *tensor,
                                          const float **data,
                                          size_t *count);

/**
 * Frees a tensor that dbcache_tensor_new has made. NULL is allowed. Requests that took it keep their copy.
 *
 * Threads: one, when no other uses the tensor. Ownership: takes the tensor. Not for tensors of results.
 */
void dbcache_tensor_free(struct dbcache_tensor *tensor);

/**
 * The version of the library, such as `0.1.0`.
 *
 * Threads: any. Ownership: the text is static.
 */
const char *dbcache_version(void);

/**
 * The DBCACHE_ABI_VERSION that the library was built with: compare it with that of the header.
 *
 * Threads: any. Ownership: none changes.
 */
uint32_t dbcache_abi_version(void);

/**
 * How the library was built, as a JSON object with the member `version` 1: `library`, `abi`, `target`, `profile`,
 * `onnxruntime_api` (the oldest ONNX Runtime 1.x that it takes), `file_name` (of ONNX Runtime's library here).
 *
 * Threads: any. Ownership: the text is static.
 */
const char *dbcache_build_info(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* DBCACHE_TRT_H */
