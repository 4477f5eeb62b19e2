/* What hosts hear: messages of the library and of ONNX Runtime while an engine is loaded and while a request runs, up to a
 * level, on any thread, one at a time; callbacks that cancel, and callbacks that call back in.
 * logs ONNXRUNTIME TINY EMOJI VIDEO FOLDER */
#include "check.h"

#include <stdatomic.h>

typedef struct {
    int ours, of_runtime;
    int32_t most;
    atomic_flag is_in;
    /* Answers with not 0 to the first message. */
    int stops;
} ears;

static int32_t hear(const dbcache_log *log, void *user) {
    ears *e = user;
    CHECK(!atomic_flag_test_and_set(&e->is_in));
    CHECK(log->struct_size == sizeof *log && log->level <= e->most && log->message[0] != '\0');
    if (strncmp(log->target, "dbcache_trt", strlen("dbcache_trt")) == 0) e->ours++;
    if (strncmp(log->target, "ort", strlen("ort")) == 0) e->of_runtime++;
    atomic_flag_clear(&e->is_in);
    return e->stops;
}

/* Everything that ONNX Runtime says is a lot. */
static int32_t everything(void) { return is_small() ? DBCACHE_LOG_INFO : DBCACHE_LOG_TRACE; }

static ears hearing(int32_t most) { return (ears){.most = most, .is_in = ATOMIC_FLAG_INIT}; }

static void test_load(const char *directory) {
    dbcache_options *options = OPTIONS("threads", "1");
    dbcache_engine *engine = NULL;
    /* Nobody listens to the first one: what others hear does not depend on it. */
    OK(dbcache_engine_load(directory, options, &engine));
    dbcache_engine_free(engine);

    ears e = hearing(DBCACHE_LOG_WARN);
    OK(dbcache_options_on_log(options, DBCACHE_LOG_WARN, hear, &e));
    OK(dbcache_engine_load(directory, options, &engine));
    dbcache_engine_free(engine);
    CHECK(e.ours == 0);

    e = hearing(everything());
    OK(dbcache_options_on_log(options, everything(), hear, &e));
    OK(dbcache_engine_load(directory, options, &engine));
    CHECK(e.ours > 0 && e.of_runtime > 0);

    /* A request with these options does not speak to their callback. */
    e = hearing(everything());
    OK(dbcache_options_set(options, "steps", "2"));
    dbcache_request *request = tiny_request(engine, options, 0);
    dbcache_result *result = NULL;
    OK(dbcache_request_run(request, &result));
    dbcache_result_free(result);
    dbcache_request_free(request);
    dbcache_engine_free(engine);
    CHECK(e.ours == 0 && e.of_runtime == 0);

    /* An answer cancels the load, and nothing is given. */
    engine = NULL;
    e.stops = 1;
    FAILS(dbcache_engine_load(directory, options, &engine), DBCACHE_ERROR_CANCELLED, NULL, "cancelled");
    CHECK(engine == NULL && e.ours + e.of_runtime > 0);
    e = hearing(everything());
    OK(dbcache_options_on_log(options, everything(), NULL, NULL));
    OK(dbcache_engine_load(directory, options, &engine));
    dbcache_engine_free(engine);
    CHECK(e.ours == 0 && e.of_runtime == 0);
    dbcache_options_free(options);
}

/* What a log callback tries. */
typedef struct {
    const char *runtime, *directory;
    const dbcache_engine *engine;
    dbcache_request *own, *other;
    dbcache_denoiser *denoiser;
    int calls;
} trial;

#define REFUSED(call) FAILS(call, DBCACHE_ERROR_STATE, NULL, "a log callback can cancel and poll")

static int32_t calls_in(const dbcache_log *log, void *user) {
    trial *t = user;
    (void)log;
    if (t->calls++ > 0) return 0;
    size_t length = 0;
    dbcache_engine *engine = NULL;
    dbcache_result *result = NULL;
    dbcache_tensor *tensor = NULL;
    dbcache_denoiser *denoiser = NULL;
    float number = 0;
    const int64_t shape[1] = {1};
    dbcache_memory memory = {.struct_size = sizeof memory, .data = &number, .bytes = sizeof number};
    REFUSED(dbcache_runtime_load(t->runtime));
    REFUSED(dbcache_inspect(t->directory, NULL, NULL, 0, &length));
    REFUSED(dbcache_plan(t->directory, NULL, 0, NULL, 0, &length));
    REFUSED(dbcache_engine_load(t->directory, NULL, &engine));
    if (t->own == NULL) return 0;
    int32_t state = 77;
    REFUSED(dbcache_tensor_import(t->engine, &memory, DBCACHE_DTYPE_F32, shape, 1, &tensor));
    REFUSED(dbcache_request_run(t->other, &result));
    REFUSED(dbcache_request_wait(t->own, &result));
    REFUSED(dbcache_denoiser_new(t->other, DBCACHE_GUIDANCE_LIBRARY, &denoiser));
    REFUSED(dbcache_denoiser_velocity(t->denoiser, DBCACHE_BRANCH_BOTH, 1, &number, &number, 1));
    REFUSED(dbcache_denoiser_result(t->denoiser, &number, 1, &result));
    CHECK(length == 0 && engine == NULL && result == NULL && tensor == NULL && denoiser == NULL);
    OK(dbcache_request_poll(t->own, &state));
    CHECK(state == DBCACHE_STATE_RUNNING);
    OK(dbcache_request_cancel(t->own));
    return 0;
}

/* A session that is in use refuses everybody, also its own callback. */
static int32_t calls_its_session(const dbcache_log *log, void *user) {
    trial *t = user;
    (void)log;
    if (t->denoiser == NULL) return 0;
    t->calls++;
    int32_t branches[2];
    size_t count = 77;
    float sigmas[2], latents[1024];
    FAILS(dbcache_denoiser_branches(t->denoiser, branches, &count), DBCACHE_ERROR_STATE, NULL, "another thread uses");
    FAILS(dbcache_denoiser_sigmas(t->denoiser, sigmas, 2), DBCACHE_ERROR_STATE, NULL, "another thread uses");
    FAILS(dbcache_denoiser_latents(t->denoiser, latents, 1024), DBCACHE_ERROR_STATE, NULL, "another thread uses");
    CHECK(count == 77);
    return 0;
}

static void test_session_that_speaks(const char *directory) {
    trial t = {.calls = 0};
    /* A cache that never skips: its warning comes with the result. */
    dbcache_options *options = OPTIONS("steps", "1", "cache", "f1b0w1");
    dbcache_engine *engine = NULL;
    OK(dbcache_engine_load(directory, options, &engine));
    dbcache_request *request = tiny_request(engine, options, 0);
    OK(dbcache_request_on_log(request, DBCACHE_LOG_WARN, calls_its_session, &t));
    OK(dbcache_denoiser_new(request, DBCACHE_GUIDANCE_LIBRARY, &t.denoiser));
    float latents[1024], velocity[1024];
    dbcache_result *result = NULL;
    OK(dbcache_denoiser_latents(t.denoiser, latents, 1024));
    OK(dbcache_denoiser_velocity(t.denoiser, DBCACHE_BRANCH_BOTH, 1, latents, velocity, 1024));
    OK(dbcache_denoiser_result(t.denoiser, latents, 1024, &result));
    CHECK(t.calls > 0);
    dbcache_result_free(result);
    dbcache_denoiser_free(t.denoiser);
    dbcache_request_free(request);
    dbcache_options_free(options);
    dbcache_engine_free(engine);
}

static int32_t frees(const dbcache_log *log, void *user) {
    trial *t = user;
    (void)log;
    t->calls++;
    dbcache_request_free(t->own);
    return 0;
}

static void test_callbacks_that_call_in(const char *runtime, const char *directory) {
    trial t = {.runtime = runtime, .directory = directory};
    dbcache_options *options = OPTIONS("threads", "1", "steps", "4", "cache", "f1b0w4");
    dbcache_engine *engine = NULL;
    OK(dbcache_options_on_log(options, DBCACHE_LOG_INFO, calls_in, &t));
    OK(dbcache_engine_load(directory, options, &engine));
    CHECK(t.calls > 0);

    t = (trial){.runtime = runtime, .directory = directory, .engine = engine};
    t.own = tiny_request(engine, options, 0);
    t.other = tiny_request(engine, options, 0);
    OK(dbcache_denoiser_new(t.other, DBCACHE_GUIDANCE_LIBRARY, &t.denoiser));
    OK(dbcache_request_on_log(t.own, DBCACHE_LOG_WARN, calls_in, &t));
    dbcache_result *result = NULL;
    /* A cache that never skips: warnings come when everything is done, too late to cancel. */
    OK(dbcache_request_start(t.own));
    OK(dbcache_request_wait(t.own, &result));
    CHECK(t.calls > 0);
    dbcache_result_free(result);
    dbcache_request_free(t.own);

    /* Freed by its own log callback, which is its last one; the thread that runs it gets its result. */
    t.calls = 0;
    t.own = tiny_request(engine, options, 0);
    OK(dbcache_request_on_log(t.own, DBCACHE_LOG_WARN, frees, &t));
    OK(dbcache_request_run(t.own, &result));
    CHECK(t.calls == 1);
    dbcache_result_free(result);

    dbcache_denoiser_free(t.denoiser);
    dbcache_request_free(t.other);
    dbcache_engine_free(engine);
    dbcache_options_free(options);
}

/* An engine that is loaded without a cache loads more for one: a request hears that, and can stop it. */
static void test_request_that_loads(const char *directory) {
    dbcache_options *options = OPTIONS("cache", "f2b0w1", "steps", "2");
    dbcache_engine *engine = NULL;
    OK(dbcache_engine_load(directory, NULL, &engine));
    dbcache_request *request = tiny_request(engine, options, 0);
    ears e = hearing(everything());
    e.stops = 1;
    OK(dbcache_request_on_log(request, everything(), hear, &e));
    dbcache_result *result = NULL;
    dbcache_denoiser *denoiser = NULL;
    FAILS(dbcache_denoiser_new(request, DBCACHE_GUIDANCE_LIBRARY, &denoiser), DBCACHE_ERROR_CANCELLED, NULL,
          "cancelled");
    CHECK(denoiser == NULL && e.ours + e.of_runtime > 0);
    FAILS(dbcache_request_run(request, &result), DBCACHE_ERROR_CANCELLED, NULL, "cancelled");
    CHECK(result == NULL);
    dbcache_request_free(request);
    dbcache_options_free(options);
    dbcache_engine_free(engine);
}

int main(int argc, char **argv) {
    CHECK(argc == 6);
    OK(dbcache_runtime_load(argv[1]));
    test_load(argv[2]);
    test_callbacks_that_call_in(argv[1], argv[2]);
    test_request_that_loads(argv[2]);
    test_session_that_speaks(argv[2]);
    puts("logs: ok");
    return 0;
}
