/* A host that loads the library as a plugin, unloads it, and loads it again: nothing that lives longer may point to it.
 * It is linked with nothing.
 * reload ONNXRUNTIME TINY EMOJI VIDEO FOLDER */
#include "check.h"
#include <dlfcn.h>
#include <stdint.h>

typedef void *(*with_options)(const void *, const void *, void *);
typedef void *(*without)(const void *);

static void *find(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (found == NULL) fprintf(stderr, "%s\n", dlerror());
    CHECK(found != NULL);
    return found;
}

#define CALL(type, name) (*(type *)&(void *){find(library, name)})

static void use(const char *runtime, const char *engine_directory) {
    void *library = dlopen("libdbcache_trt.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) fprintf(stderr, "%s\n", dlerror());
    CHECK(library != NULL);
    void *engine = NULL;
    CHECK(CALL(without, "dbcache_runtime_load")(runtime) == NULL);
    CHECK(CALL(with_options, "dbcache_engine_load")(engine_directory, NULL, &engine) == NULL);
    void *options = NULL, *request = NULL, *result = NULL;
    CHECK(CALL(without, "dbcache_options_new")(&options) == NULL);
    CHECK(CALL(with_options, "dbcache_options_set")(options, "steps", "2") == NULL);
    CHECK(CALL(with_options, "dbcache_request_new")(engine, options, &request) == NULL);
    CHECK(CALL(with_options, "dbcache_request_set_prompt")(request, "lemon", NULL) == NULL);
    CHECK(CALL(without, "dbcache_request_start")(request) == NULL);
    CHECK(CALL(with_options, "dbcache_request_wait")(request, &result, NULL) == NULL);
    CALL(without, "dbcache_result_free")(result);
    CALL(without, "dbcache_request_free")(request);
    CALL(without, "dbcache_options_free")(options);
    CALL(without, "dbcache_engine_free")(engine);
    CHECK(dlclose(library) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 6);
    for (int i = 0; i < 3; i++) use(argv[1], argv[3]);
    puts("reload: ok");
    return 0;
}
