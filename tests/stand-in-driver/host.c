/* A host of the C library that wants a GPU: prints the error, and returns its code. */
#include <dbcache_trt.h>
#include <stdio.h>

int main(int argc, char **argv) {
    dbcache_options *options = NULL;
    dbcache_engine *engine = NULL;
    if (argc != 3) return 2;
    dbcache_error *error = dbcache_options_new(&options);
    if (error == NULL) error = dbcache_options_set(options, "provider", argv[2]);
    if (error == NULL) error = dbcache_engine_load(argv[1], options, &engine);
    int code = 0;
    if (error != NULL) {
        fprintf(stderr, "error: %s\n", dbcache_error_message(error));
        code = dbcache_error_code(error);
    }
    dbcache_error_free(error);
    dbcache_engine_free(engine);
    dbcache_options_free(options);
    return code;
}
