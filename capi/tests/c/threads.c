/* A system that gives no threads: the library does with those that there are, or says so.
 * threads ONNXRUNTIME TINY EMOJI VIDEO FOLDER */
#define _GNU_SOURCE
#include "check.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

/* The program's own function is the one that all libraries call. */
static atomic_int is_refused, is_slow, is_asked;

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    typedef int (*function)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    is_asked = 1;
    /* So that others come to wait for what this thread would do. */
    if (is_slow) usleep(300000);
    if (is_refused) return EAGAIN;
    void *real = dlsym(RTLD_NEXT, "pthread_create");
    return (*(function *)&real)(thread, attributes, start, argument);
}

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

int main(int argc, char **argv) {
    CHECK(argc == 6);
    OK(dbcache_runtime_load(argv[1]));
    /* Two threads compute: ONNX Runtime needs one more than there is. */
    dbcache_options *options = OPTIONS("threads", "2", "steps", "3");
    dbcache_engine *engine = NULL, *second = NULL;
    is_refused = 1;
    FAILS(dbcache_engine_load(argv[2], options, &engine), DBCACHE_ERROR_RESOURCES, "threads", "2 thread(s) are not to be had");
    is_refused = 0;
    OK(dbcache_engine_load(argv[2], options, &engine));
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
    puts("threads: ok");
    return 0;
}
