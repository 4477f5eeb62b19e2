/* Hosts that own the loop: their Euler steps and their guidance give what a request gives by itself.
 * stepwise ONNXRUNTIME TINY EMOJI VIDEO FOLDER */
#include "check.h"

/* Sums on the host may round in another order than those of a graph. */
static const double LATENT_RELATIVE_L1 = 1e-5;

enum { STEPS = 10, NUMBERS = 64 * 16 };

static int32_t count_steps(const dbcache_step *step, void *user) {
    CHECK(step->steps == STEPS);
    ++*(int *)user;
    return 0;
}

static int32_t cancels(const dbcache_step *step, void *user) {
    (void)step;
    (void)user;
    return 1;
}

static double relative_l1(const float *a, const float *b) {
    double change = 0, size = 0;
    for (int i = 0; i < NUMBERS; i++) {
        change += fabs((double)a[i] - (double)b[i]);
        size += fabs((double)b[i]);
    }
    return change / size;
}

/* Euler, with guidance of the host where the session has two branches. */
static void drive(dbcache_denoiser *denoiser, float scale, float *latents) {
    float sigmas[STEPS + 1], of_branch[3][NUMBERS];
    int32_t branches[2];
    size_t count = 0;
    OK(dbcache_denoiser_sigmas(denoiser, sigmas, STEPS + 1));
    OK(dbcache_denoiser_branches(denoiser, branches, &count));
    OK(dbcache_denoiser_latents(denoiser, latents, NUMBERS));
    for (int step = 0; step < STEPS; step++) {
        for (size_t i = 0; i < count; i++) {
            float *velocity = of_branch[branches[i]];
            OK(dbcache_denoiser_velocity(denoiser, branches[i], sigmas[step], latents, velocity, NUMBERS));
        }
        for (int i = 0; i < NUMBERS; i++) {
            float cond = of_branch[DBCACHE_BRANCH_COND][i], uncond = of_branch[DBCACHE_BRANCH_UNCOND][i];
            float velocity = count == 2 ? uncond + scale * (cond - uncond) : of_branch[branches[0]][i];
            latents[i] += (sigmas[step + 1] - sigmas[step]) * velocity;
        }
    }
}

static void compare(const dbcache_engine *engine, const char *scale) {
    dbcache_options *options = OPTIONS("steps", "10", "cache", "f1b0w2r0.9", "seed", "5");
    dbcache_request *request = tiny_request(engine, options, scale != NULL);
    int records = 0;
    OK(dbcache_request_on_step(request, count_steps, &records));
    dbcache_denoiser *denoiser = NULL;
    OK(dbcache_denoiser_new(request, scale == NULL ? DBCACHE_GUIDANCE_LIBRARY : DBCACHE_GUIDANCE_HOST, &denoiser));
    dbcache_request_free(request);
    if (scale != NULL) OK(dbcache_options_set(options, "true-cfg", scale));
    request = tiny_request(engine, options, scale != NULL);
    dbcache_result *whole = NULL, *own = NULL;
    OK(dbcache_request_run(request, &whole));
    dbcache_request_free(request);
    dbcache_options_free(options);

    float latents[NUMBERS];
    drive(denoiser, scale == NULL ? 1.0f : strtof(scale, NULL), latents);
    CHECK(records == (scale == NULL ? STEPS : 2 * STEPS));
    OK(dbcache_denoiser_result(denoiser, latents, NUMBERS, &own));
    dbcache_denoiser_free(denoiser);
    size_t count = 0;
    double error = relative_l1(latents_of(own, &count), latents_of(whole, &count));
    CHECK(error <= LATENT_RELATIVE_L1);
    char *statistics[2] = {text_of(own, dbcache_result_statistics), text_of(whole, dbcache_result_statistics)};
    /* The decisions, up to what follows them. */
    char *decisions[2];
    for (int i = 0; i < 2; i++) {
        decisions[i] = strstr(statistics[i], "\"decisions\"");
        *strstr(decisions[i], "\"threshold\"") = '\0';
        CHECK(strchr(decisions[i], 'S') != NULL);
    }
    CHECK(strcmp(decisions[0], decisions[1]) == 0);
    free(statistics[0]);
    free(statistics[1]);
    dbcache_result_free(own);
    dbcache_result_free(whole);
}

static void test_cancelling_callback(const dbcache_engine *engine) {
    dbcache_options *options = OPTIONS("steps", "2");
    dbcache_request *request = tiny_request(engine, options, 0);
    OK(dbcache_request_on_step(request, cancels, NULL));
    dbcache_denoiser *denoiser = NULL;
    OK(dbcache_denoiser_new(request, DBCACHE_GUIDANCE_LIBRARY, &denoiser));
    float numbers[NUMBERS], velocity[NUMBERS];
    fill(numbers, NUMBERS, 1);
    FAILS(dbcache_denoiser_velocity(denoiser, DBCACHE_BRANCH_BOTH, 1, numbers, velocity, NUMBERS), DBCACHE_ERROR_CANCELLED,
          NULL, "cancelled");
    FAILS(dbcache_denoiser_velocity(denoiser, DBCACHE_BRANCH_BOTH, 1, numbers, velocity, NUMBERS), DBCACHE_ERROR_CANCELLED,
          NULL, "cancelled");
    dbcache_denoiser_free(denoiser);

    OK(dbcache_options_set(options, "true-cfg", "2"));
    dbcache_request *guided = tiny_request(engine, options, 1);
    FAILS(dbcache_denoiser_new(guided, DBCACHE_GUIDANCE_HOST, &denoiser), DBCACHE_ERROR_USAGE, "true-cfg",
          "the host combines the branches");
    dbcache_request_free(guided);
    dbcache_request_free(request);
    dbcache_options_free(options);
}

int main(int argc, char **argv) {
    CHECK(argc == 6);
    OK(dbcache_runtime_load(argv[1]));
    dbcache_engine *engine = NULL;
    OK(dbcache_engine_load(argv[2], NULL, &engine));
    compare(engine, NULL);
    compare(engine, "2.5");
    test_cancelling_callback(engine);
    dbcache_engine_free(engine);
    puts("stepwise: ok");
    return 0;
}
