/* A host that has started ONNX Runtime for itself, from the same file, before the library does.
 * host ONNXRUNTIME TINY EMOJI VIDEO FOLDER */
#include "check.h"

#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

/* What ONNX Runtime's first version has in its table of functions, by place. */
enum { CREATE_ENV = 3, CREATE_ENV_WITH_POOL = 119, CREATE_POOL_OPTIONS = 121, SET_POOL_THREADS = 147, API_VERSION = 24 };
typedef struct {
    const void *const *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
} api_base;

static void start(const char *runtime, int with_pool) {
    void *library = dlopen(runtime, RTLD_NOW | RTLD_LOCAL);
    CHECK(library != NULL);
    void *symbol = dlsym(library, "OrtGetApiBase");
    CHECK(symbol != NULL);
    const api_base *base = (*(const api_base *(**)(void))&symbol)();
    const void *const *api = base->get_api(API_VERSION);
    CHECK(api != NULL);
    /* They stay as long as the process, in sight of tools that look for leaks. */
    static void *environment, *options;
    if (with_pool) {
        CHECK((*(void *(*const *)(void **))&api[CREATE_POOL_OPTIONS])(&options) == NULL);
        CHECK((*(void *(*const *)(void *, int))&api[SET_POOL_THREADS])(options, 2) == NULL);
        CHECK((*(void *(*const *)(int, const char *, void *, void **))&api[CREATE_ENV_WITH_POOL])(3, "host", options, &environment) == NULL);
    } else {
        CHECK((*(void *(*const *)(int, const char *, void **))&api[CREATE_ENV])(3, "host", &environment) == NULL);
    }
    CHECK(environment != NULL);
}

static int runs(const char *runtime, const char *directory, int with_pool) {
    start(runtime, with_pool);
    OK(dbcache_runtime_load(runtime));
    dbcache_engine *engine = NULL;
    dbcache_options *options = OPTIONS("threads", "2");
    if (with_pool) {
        FAILS(dbcache_engine_load(directory, options, &engine), DBCACHE_ERROR_USAGE, "threads", "a thread pool of its own");
    } else {
        OK(dbcache_engine_load(directory, options, &engine));
        dbcache_engine_free(engine);
    }
    dbcache_options_free(options);
    OK(dbcache_engine_load(directory, NULL, &engine));
    options = OPTIONS("steps", "4", "cache", "f1b0w2r0.9");
    dbcache_request *request = tiny_request(engine, options, 0);
    dbcache_result *result = NULL;
    OK(dbcache_request_run(request, &result));
    dbcache_result_free(result);
    dbcache_request_free(request);
    dbcache_options_free(options);
    dbcache_engine_free(engine);
    return 0;
}

int main(int argc, char **argv) {
    CHECK(argc == 6);
    /* One process for each: nothing is loaded yet. */
    for (int with_pool = 0; with_pool < 2; with_pool++) {
        const pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) exit(runs(argv[1], argv[2], with_pool));
        int status = 0;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    puts("host: ok");
    return 0;
}
