/* Requests from their start to their end: run, started, cancelled in each phase, freed while they run, several at a
 * time, and with callbacks that cancel or call back in.
 * lifecycle ONNXRUNTIME TINY EMOJI VIDEO FOLDER */
#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

static const char *steps(void) { return is_small() ? "4" : "8"; }

static void sleep_ms(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

/* What a request's callbacks saw, and what they shall do. */
typedef struct {
    atomic_int steps, progresses, previews, logs, skipped;
    int32_t last_phase;
    /* The callback answers with not 0 at this step, phase, preview or log; -1 never. */
    int stop_at_step, stop_at_phase, stop_at_preview, stop_at_log;
    double last_diff;
    /* Of the model. */
    size_t blocks;
} watch;

static const watch WATCH = {.stop_at_step = -1, .stop_at_phase = -1, .stop_at_preview = -1, .stop_at_log = -1, .blocks = 12};

static int32_t on_step(const dbcache_step *step, void *user) {
    watch *w = user;
    CHECK(step->struct_size == sizeof *step && step->sample == -1 && strcmp(step->branch, "cond") == 0);
    CHECK(step->reason[0] != '\0' && step->sigma > 0 && step->blocks_run > 0 && step->elapsed_ms >= 0);
    CHECK(isnan(step->diff) == isnan(step->threshold));
    CHECK(step->list == -1 && step->session_runs > 0);
    /* All blocks of the model, or of a skipped step those before the middle. */
    int is_skipped = step->decision == DBCACHE_DECISION_SKIP;
    CHECK(is_skipped ? step->blocks_run == 1 : step->blocks_run == w->blocks);
    for (size_t i = 0; i < step->blocks_run; i++) CHECK(step->blocks[i] == i);
    if (!isnan(step->diff)) w->last_diff = step->diff;
    if (is_skipped) w->skipped++;
    CHECK((int)step->step == w->steps);
    return w->steps++ == w->stop_at_step;
}

static int32_t on_progress(const dbcache_progress *progress, void *user) {
    watch *w = user;
    CHECK(progress->struct_size == sizeof *progress);
    w->progresses++;
    w->last_phase = progress->phase;
    return progress->phase == w->stop_at_phase;
}

static int32_t on_preview(const dbcache_preview *preview, void *user) {
    watch *w = user;
    CHECK(preview->struct_size == sizeof *preview && preview->index == 0);
    CHECK(preview->bytes == (size_t)preview->width * preview->height * 3 && preview->rgb != NULL);
    return w->previews++ == w->stop_at_preview;
}

static int32_t on_log(const dbcache_log *log, void *user) {
    watch *w = user;
    CHECK(log->struct_size == sizeof *log && log->level <= DBCACHE_LOG_WARN && log->message[0] != '\0');
    return w->logs++ == w->stop_at_log;
}

static void watch_all(dbcache_request *request, watch *w) {
    OK(dbcache_request_on_step(request, on_step, w));
    OK(dbcache_request_on_progress(request, on_progress, w));
    OK(dbcache_request_on_preview(request, 2, on_preview, w));
    OK(dbcache_request_on_log(request, DBCACHE_LOG_WARN, on_log, w));
}

static dbcache_result *run(dbcache_request *request) {
    dbcache_result *result = NULL;
    OK(dbcache_request_run(request, &result));
    return result;
}

/* A result needs neither request, options nor engine. */
static dbcache_result *test_run(const char *directory) {
    dbcache_engine *engine = NULL;
    OK(dbcache_engine_load(directory, NULL, &engine));
    dbcache_options *options = OPTIONS("steps", steps(), "cache", "f1b0w2r0.9");
    dbcache_request *request = tiny_request(engine, options, 0);
    dbcache_options_free(options);
    dbcache_engine_free(engine);
    watch w = WATCH;
    watch_all(request, &w);
    dbcache_result *result = run(request);
    dbcache_request_free(request);
    int count = atoi(steps());
    CHECK(w.steps == count && w.skipped > 0 && w.last_diff > 0 && w.previews == 0);
    CHECK(w.progresses == 1 + (1 + count) + 1 && w.last_phase == DBCACHE_PHASE_DECODE);
    char *trace = text_of(result, dbcache_result_trace), *statistics = text_of(result, dbcache_result_statistics);
    char *summary = text_of(result, dbcache_result_summary);
    CHECK(trace[0] == '[' && strstr(trace, "\"version\": 2") != NULL && strstr(trace, "\"records\"") != NULL);
    CHECK(strstr(statistics, "{\"version\":1") == statistics && strstr(statistics, "\"blocks_run\"") != NULL);
    CHECK(strstr(summary, "cache    f1b0w2i1r0.9") == summary);
    free(trace);
    free(statistics);
    free(summary);
    return result;
}

static void test_start_and_wait(const dbcache_engine *engine, const dbcache_options *options, const dbcache_result *solo) {
    dbcache_request *request = tiny_request(engine, options, 0);
    dbcache_result *result = NULL;
    OK(dbcache_request_start(request));
    int32_t state = DBCACHE_STATE_RUNNING;
    for (int i = 0; i < 100000 && state == DBCACHE_STATE_RUNNING; i++) {
        OK(dbcache_request_poll(request, &state));
        sleep_ms(1);
    }
    CHECK(state == DBCACHE_STATE_ENDED);
    OK(dbcache_request_wait(request, &result));
    CHECK(has_equal_latents(result, solo));
    dbcache_result_free(result);
    FAILS(dbcache_request_wait(request, &result), DBCACHE_ERROR_STATE, NULL, "was taken already");
    OK(dbcache_request_cancel(request));
    dbcache_request_free(request);

    /* Nobody waits for this one: its result goes with it. */
    request = tiny_request(engine, options, 0);
    OK(dbcache_request_start(request));
    do {
        OK(dbcache_request_poll(request, &state));
        sleep_ms(1);
    } while (state == DBCACHE_STATE_RUNNING);
    dbcache_request_free(request);
}

static void *run_on_thread(void *request) { return run(request); }

static void test_several_at_once(const dbcache_engine *engine, const dbcache_options *options, const dbcache_result *solo) {
    enum { MOST = 4 };
    const int count = is_small() ? 2 : MOST;
    dbcache_request *requests[MOST];
    pthread_t threads[MOST];
    for (int i = 0; i < count; i++) requests[i] = tiny_request(engine, options, 0);
    for (int i = 0; i < count; i++) {
        if (i % 2 == 0) {
            OK(dbcache_request_start(requests[i]));
        } else {
            CHECK(pthread_create(&threads[i], NULL, run_on_thread, requests[i]) == 0);
        }
    }
    for (int i = 0; i < count; i++) {
        void *result = NULL;
        if (i % 2 == 0) {
            OK(dbcache_request_wait(requests[i], (dbcache_result **)&result));
        } else {
            CHECK(pthread_join(threads[i], &result) == 0);
        }
        CHECK(has_equal_latents(result, solo));
        dbcache_result_free(result);
        dbcache_request_free(requests[i]);
    }
}

/* A request with callbacks that stop it: the phase in which it was stopped comes last. */
static void stops(dbcache_request *request, watch w, int32_t phase, int steps) {
    dbcache_result *result = NULL;
    watch_all(request, &w);
    FAILS(dbcache_request_run(request, &result), DBCACHE_ERROR_CANCELLED, NULL, "cancelled");
    CHECK(result == NULL && w.last_phase == phase && w.steps == steps);
    dbcache_request_free(request);
}

static void test_callbacks_that_cancel(const dbcache_engine *tiny, const dbcache_engine *emoji) {
    dbcache_options *options = OPTIONS("steps", "6", "cache", "f1b0w6");
    watch w = WATCH;
    w.stop_at_phase = DBCACHE_PHASE_PREPARE;
    stops(tiny_request(tiny, options, 0), w, DBCACHE_PHASE_PREPARE, 0);
    w.stop_at_phase = DBCACHE_PHASE_STEPS;
    stops(tiny_request(tiny, options, 0), w, DBCACHE_PHASE_STEPS, 0);
    w.stop_at_phase = DBCACHE_PHASE_DECODE;
    stops(tiny_request(tiny, options, 0), w, DBCACHE_PHASE_DECODE, 6);
    w.stop_at_phase = -1;
    w.stop_at_step = 3;
    stops(tiny_request(tiny, options, 0), w, DBCACHE_PHASE_STEPS, 4);

    /* A cache that never skips is a warning, which comes when the steps are done. */
    dbcache_request *request = tiny_request(tiny, options, 0);
    w = WATCH;
    watch_all(request, &w);
    dbcache_result_free(run(request));
    CHECK(w.logs > 0);
    dbcache_request_free(request);
    dbcache_options_free(options);

    options = OPTIONS("steps", "4", "weights-mode", "mapped");
    w = WATCH;
    w.blocks = 4;
    w.stop_at_preview = 0;
    OK(dbcache_request_new(emoji, options, &request));
    OK(dbcache_request_set_prompt(request, "lemon"));
    stops(request, w, DBCACHE_PHASE_STEPS, 2);
    w.stop_at_preview = -1;
    w.stop_at_phase = DBCACHE_PHASE_DECODE;
    OK(dbcache_request_new(emoji, options, &request));
    OK(dbcache_request_set_prompt(request, "lemon"));
    stops(request, w, DBCACHE_PHASE_DECODE, 4);
    dbcache_options_free(options);
}

static dbcache_request *of_signal;

static void on_signal(int number) {
    (void)number;
    /* NULL, as always with a request: no error object was made. */
    (void)!dbcache_request_cancel(of_signal);
}

static void test_cancel_from_a_signal(const dbcache_engine *engine) {
    dbcache_options *options = OPTIONS("steps", "5000");
    watch w = WATCH;
    of_signal = tiny_request(engine, options, 0);
    watch_all(of_signal, &w);
    CHECK(signal(SIGUSR1, on_signal) != SIG_ERR);
    OK(dbcache_request_start(of_signal));
    while (w.steps < 3) sleep_ms(1);
    raise(SIGUSR1);
    dbcache_result *result = NULL;
    FAILS(dbcache_request_wait(of_signal, &result), DBCACHE_ERROR_CANCELLED, NULL, "cancelled");
    dbcache_request_free(of_signal);
    dbcache_options_free(options);
}

static void test_cancel_from_outside(const dbcache_engine *engine) {
    dbcache_options *options = OPTIONS("steps", "5000");
    dbcache_result *result = NULL;
    /* Before it starts. */
    dbcache_request *request = tiny_request(engine, options, 0);
    OK(dbcache_request_cancel(request));
    OK(dbcache_request_cancel(request));
    FAILS(dbcache_request_run(request, &result), DBCACHE_ERROR_CANCELLED, NULL, "cancelled");
    dbcache_request_free(request);
    /* While it runs. */
    watch w = WATCH;
    request = tiny_request(engine, options, 0);
    watch_all(request, &w);
    OK(dbcache_request_start(request));
    while (w.steps < 3) sleep_ms(1);
    OK(dbcache_request_cancel(request));
    FAILS(dbcache_request_wait(request, &result), DBCACHE_ERROR_CANCELLED, NULL, "cancelled");
    CHECK(result == NULL && w.steps < 5000);
    dbcache_request_free(request);
    /* Freed while it runs: no callback comes afterwards. */
    w = WATCH;
    request = tiny_request(engine, options, 0);
    watch_all(request, &w);
    OK(dbcache_request_start(request));
    while (w.steps < 3) sleep_ms(1);
    dbcache_request_free(request);
    int steps = w.steps;
    sleep_ms(50);
    CHECK(w.steps == steps && steps < 5000);
    /* Freed at once. */
    request = tiny_request(engine, options, 0);
    OK(dbcache_request_start(request));
    dbcache_request_free(request);
    dbcache_options_free(options);
}

/* What a callback does with its own request and engine. */
typedef struct {
    const dbcache_engine *engine;
    const dbcache_options *options;
    dbcache_request *request;
    int calls;
} inner;

static int32_t calls_in(const dbcache_step *step, void *user) {
    inner *in = user;
    (void)step;
    if (in->calls++ > 0) return 0;
    int32_t state = 77;
    dbcache_result *result = NULL;
    OK(dbcache_request_poll(in->request, &state));
    CHECK(state == DBCACHE_STATE_RUNNING);
    FAILS(dbcache_request_wait(in->request, &result), DBCACHE_ERROR_STATE, NULL, "a callback cannot wait");
    FAILS(dbcache_request_run(in->request, &result), DBCACHE_ERROR_STATE, NULL, "runs once");
    FAILS(dbcache_request_set_prompt(in->request, "lemon"), DBCACHE_ERROR_STATE, NULL, "make another one");
    dbcache_request *other = tiny_request(in->engine, in->options, 0);
    result = run(other);
    dbcache_result_free(result);
    dbcache_request_free(other);
    OK(dbcache_request_cancel(in->request));
    return 0;
}

static int32_t frees_itself(const dbcache_step *step, void *user) {
    inner *in = user;
    (void)step;
    in->calls++;
    dbcache_request_free(in->request);
    return 0;
}

static void test_callbacks_that_call_in(const dbcache_engine *engine, const dbcache_options *options) {
    dbcache_result *result = NULL;
    inner in = {engine, options, tiny_request(engine, options, 0), 0};
    OK(dbcache_request_on_step(in.request, calls_in, &in));
    FAILS(dbcache_request_run(in.request, &result), DBCACHE_ERROR_CANCELLED, NULL, "cancelled");
    CHECK(in.calls == 1);
    dbcache_request_free(in.request);

    inner started = {engine, options, tiny_request(engine, options, 0), 0};
    OK(dbcache_request_on_step(started.request, calls_in, &started));
    OK(dbcache_request_start(started.request));
    FAILS(dbcache_request_wait(started.request, &result), DBCACHE_ERROR_CANCELLED, NULL, "cancelled");
    dbcache_request_free(started.request);

    inner freed = {engine, options, tiny_request(engine, options, 0), 0};
    OK(dbcache_request_on_step(freed.request, frees_itself, &freed));
    FAILS(dbcache_request_run(freed.request, &result), DBCACHE_ERROR_CANCELLED, NULL, "cancelled");
    CHECK(freed.calls == 1 && result == NULL);
}

/* Where each list of blocks and each picture decides for itself, each has a record of its own. */
typedef struct {
    int calls, skipped, samples[2];
    size_t lists[2];
} parts;

static int32_t on_part(const dbcache_step *step, void *user) {
    parts *p = user;
    p->calls++;
    if (step->decision == DBCACHE_DECISION_SKIP) p->skipped++;
    if (step->sample >= 0) p->samples[step->sample]++;
    if (step->list < 0) return 0;
    size_t start = step->list == 0 ? 0 : 4;
    CHECK(step->decision == DBCACHE_DECISION_SKIP ? step->blocks_run == 1 : step->blocks_run == (start == 0 ? 4 : 8));
    for (size_t i = 0; i < step->blocks_run; i++) CHECK(step->blocks[i] == start + i);
    p->lists[step->list] += step->blocks_run;
    return 0;
}

static void test_records_of_parts(const dbcache_engine *tiny, const dbcache_engine *emoji) {
    dbcache_options *options = OPTIONS("steps", "5", "cache", "f1b0w2r0.9sl1");
    dbcache_request *request = tiny_request(tiny, options, 0);
    parts p = {0};
    OK(dbcache_request_on_step(request, on_part, &p));
    dbcache_result_free(run(request));
    dbcache_request_free(request);
    dbcache_options_free(options);
    CHECK(p.calls == 10 && p.skipped > 0 && p.lists[0] >= 8 + 3 && p.lists[1] >= 16 + 3);

    options = OPTIONS("steps", "4", "cache", "f1b0w2r0.9", "batch", "2", "per-sample", "true", "weights-mode", "mapped");
    OK(dbcache_request_new(emoji, options, &request));
    OK(dbcache_request_set_prompt(request, "lemon"));
    p = (parts){0};
    OK(dbcache_request_on_step(request, on_part, &p));
    dbcache_result_free(run(request));
    dbcache_request_free(request);
    dbcache_options_free(options);
    CHECK(p.calls == 8 && p.samples[0] == 4 && p.samples[1] == 4 && p.skipped > 0);
}

static void test_pictures(const dbcache_engine *engine, const char *folder) {
    dbcache_options *options = OPTIONS("steps", "4", "batch", "2", "seed", "7");
    dbcache_request *request = NULL;
    OK(dbcache_request_new(engine, options, &request));
    OK(dbcache_request_set_prompt(request, "lemon"));
    dbcache_result *result = run(request);
    dbcache_request_free(request);
    dbcache_options_free(options);
    size_t count = 0;
    OK(dbcache_result_pictures(result, &count));
    CHECK(count == 2);
    dbcache_picture picture = {.struct_size = sizeof picture};
    OK(dbcache_result_picture(result, 1, &picture));
    CHECK(picture.width == 64 && picture.height == 64 && picture.bytes == 64 * 64 * 3);
    CHECK(picture.struct_size == sizeof picture && picture.seed == 8 && picture.frames == 1 && picture.fps == 0);
    dbcache_picture frame = {.struct_size = sizeof frame};
    OK(dbcache_result_frame(result, 1, 0, &frame));
    CHECK(frame.rgb == picture.rgb);
    FAILS(dbcache_result_frame(result, 1, 1, &frame), DBCACHE_ERROR_ARGUMENT, "frame", "has 1 frames");
    FAILS(dbcache_result_frame(result, 2, 0, &frame), DBCACHE_ERROR_ARGUMENT, "index", "holds 2 pictures");
    FAILS(dbcache_result_write_video(result, 0, "a.gif"), DBCACHE_ERROR_STATE, NULL, "dbcache_result_write_png");
    /* A program that was compiled when the struct ended after `bytes`, and one that knows more than this library. */
    dbcache_picture older = {.struct_size = offsetof(dbcache_picture, seed), .seed = 77, .frames = 77};
    OK(dbcache_result_picture(result, 1, &older));
    CHECK(older.rgb == picture.rgb && older.seed == 77 && older.frames == 77);
    CHECK(older.struct_size == offsetof(dbcache_picture, seed));
    struct {
        dbcache_picture known;
        int more;
    } newer = {.known = {.struct_size = sizeof newer}, .more = 77};
    OK(dbcache_result_picture(result, 1, &newer.known));
    CHECK(newer.known.struct_size == sizeof picture && newer.known.seed == 8 && newer.more == 77);
    char path[4096];
    snprintf(path, sizeof path, "%s/lifecycle.png", folder);
    OK(dbcache_result_write_png(result, 1, path));
    snprintf(path, sizeof path, "%s/no/such/lifecycle.png", folder);
    FAILS(dbcache_result_write_png(result, 1, path), DBCACHE_ERROR_IO, path, "does not exist; make it, or name another one");
    FAILS(dbcache_result_write_png(result, 1, folder), DBCACHE_ERROR_IO, folder, "it is a folder");
    FAILS(dbcache_result_write_png(result, 1, ""), DBCACHE_ERROR_IO, "", "without a name");
    FAILS(dbcache_result_write_png(result, 1, "a.jpg"), DBCACHE_ERROR_USAGE, "path", "pictures are PNG files");
    dbcache_result_free(result);
}

int main(int argc, char **argv) {
    CHECK(argc == 6);
    OK(dbcache_runtime_load(argv[1]));
    dbcache_result *solo = test_run(argv[2]);
    dbcache_options *options = OPTIONS("steps", steps(), "cache", "f1b0w2r0.9");
    dbcache_options *mapped = OPTIONS("weights-mode", "mapped");
    dbcache_engine *tiny = NULL, *emoji = NULL;
    OK(dbcache_engine_load(argv[2], NULL, &tiny));
    OK(dbcache_engine_load(argv[3], mapped, &emoji));
    dbcache_options_free(mapped);
    test_start_and_wait(tiny, options, solo);
    test_several_at_once(tiny, options, solo);
    test_callbacks_that_cancel(tiny, emoji);
    test_cancel_from_outside(tiny);
    test_cancel_from_a_signal(tiny);
    test_callbacks_that_call_in(tiny, options);
    test_records_of_parts(tiny, emoji);
    test_pictures(emoji, argv[5]);
    dbcache_engine_free(emoji);
    dbcache_engine_free(tiny);
    dbcache_options_free(options);
    dbcache_result_free(solo);
    puts("lifecycle: ok");
    return 0;
}
