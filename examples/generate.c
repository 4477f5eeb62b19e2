/* The C library in one page: load an engine, make a picture, see what the cache did. `generate.rs` and `generate.cpp` are
 * the same program.
 *
 *     cc examples/generate.c $(pkg-config --cflags --libs dbcache_trt) -o generate
 *     ./generate models/emoji lemon f8b16 lemon.png
 */
#include <dbcache_trt.h>
#include <stdio.h>
#include <stdlib.h>

static void check(dbcache_error *error) {
    if (error == NULL) return;
    fprintf(stderr, "error: %s\n", dbcache_error_message(error));
    int code = dbcache_error_code(error);
    dbcache_error_free(error);
    exit(code);
}

static int32_t on_step(const dbcache_step *step, void *user) {
    (void)user;
    const char *decision = step->decision == DBCACHE_DECISION_SKIP ? "Skip" : "Compute";
    printf("step %2zu %s because %s\n", step->step, decision, step->reason);
    return 0; /* not 0 would cancel */
}

typedef dbcache_error *text_call(const dbcache_result *result, char *buffer, size_t capacity, size_t *length);

static void print(const dbcache_result *result, text_call *call, FILE *file) {
    size_t length = 0;
    check(call(result, NULL, 0, &length));
    char *text = malloc(length);
    if (text == NULL) exit(1);
    check(call(result, text, length, &length));
    fprintf(file, "%s\n", text);
    free(text);
}

int main(int argc, char **argv) {
    if (argc != 5 && argc != 6) {
        fprintf(stderr, "usage: generate ENGINE PROMPT CACHE OUT.png [TRACE.json]\n");
        return 2;
    }
    dbcache_options *options = NULL;
    dbcache_engine *engine = NULL;
    dbcache_request *request = NULL;
    dbcache_result *result = NULL;
    check(dbcache_options_new(&options));
    check(dbcache_options_set(options, "cache", argv[3]));
    check(dbcache_engine_load(argv[1], options, &engine));
    check(dbcache_request_new(engine, options, &request));
    check(dbcache_request_set_prompt(request, argv[2]));
    check(dbcache_request_on_step(request, on_step, NULL));
    check(dbcache_request_run(request, &result));
    print(result, dbcache_result_summary, stdout);
    size_t pictures = 0;
    check(dbcache_result_pictures(result, &pictures));
    if (pictures > 0) check(dbcache_result_write_png(result, 0, argv[4]));
    if (argc == 6) {
        FILE *file = fopen(argv[5], "w");
        if (file == NULL) return 9;
        print(result, dbcache_result_trace, file);
        fclose(file);
    }
    /* In any order. */
    dbcache_engine_free(engine);
    dbcache_options_free(options);
    dbcache_request_free(request);
    dbcache_result_free(result);
    return 0;
}
