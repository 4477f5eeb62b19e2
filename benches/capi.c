/* Makes requests through the C library: capi ENGINE CACHE RUNS, prints the milliseconds of each. */
#include <dbcache_trt.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void check(dbcache_error *error) {
    if (error == NULL) return;
    fprintf(stderr, "%s\n", dbcache_error_message(error));
    exit(1);
}

static int32_t on_step(const dbcache_step *step, void *user) {
    *(size_t *)user += step->blocks_run;
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    dbcache_options *options = NULL;
    dbcache_engine *engine = NULL;
    check(dbcache_options_new(&options));
    check(dbcache_options_set(options, "cache", argv[2]));
    check(dbcache_engine_load(argv[1], options, &engine));
    for (int run = 0; run <= atoi(argv[3]); run++) {
        struct timespec start, end;
        size_t blocks = 0;
        clock_gettime(CLOCK_MONOTONIC, &start);
        dbcache_request *request = NULL;
        dbcache_result *result = NULL;
        check(dbcache_request_new(engine, options, &request));
        check(dbcache_request_set_prompt(request, "lemon"));
        check(dbcache_request_on_step(request, on_step, &blocks));
        check(dbcache_request_run(request, &result));
        dbcache_request_free(request);
        dbcache_result_free(result);
        clock_gettime(CLOCK_MONOTONIC, &end);
        /* The first one warms up. */
        double ms = (double)(end.tv_sec - start.tv_sec) * 1e3 + (double)(end.tv_nsec - start.tv_nsec) / 1e6;
        if (run > 0 && blocks > 0) printf("%.6f\n", ms);
    }
    dbcache_engine_free(engine);
    dbcache_options_free(options);
    return 0;
}
