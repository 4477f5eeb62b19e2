/* A system that gives no threads: the library does with those that there are, or says so. One whose memory is full.
 * threads ONNXRUNTIME TINY EMOJI VIDEO FOLDER */
#define _GNU_SOURCE
#include "check.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* The program's own functions are those that all libraries call. */
static atomic_int is_refused, is_slow, is_asked, is_full;

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    typedef int (*function)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    is_asked = 1;
    /* So that others come to wait for what this thread would do. */
    if (is_slow) usleep(300000);
    if (is_refused) return EAGAIN;
    void *real = dlsym(RTLD_NEXT, "pthread_create");
    return (*(function *)&real)(thread, attributes, start, argument);
}

/* By which ONNX Runtime takes memory for numbers. */
void *aligned_alloc(size_t alignment, size_t size) {
    typedef void *(*function)(size_t, size_t);
    if (is_full) return NULL;
    void *real = dlsym(RTLD_NEXT, "aligned_alloc");
    return (*(function *)&real)(alignment, size);
}

/* Tools that watch memory bring functions of their own. */
#ifdef __SANITIZE_ADDRESS__
static int is_watched(void) { return 1; }
#else
static int is_watched(void) { return is_small(); }
#endif

static void *waits(void *user) {
    while (!is_asked) usleep(1000);
    dbcache_result *result = NULL;
    FAILS(dbcache_request_wait(user, &result), DBCACHE_ERROR_STATE, NULL, "was not started, or could not be");
    return NULL;
}

/* Who waits for a request that could not be started is told so, and it can still be run. */
static void test_start(const dbcache_engine *engine, const dbcache_options *options, const dbcache_result *expected) {
    dbcache_request *request = tiny_request(engine, options, 0);
    pthread_t waiter;
    is_asked = 0;
    CHECK(pthread_create(&waiter, NULL, waits, request) == 0);
    is_asked = 0;
    is_slow = is_refused = 1;
    FAILS(dbcache_request_start(request), DBCACHE_ERROR_RESOURCES, NULL, "use dbcache_request_run");
    is_slow = 0;
    CHECK(pthread_join(waiter, NULL) == 0);
    int32_t state = 77;
    OK(dbcache_request_poll(request, &state));
    CHECK(state == DBCACHE_STATE_NEW);
    dbcache_result *result = NULL;
    OK(dbcache_request_run(request, &result));
    CHECK(has_equal_latents(result, expected));
    dbcache_result_free(result);
    dbcache_request_free(request);
    is_refused = 0;
}

/* Nothing is computed without memory, and nothing is lost. */
static void test_full_memory(const dbcache_engine *engine) {
    const int64_t shape[1] = {1};
    float number = 1, latents[1024], velocity[1024];
    dbcache_memory memory = {.struct_size = sizeof memory, .data = &number, .bytes = sizeof number};
    dbcache_tensor *tensor = NULL;
    dbcache_request *request = tiny_request(engine, NULL, 0);
    dbcache_denoiser *denoiser = NULL;
    OK(dbcache_denoiser_new(request, DBCACHE_GUIDANCE_LIBRARY, &denoiser));
    OK(dbcache_denoiser_latents(denoiser, latents, 1024));
    is_full = 1;
    FAILS(dbcache_tensor_import(engine, &memory, DBCACHE_DTYPE_F32, shape, 1, &tensor), DBCACHE_ERROR_RESOURCES, NULL,
          "the memory is full");
    NEVER_BEGINS(tiny_request(engine, NULL, 0), DBCACHE_ERROR_RESOURCES, NULL, "the memory is full");
    FAILS(dbcache_denoiser_velocity(denoiser, DBCACHE_BRANCH_BOTH, 1, latents, velocity, 1024),
          DBCACHE_ERROR_RESOURCES, NULL, "the memory is full");
    is_full = 0;
    CHECK(tensor == NULL);
    dbcache_denoiser_free(denoiser);
    dbcache_request_free(request);
}

/* No file can be opened: ONNX Runtime's own code for that is one that its header does not know. */
static void test_files(const char *directory) {
    dbcache_options *options = OPTIONS("steps", "3", "cache", "f1b1");
    dbcache_engine *engine = NULL;
    OK(dbcache_engine_load(directory, NULL, &engine));
    struct rlimit limit, none;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    none = (struct rlimit){.rlim_cur = 0, .rlim_max = limit.rlim_max};
    dbcache_request *request = tiny_request(engine, options, 0);
    dbcache_result *result = NULL;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    FAILS(dbcache_request_run(request, &result), DBCACHE_ERROR_RESOURCES, NULL, "raise the limit of open files");
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    dbcache_request_free(request);
    dbcache_engine_free(engine);
    dbcache_options_free(options);
}

/* Videos, whose decoding takes memory, and whose writing takes threads. The program ffmpeg is one that does nothing. */
static void test_videos(const char *directory, const char *folder) {
    dbcache_options *options = OPTIONS("steps", "2", "size", "32x32", "frames", "1");
    dbcache_engine *engine = NULL;
    OK(dbcache_engine_load(directory, NULL, &engine));
    dbcache_request *request = video_request(engine, options, 1);
    dbcache_denoiser *denoiser = NULL;
    dbcache_result *result = NULL;
    size_t steps = 0, rank = 0, count = 1;
    const int64_t *shape = NULL;
    OK(dbcache_denoiser_new(request, DBCACHE_GUIDANCE_LIBRARY, &denoiser));
    OK(dbcache_denoiser_shape(denoiser, &steps, &shape, &rank));
    for (size_t i = 0; i < rank; i++) count *= (size_t)shape[i];
    float *latents = malloc(count * sizeof *latents);
    OK(dbcache_denoiser_latents(denoiser, latents, count));
    is_full = 1;
    if (!is_watched()) FAILS(dbcache_denoiser_result(denoiser, latents, count, &result), DBCACHE_ERROR_RESOURCES,
                             NULL, "the memory is full");
    is_full = 0;
    OK(dbcache_denoiser_result(denoiser, latents, count, &result));
    free(latents);
    dbcache_denoiser_free(denoiser);
    dbcache_request_free(request);
    dbcache_options_free(options);
    dbcache_engine_free(engine);

    char path[4096];
    snprintf(path, sizeof path, "%s/ffmpeg", folder);
    FILE *program = fopen(path, "w");
    CHECK(program != NULL && fputs("#!/bin/sh\n", program) >= 0 && fclose(program) == 0 && chmod(path, 0700) == 0);
    CHECK(setenv("PATH", folder, 1) == 0);
    snprintf(path, sizeof path, "%s/a.mp4", folder);
    is_refused = 1;
    FAILS(dbcache_result_write_video(result, 0, path), DBCACHE_ERROR_RESOURCES, path,
          "writing by ffmpeg needs a thread");
    is_refused = 0;
    dbcache_result_free(result);
}

int main(int argc, char **argv) {
    CHECK(argc == 6);
    OK(dbcache_runtime_load(argv[1]));
    /* Two threads compute: ONNX Runtime needs one more than there is. */
    dbcache_options *options = OPTIONS("threads", "2", "steps", "3");
    dbcache_engine *engine = NULL, *second = NULL;
    dbcache_options *compiles = OPTIONS("threads", "2", "provider", "openvino", "build-cache", "unused");
    size_t length = 0;
    is_refused = 1;
    FAILS(dbcache_plan(argv[2], compiles, 12, NULL, 0, &length), DBCACHE_ERROR_RESOURCES, "threads",
          "2 thread(s) are not to be had");
    FAILS(dbcache_engine_load(argv[2], options, &engine), DBCACHE_ERROR_RESOURCES, "threads", "2 thread(s) are not to be had");
    is_refused = 0;
    dbcache_options_free(compiles);
    OK(dbcache_engine_load(argv[2], options, &engine));
    if (!is_watched()) test_full_memory(engine);
    dbcache_request *request = tiny_request(engine, options, 0);
    dbcache_result *expected = NULL;
    OK(dbcache_request_run(request, &expected));
    dbcache_request_free(request);
    test_start(engine, options, expected);

    /* Engines, and stages that a request needs, are loaded by the thread that asks. */
    is_refused = 1;
    is_asked = 0;
    OK(dbcache_engine_load(argv[2], options, &second));
    CHECK(is_asked);
    OK(dbcache_options_set(options, "cache", "f1b0w2r0.9"));
    dbcache_result *result = NULL;
    request = tiny_request(second, options, 0);
    OK(dbcache_request_run(request, &result));
    is_refused = 0;
    dbcache_result_free(result);
    dbcache_request_free(request);
    dbcache_engine_free(second);
    dbcache_result_free(expected);
    dbcache_engine_free(engine);
    dbcache_options_free(options);
    test_files(argv[2]);
    test_videos(argv[4], argv[5]);
    puts("threads: ok");
    return 0;
}
