/* How processes end: by exit() while something runs, in a child of fork(), and with objects that are freed last of all.
 * Each case is a process of its own, which must end by itself with the code that it gives.
 * ends ONNXRUNTIME TINY EMOJI VIDEO FOLDER [CASE NUMBER] */
#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* What a process that ends well gives. */
enum { CODE = 42, PATIENCE_S = 120 };

/* Whether a case frees everything. LeakSanitizer asks: a process that ends in the middle of something does not. */
static int is_tidy;
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void) { return !is_tidy; }

static const char *runtime, *tiny, *emoji, *video;
/* Which of several tries of a case this is. */
static int number;

static dbcache_engine *load(const char *directory) {
    OK(dbcache_runtime_load(runtime));
    dbcache_engine *engine = NULL;
    OK(dbcache_engine_load(directory, NULL, &engine));
    return engine;
}

/* What a process still has when it ends. */
static struct {
    dbcache_engine *engine;
    dbcache_request *request;
    dbcache_denoiser *denoiser;
    dbcache_result *result;
    dbcache_options *options;
    dbcache_tensor *tensor;
} last;

/* Calls that need ONNX Runtime, where it cannot be used any more. */
#define ALL_FAIL(code, words)                                                                                \
    do {                                                                                                     \
        const int64_t shape_[1] = {1};                                                                       \
        float number_ = 1, numbers_[1024] = {0}, velocity_[1024];                                            \
        dbcache_memory memory_ = {.struct_size = sizeof memory_, .data = &number_, .bytes = sizeof number_}; \
        dbcache_options *options_ = OPTIONS("provider", "openvino", "build-cache", "unused");               \
        size_t length_ = 0;                                                                                  \
        dbcache_engine *engine_ = NULL;                                                                      \
        dbcache_tensor *tensor_ = NULL;                                                                      \
        dbcache_result *made_ = NULL;                                                                        \
        FAILS(dbcache_runtime_load(runtime), code, NULL, words);                                             \
        FAILS(dbcache_plan(tiny, options_, 12, NULL, 0, &length_), code, NULL, words);                       \
        FAILS(dbcache_engine_load(tiny, NULL, &engine_), code, NULL, words);                                 \
        FAILS(dbcache_tensor_import(last.engine, &memory_, DBCACHE_DTYPE_F32, shape_, 1, &tensor_),          \
              code, NULL, words);                                                                            \
        NEVER_BEGINS(tiny_request(last.engine, NULL, 0), code, NULL, words);                                 \
        FAILS(dbcache_denoiser_latents(last.denoiser, numbers_, 1024), code, NULL, words);                   \
        FAILS(dbcache_denoiser_velocity(last.denoiser, DBCACHE_BRANCH_BOTH, 1, numbers_, velocity_, 1024),   \
              code, NULL, words);                                                                            \
        FAILS(dbcache_denoiser_result(last.denoiser, numbers_, 1024, &made_), code, NULL, words);            \
        CHECK(length_ == 0 && engine_ == NULL && tensor_ == NULL && made_ == NULL);                          \
        dbcache_options_free(options_);                                                                      \
} while (0)

/* A request that loads stages which the engine does not have yet, and takes steps for ever. */
static dbcache_request *long_request(const dbcache_engine *engine) {
    dbcache_options *options = OPTIONS("cache", "f1b1w0", "steps", "10000");
    dbcache_request *request = tiny_request(engine, options, 0);
    dbcache_options_free(options);
    return request;
}

static atomic_int heard, is_stepping;

/* From then on ONNX Runtime makes sessions. */
static int32_t hears(const dbcache_log *log, void *user) {
    (void)user;
    if (strcmp(log->target, "ort::logging") == 0) heard = 1;
    return 0;
}

static int32_t steps(const dbcache_progress *progress, void *user) {
    (void)user;
    if (progress->done > 0) is_stepping = 1;
    return 0;
}

static void await(atomic_int *flag) {
    while (!*flag) usleep(100);
}

/* Different for each try: from nothing to a few times what a small session takes to load. */
static void linger(void) { usleep((useconds_t)number * 5000); }

static void while_a_request_loads(void) {
    dbcache_options *options = OPTIONS("cache", "f1b1w0", "steps", "10000");
    dbcache_request *request = NULL;
    OK(dbcache_request_new(load(emoji), options, &request));
    OK(dbcache_request_set_prompt(request, "lemon"));
    OK(dbcache_request_on_log(request, DBCACHE_LOG_TRACE, hears, NULL));
    OK(dbcache_request_start(request));
    await(&heard);
    linger();
    exit(CODE);
}

static void *loads(void *user) {
    dbcache_options *options = OPTIONS("threads", "2");
    OK(dbcache_options_on_log(options, DBCACHE_LOG_TRACE, hears, NULL));
    dbcache_engine *engine = NULL;
    dbcache_error *error = dbcache_engine_load(user, options, &engine);
    /* It may come so far, but no further. */
    if (error != NULL) FAILS(error, DBCACHE_ERROR_CANCELLED, NULL, "cancelled");
    return NULL;
}

static void while_a_thread_loads_the_first_engine(void) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, loads, (void *)(uintptr_t)(number % 2 == 0 ? tiny : emoji)) == 0);
    await(&heard);
    linger();
    exit(CODE);
}

static void while_requests_run(void) {
    dbcache_engine *engine = load(tiny);
    for (int i = 0; i < 2; i++) {
        dbcache_request *request = long_request(engine);
        OK(dbcache_request_on_progress(request, steps, NULL));
        OK(dbcache_request_start(request));
    }
    await(&is_stepping);
    linger();
    exit(CODE);
}

static int32_t exits_at_a_step(const dbcache_progress *progress, void *user) {
    (void)user;
    if (progress->done == 2) exit(CODE);
    return 0;
}

static void in_a_callback_of_a_thread_of_the_library(void) {
    dbcache_engine *engine = load(tiny);
    dbcache_request *request = long_request(engine), *other = long_request(engine);
    OK(dbcache_request_on_progress(request, exits_at_a_step, NULL));
    OK(dbcache_request_start(other));
    OK(dbcache_request_start(request));
    dbcache_result *result = NULL;
    dbcache_error_free(dbcache_request_wait(request, &result));
    for (;;) pause();
}

static void in_a_callback_of_the_main_thread(void) {
    dbcache_engine *engine = load(tiny);
    dbcache_request *request = long_request(engine), *other = long_request(engine);
    OK(dbcache_request_on_progress(request, exits_at_a_step, NULL));
    OK(dbcache_request_start(other));
    dbcache_result *result = NULL;
    dbcache_error_free(dbcache_request_run(request, &result));
}

static int32_t exits_at_a_message(const dbcache_log *log, void *user) {
    (void)log;
    if (--*(int *)user < 0) exit(CODE);
    return 0;
}

/* On whichever thread loads. */
static void in_a_log_callback(void) {
    OK(dbcache_runtime_load(runtime));
    int messages = number * 7;
    dbcache_options *options = OPTIONS("threads", "2");
    OK(dbcache_options_on_log(options, DBCACHE_LOG_TRACE, exits_at_a_message, &messages));
    dbcache_engine *engine = NULL;
    dbcache_error_free(dbcache_engine_load(tiny, options, &engine));
}

static int32_t stays(const dbcache_progress *progress, void *user) {
    (void)user;
    if (progress->done == 1) {
        is_stepping = 1;
        for (;;) pause();
    }
    return 0;
}

/* The end does not wait for a callback, which may wait for the end. */
static void while_a_callback_waits(void) {
    dbcache_request *request = long_request(load(tiny));
    OK(dbcache_request_on_progress(request, stays, NULL));
    OK(dbcache_request_start(request));
    await(&is_stepping);
    exit(CODE);
}

static void *exits(void *user) {
    (void)user;
    await(&is_stepping);
    exit(CODE);
}

static void by_another_thread(void) {
    dbcache_request *request = long_request(load(tiny));
    OK(dbcache_request_on_progress(request, steps, NULL));
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, exits, NULL) == 0);
    dbcache_result *result = NULL;
    FAILS(dbcache_request_run(request, &result), DBCACHE_ERROR_CANCELLED, NULL, "cancelled");
    for (;;) pause();
}

static void frees_all(void) {
    dbcache_denoiser_free(last.denoiser);
    dbcache_request_free(last.request);
    dbcache_result_free(last.result);
    dbcache_engine_free(last.engine);
    dbcache_options_free(last.options);
    dbcache_tensor_free(last.tensor);
}

/* As static objects of C++ do, which were there before ONNX Runtime: nothing can be used any more, everything be freed. */
static void frees_at_the_end(void) {
    is_tidy = 1;
    CHECK(atexit(frees_all) == 0);
    last.engine = load(tiny);
    dbcache_request *request = tiny_request(last.engine, NULL, 0);
    OK(dbcache_request_run(request, &last.result));
    dbcache_request_free(request);
    last.request = long_request(last.engine);
    OK(dbcache_denoiser_new(last.request, DBCACHE_GUIDANCE_LIBRARY, &last.denoiser));
    if (number > 0) OK(dbcache_request_start(last.request));
    last.options = OPTIONS("steps", "3");
    const int64_t shape[1] = {1};
    const float one = 1;
    OK(dbcache_tensor_new(DBCACHE_DTYPE_F32, shape, 1, &one, sizeof one, &last.tensor));
    exit(CODE);
}

static void uses_and_frees(void) {
    ALL_FAIL(DBCACHE_ERROR_CANCELLED, "cancelled");
    size_t length = 0;
    FAILS(dbcache_inspect(tiny, NULL, NULL, 0, &length), DBCACHE_ERROR_CANCELLED, NULL, "cancelled");
    FAILS(dbcache_result_write_video(last.result, 0, "unused.gif"), DBCACHE_ERROR_CANCELLED, NULL, "cancelled");
    frees_all();
}

static void uses_at_the_end(void) {
    CHECK(atexit(uses_and_frees) == 0);
    dbcache_options *options = OPTIONS("steps", "2", "size", "32x32", "frames", "1");
    dbcache_engine *engine = load(video);
    dbcache_request *request = video_request(engine, options, 1);
    OK(dbcache_request_run(request, &last.result));
    dbcache_request_free(request);
    dbcache_options_free(options);
    dbcache_engine_free(engine);
    last.engine = load(tiny);
    last.request = long_request(last.engine);
    OK(dbcache_denoiser_new(last.request, DBCACHE_GUIDANCE_LIBRARY, &last.denoiser));
    exit(CODE);
}

/* The child ends as well, can say why it cannot do more, and the parent goes on. */
static void forks(void) {
    dbcache_engine *engine = last.engine = load(tiny);
    dbcache_request *request = long_request(engine);
    OK(dbcache_denoiser_new(request, DBCACHE_GUIDANCE_LIBRARY, &last.denoiser));
    if (number % 2 == 1) {
        OK(dbcache_request_on_progress(request, steps, NULL));
        OK(dbcache_request_start(request));
        await(&is_stepping);
    }
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(PATIENCE_S);
        if (number >= 2) {
            ALL_FAIL(DBCACHE_ERROR_LIBRARY, "fork");
            dbcache_denoiser_free(last.denoiser);
            dbcache_engine_free(engine);
        }
        exit(CODE);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == CODE);
    OK(dbcache_request_cancel(request));
    dbcache_request_free(request);
    dbcache_denoiser_free(last.denoiser);
    request = tiny_request(engine, NULL, 0);
    dbcache_result *result = NULL;
    OK(dbcache_request_run(request, &result));
    dbcache_result_free(result);
    dbcache_request_free(request);
    dbcache_engine_free(engine);
    exit(CODE);
}

/* ONNX Runtime reports to nobody, and what the host knows of its environment stays. */
static void nothing_is_reported(void) {
    CHECK(setenv("DBCACHE_TEST", "kept", 1) == 0);
    const char *const before = getenv("DBCACHE_TEST");
    CHECK((number == 0 ? unsetenv("ORT_DISABLE_TELEMETRY") : setenv("ORT_DISABLE_TELEMETRY", "own", 1)) == 0);
    dbcache_engine_free(load(tiny));
    const char *const told = getenv("ORT_DISABLE_TELEMETRY");
    CHECK(told != NULL && strcmp(told, number == 0 ? "1" : "own") == 0);
    CHECK(getenv("DBCACHE_TEST") == before && strcmp(before, "kept") == 0);
    CHECK(setenv("DBCACHE_TEST", "changed", 1) == 0 && unsetenv("DBCACHE_TEST") == 0);
    exit(CODE);
}

static const struct {
    const char *name;
    void (*run)(void);
    int tries;
} cases[] = {
    {"while_a_request_loads", while_a_request_loads, 10},
    {"while_a_thread_loads_the_first_engine", while_a_thread_loads_the_first_engine, 10},
    {"while_requests_run", while_requests_run, 3},
    {"in_a_callback_of_a_thread_of_the_library", in_a_callback_of_a_thread_of_the_library, 1},
    {"in_a_callback_of_the_main_thread", in_a_callback_of_the_main_thread, 1},
    {"in_a_log_callback", in_a_log_callback, 3},
    {"while_a_callback_waits", while_a_callback_waits, 1},
    {"by_another_thread", by_another_thread, 1},
    {"frees_at_the_end", frees_at_the_end, 2},
    {"uses_at_the_end", uses_at_the_end, 1},
    {"forks", forks, 4},
    {"nothing_is_reported", nothing_is_reported, 2},
};

static void run_alone(char **argv, const char *name, int try) {
    char of_try[16];
    snprintf(of_try, sizeof of_try, "%d", try);
    char *arguments[] = {argv[0], argv[1], argv[2], argv[3], argv[4], argv[5], (char *)(uintptr_t)name, of_try, NULL};
    pid_t child = 0;
    CHECK(posix_spawn(&child, argv[0], NULL, NULL, arguments, environ) == 0);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == CODE) return;
    fprintf(stderr, "%s, try %d: %s %d\n", name, try, WIFEXITED(status) ? "code" : "signal",
            WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    exit(1);
}

int main(int argc, char **argv) {
    CHECK(argc == 6 || argc == 8);
    runtime = argv[1];
    tiny = argv[2];
    emoji = argv[3];
    video = argv[4];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (argc == 6) {
            const int tries = is_small() ? 1 : cases[i].tries;
            for (int try = 0; try < tries; try++) run_alone(argv, cases[i].name, try);
        } else if (strcmp(argv[6], cases[i].name) == 0) {
            number = atoi(argv[7]);
            alarm(PATIENCE_S);
            cases[i].run();
            return 1; /* The case did not end. */
        }
    }
    puts("ends: ok");
    return 0;
}
