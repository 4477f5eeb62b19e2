/* A host that owns its loop: its own scheduler (Euler) and its own classifier-free guidance. The session stands where the
 * transformer was; the cache lives in it.
 *
 *     cc examples/own_loop.c $(pkg-config --cflags --libs dbcache_trt) -o own_loop
 *     ./own_loop models/emoji lemon f8b16 2.0 lemon.png
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

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: own_loop ENGINE PROMPT CACHE GUIDANCE OUT.png\n");
        return 2;
    }
    const float scale = strtof(argv[4], NULL);
    dbcache_options *options = NULL;
    dbcache_engine *engine = NULL;
    dbcache_request *request = NULL;
    dbcache_denoiser *denoiser = NULL;
    check(dbcache_options_new(&options));
    check(dbcache_options_set(options, "cache", argv[3]));
    check(dbcache_engine_load(argv[1], options, &engine));
    check(dbcache_request_new(engine, options, &request));
    check(dbcache_request_set_prompt(request, argv[2]));
    check(dbcache_denoiser_new(request, DBCACHE_GUIDANCE_HOST, &denoiser));

    size_t steps = 0, branches = 0, rank = 0, count = 1;
    const int64_t *shape = NULL;
    int32_t branch[2];
    check(dbcache_denoiser_shape(denoiser, &steps, &shape, &rank));
    check(dbcache_denoiser_branches(denoiser, branch, &branches));
    for (size_t i = 0; i < rank; i++) count *= (size_t)shape[i];
    float *sigmas = malloc((steps + 1) * sizeof *sigmas), *latents = malloc(count * sizeof *latents);
    float *of_branch[2] = {malloc(count * sizeof(float)), malloc(count * sizeof(float))};
    if (sigmas == NULL || latents == NULL || of_branch[0] == NULL || of_branch[1] == NULL) return 1;
    check(dbcache_denoiser_sigmas(denoiser, sigmas, steps + 1));
    check(dbcache_denoiser_latents(denoiser, latents, count));

    for (size_t step = 0; step < steps; step++) {
        for (size_t i = 0; i < branches; i++) {
            float *velocity = of_branch[branch[i]];
            check(dbcache_denoiser_velocity(denoiser, branch[i], sigmas[step], latents, velocity, count));
        }
        for (size_t i = 0; i < count; i++) {
            const float cond = of_branch[DBCACHE_BRANCH_COND][i], uncond = of_branch[DBCACHE_BRANCH_UNCOND][i];
            latents[i] += (sigmas[step + 1] - sigmas[step]) * (uncond + scale * (cond - uncond));
        }
    }

    dbcache_result *result = NULL;
    size_t length = 0, pictures = 0;
    check(dbcache_denoiser_result(denoiser, latents, count, &result));
    check(dbcache_result_summary(result, NULL, 0, &length));
    char *summary = malloc(length);
    if (summary == NULL) return 1;
    check(dbcache_result_summary(result, summary, length, &length));
    puts(summary);
    check(dbcache_result_pictures(result, &pictures));
    if (pictures > 0) check(dbcache_result_write_png(result, 0, argv[5]));
    free(summary);
    free(sigmas);
    free(latents);
    free(of_branch[0]);
    free(of_branch[1]);
    dbcache_result_free(result);
    dbcache_denoiser_free(denoiser);
    dbcache_request_free(request);
    dbcache_engine_free(engine);
    dbcache_options_free(options);
    return 0;
}
