/* Hosts that own the loop: their Euler steps and their guidance give what a request gives by itself.
 * stepwise ONNXRUNTIME TINY EMOJI VIDEO FOLDER */
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>

/* Sums on the host may round in another order than those of a graph. */
static const double LATENT_RELATIVE_L1 = 1e-5;

enum { STEPS = 10, NUMBERS = 64 * 16 };

/* With how many it steps. */
static int steps(void) { return is_small() ? 4 : STEPS; }

static int32_t count_steps(const dbcache_step *step, void *user) {
    CHECK((int)step->steps == steps());
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
    OK(dbcache_denoiser_sigmas(denoiser, sigmas, (size_t)steps() + 1));
    OK(dbcache_denoiser_branches(denoiser, branches, &count));
    OK(dbcache_denoiser_latents(denoiser, latents, NUMBERS));
    for (int step = 0; step < steps(); step++) {
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
    dbcache_options *options = OPTIONS("steps", is_small() ? "4" : "10", "cache", "f1b0w2r0.9", "seed", "5");
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
    CHECK(records == (scale == NULL ? 1 : 2) * steps());
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

/* A policy as JSON is that of its tag; noise and noise levels as tensors are those that the library would have taken. */
static void test_given_start(const dbcache_engine *engine) {
    const int64_t shape[3] = {1, 64, 16}, levels[1] = {5};
    float noise[NUMBERS], sigmas[5];
    dbcache_options *options = OPTIONS("steps", "4", "cache", "f1b0w2r0.9", "seed", "5");
    dbcache_request *request = tiny_request(engine, options, 0);
    dbcache_denoiser *denoiser = NULL;
    OK(dbcache_denoiser_new(request, DBCACHE_GUIDANCE_LIBRARY, &denoiser));
    OK(dbcache_denoiser_latents(denoiser, noise, NUMBERS));
    OK(dbcache_denoiser_sigmas(denoiser, sigmas, 5));
    dbcache_denoiser_free(denoiser);
    dbcache_result *expected = NULL, *given = NULL;
    OK(dbcache_request_run(request, &expected));
    dbcache_request_free(request);
    OK(dbcache_options_set(options, "seed", "6"));
    OK(dbcache_options_set(options, "cache", "{\"Fn_compute_blocks\": 1, \"Bn_compute_blocks\": 0, \"max_warmup_steps\": 2,"
                                             " \"residual_diff_threshold\": 0.9}"));
    request = tiny_request(engine, options, 0);
    dbcache_options_free(options);
    dbcache_tensor *tensor = NULL;
    OK(dbcache_tensor_new(DBCACHE_DTYPE_F32, shape, 3, noise, sizeof noise, &tensor));
    OK(dbcache_request_set_tensor(request, "latents", tensor));
    dbcache_tensor_free(tensor);
    OK(dbcache_tensor_new(DBCACHE_DTYPE_F32, levels, 1, sigmas, sizeof sigmas, &tensor));
    OK(dbcache_request_set_tensor(request, "sigmas", tensor));
    dbcache_tensor_free(tensor);
    OK(dbcache_request_run(request, &given));
    dbcache_request_free(request);
    CHECK(has_equal_latents(expected, given));
    dbcache_result_free(expected);
    dbcache_result_free(given);
}

typedef struct {
    dbcache_denoiser *denoiser;
    atomic_bool is_over;
} driven;

static void *drive_until_over(void *user) {
    driven *d = user;
    float numbers[NUMBERS], velocity[NUMBERS];
    fill(numbers, NUMBERS, 1);
    while (!d->is_over) {
        dbcache_error *error = dbcache_denoiser_velocity(d->denoiser, DBCACHE_BRANCH_BOTH, 1, numbers, velocity, NUMBERS);
        CHECK(error == NULL || dbcache_error_code(error) == DBCACHE_ERROR_STATE);
        dbcache_error_free(error);
    }
    return NULL;
}

/* A second thread is refused while the first one computes. */
static void test_one_thread_at_a_time(const dbcache_engine *engine) {
    dbcache_options *options = OPTIONS("steps", "10000");
    dbcache_request *request = tiny_request(engine, options, 0);
    driven d = {NULL, 0};
    OK(dbcache_denoiser_new(request, DBCACHE_GUIDANCE_LIBRARY, &d.denoiser));
    dbcache_request_free(request);
    dbcache_options_free(options);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, drive_until_over, &d) == 0);
    int32_t branches[2];
    size_t count = 0;
    dbcache_error *error = NULL;
    while (error == NULL) error = dbcache_denoiser_branches(d.denoiser, branches, &count);
    FAILS(error, DBCACHE_ERROR_STATE, NULL, "another thread uses this session");
    d.is_over = 1;
    CHECK(pthread_join(thread, NULL) == 0);
    dbcache_denoiser_free(d.denoiser);
}

/* A session knows which call comes next. */
static void test_turns(const dbcache_engine *engine) {
    dbcache_options *options = OPTIONS("steps", "1");
    dbcache_request *request = tiny_request(engine, options, 1);
    dbcache_denoiser *denoiser = NULL;
    OK(dbcache_denoiser_new(request, DBCACHE_GUIDANCE_HOST, &denoiser));
    float numbers[1024], velocity[1024];
    OK(dbcache_denoiser_latents(denoiser, numbers, 1024));
    const int32_t cond = DBCACHE_BRANCH_COND, uncond = DBCACHE_BRANCH_UNCOND, both = DBCACHE_BRANCH_BOTH;
    FAILS(dbcache_denoiser_velocity(denoiser, uncond, 1, numbers, velocity, 1024), DBCACHE_ERROR_STATE, "branch",
          "expects cond now");
    FAILS(dbcache_denoiser_velocity(denoiser, both, 1, numbers, velocity, 1024), DBCACHE_ERROR_STATE, "branch",
          "the branch is both");
    OK(dbcache_denoiser_velocity(denoiser, cond, 1, numbers, velocity, 1024));
    FAILS(dbcache_denoiser_velocity(denoiser, cond, 1, numbers, velocity, 1024), DBCACHE_ERROR_STATE, "branch",
          "expects uncond now");
    FAILS(dbcache_denoiser_velocity(denoiser, uncond, 0.5f, numbers, velocity, 1024), DBCACHE_ERROR_STATE, "sigma",
          "the other branch of this step had 1");
    FAILS(dbcache_denoiser_velocity(denoiser, uncond, INFINITY, numbers, velocity, 1024), DBCACHE_ERROR_NUMERIC,
          "sigma", "must be finite");
    OK(dbcache_denoiser_velocity(denoiser, uncond, 1, numbers, velocity, 1024));
    FAILS(dbcache_denoiser_velocity(denoiser, cond, 1, numbers, velocity, 1024), DBCACHE_ERROR_STATE, NULL,
          "all 1 steps");
    dbcache_denoiser_free(denoiser);
    dbcache_request_free(request);
    dbcache_options_free(options);
}

static void test_denoisers(const dbcache_engine *engine) {
    dbcache_options *options = OPTIONS("steps", "2");
    dbcache_request *request = tiny_request(engine, options, 0);
    dbcache_denoiser *denoiser = NULL;
    NULLS(dbcache_denoiser_new(NULL, DBCACHE_GUIDANCE_LIBRARY, &denoiser), "request");
    NULLS(dbcache_denoiser_new(request, DBCACHE_GUIDANCE_LIBRARY, NULL), "out");
    FAILS(dbcache_denoiser_new(request, 7, &denoiser), DBCACHE_ERROR_ARGUMENT, "guidance", "is 7");
    CHECK(denoiser == NULL);
    OK(dbcache_denoiser_new(request, DBCACHE_GUIDANCE_LIBRARY, &denoiser));
    dbcache_request_free(request);
    dbcache_options_free(options);

    size_t steps = 77, count = 77, rank = 77;
    const int64_t *shape = NULL;
    int32_t branches[2];
    float sigmas[3], numbers[1024], velocity[1024];
    dbcache_result *result = NULL;
    NULLS(dbcache_denoiser_shape(NULL, &steps, &shape, &rank), "denoiser");
    NULLS(dbcache_denoiser_shape(denoiser, NULL, &shape, &rank), "steps");
    NULLS(dbcache_denoiser_shape(denoiser, &steps, NULL, &rank), "shape");
    NULLS(dbcache_denoiser_shape(denoiser, &steps, &shape, NULL), "rank");
    CHECK(steps == 77 && shape == NULL && rank == 77);
    OK(dbcache_denoiser_shape(denoiser, &steps, &shape, &rank));
    CHECK(steps == 2 && rank == 3 && shape[0] == 1 && shape[1] == 64 && shape[2] == 16);
    NULLS(dbcache_denoiser_branches(NULL, branches, &count), "denoiser");
    NULLS(dbcache_denoiser_branches(denoiser, NULL, &count), "branches");
    NULLS(dbcache_denoiser_branches(denoiser, branches, NULL), "count");
    CHECK(count == 77);
    NULLS(dbcache_denoiser_sigmas(NULL, sigmas, 3), "denoiser");
    NULLS(dbcache_denoiser_sigmas(denoiser, NULL, 3), "sigmas");
    FAILS(dbcache_denoiser_sigmas(denoiser, sigmas, 2), DBCACHE_ERROR_ARGUMENT, "sigmas", "exactly 3");
    OK(dbcache_denoiser_sigmas(denoiser, sigmas, 3));
    CHECK(sigmas[0] == 1.0f && sigmas[2] == 0.0f);
    NULLS(dbcache_denoiser_latents(NULL, numbers, 1024), "denoiser");
    NULLS(dbcache_denoiser_latents(denoiser, NULL, 1024), "latents");
    FAILS(dbcache_denoiser_latents(denoiser, numbers, 1023), DBCACHE_ERROR_ARGUMENT, "latents", "exactly 1024");
    OK(dbcache_denoiser_latents(denoiser, numbers, 1024));

    const int32_t both = DBCACHE_BRANCH_BOTH;
    NULLS(dbcache_denoiser_velocity(NULL, both, 1, numbers, velocity, 1024), "denoiser");
    NULLS(dbcache_denoiser_velocity(denoiser, both, 1, NULL, velocity, 1024), "latents");
    NULLS(dbcache_denoiser_velocity(denoiser, both, 1, numbers, NULL, 1024), "velocity");
    FAILS(dbcache_denoiser_velocity(denoiser, both, 1, numbers, velocity, 9), DBCACHE_ERROR_ARGUMENT, "latents", "expected 1024");
    FAILS(dbcache_denoiser_velocity(denoiser, both, 1, numbers, velocity, TOO_MANY), DBCACHE_ERROR_ARGUMENT, "latents", "expected 1024");
    FAILS(dbcache_denoiser_velocity(denoiser, both, 1, numbers, numbers, 1024), DBCACHE_ERROR_ARGUMENT, "velocity", "overlaps `latents`");
    FAILS(dbcache_denoiser_velocity(denoiser, both, 1, numbers, numbers + 1023, 1024), DBCACHE_ERROR_ARGUMENT, "velocity", "overlaps `latents`");
    FAILS(dbcache_denoiser_velocity(denoiser, 9, 1, numbers, velocity, 1024), DBCACHE_ERROR_ARGUMENT, "branch", "is 9");
    FAILS(dbcache_denoiser_velocity(denoiser, DBCACHE_BRANCH_COND, 1, numbers, velocity, 1024), DBCACHE_ERROR_STATE, "branch", "expects both");
    FAILS(dbcache_denoiser_velocity(denoiser, both, -1, numbers, velocity, 1024), DBCACHE_ERROR_INPUT, "sigma", "not be negative");
    FAILS(dbcache_denoiser_velocity(denoiser, both, NAN, numbers, velocity, 1024), DBCACHE_ERROR_NUMERIC, "sigma", "must be finite");
    OK(dbcache_denoiser_velocity(denoiser, both, 1, numbers, velocity, 1024));
    NULLS(dbcache_denoiser_result(NULL, numbers, 1024, &result), "denoiser");
    NULLS(dbcache_denoiser_result(denoiser, NULL, 1024, &result), "latents");
    NULLS(dbcache_denoiser_result(denoiser, numbers, 1024, NULL), "out");
    FAILS(dbcache_denoiser_result(denoiser, numbers, 3, &result), DBCACHE_ERROR_ARGUMENT, "latents", "expected 1024");
    FAILS(dbcache_denoiser_result(denoiser, numbers, TOO_MANY, &result), DBCACHE_ERROR_ARGUMENT, "latents", "expected 1024");
    const float number = numbers[5];
    numbers[5] = NAN;
    FAILS(dbcache_denoiser_result(denoiser, numbers, 1024, &result), DBCACHE_ERROR_NUMERIC, "latents", "expected finite numbers");
    FAILS(dbcache_denoiser_velocity(denoiser, both, 1, numbers, velocity, 1024), DBCACHE_ERROR_NUMERIC, "latents", "expected finite numbers");
    numbers[5] = number;
    NULLS(dbcache_denoiser_cancel(NULL), "denoiser");
    OK(dbcache_denoiser_cancel(denoiser));
    FAILS(dbcache_denoiser_velocity(denoiser, both, 0.5f, numbers, velocity, 1024), DBCACHE_ERROR_CANCELLED, NULL, "cancelled");
    FAILS(dbcache_denoiser_velocity(denoiser, both, 0.5f, numbers, velocity, 1024), DBCACHE_ERROR_STATE, NULL, "has failed");
    CHECK(result == NULL);
    dbcache_denoiser_free(denoiser);
}

/* A model that predicts no velocity has its own loop only, and knows so many labels. `directory` lies beside those of other families. */
static void test_other_models(const char *directory) {
    char path[4096];
    snprintf(path, sizeof path, "%s/../families/dit/engine", directory);
    const int64_t shape[1] = {1};
    const float label = 1e6f;
    float latents[256], velocity[256];
    dbcache_engine *engine = NULL;
    dbcache_request *request = NULL;
    dbcache_denoiser *denoiser = NULL;
    dbcache_tensor *labels = NULL;
    dbcache_result *result = NULL;
    dbcache_options *options = OPTIONS("steps", "1");
    OK(dbcache_engine_load(path, NULL, &engine));
    OK(dbcache_request_new(engine, options, &request));
    FAILS(dbcache_request_run(request, &result), DBCACHE_ERROR_INPUT, "class_labels", "no `class_labels`");
    dbcache_request_free(request);
    OK(dbcache_request_new(engine, options, &request));
    OK(dbcache_tensor_new(DBCACHE_DTYPE_F32, shape, 1, &label, sizeof label, &labels));
    OK(dbcache_request_set_tensor(request, "class_labels", labels));
    OK(dbcache_denoiser_new(request, DBCACHE_GUIDANCE_LIBRARY, &denoiser));
    OK(dbcache_denoiser_latents(denoiser, latents, 256));
    FAILS(dbcache_denoiser_velocity(denoiser, DBCACHE_BRANCH_BOTH, 1, latents, velocity, 256), DBCACHE_ERROR_USAGE,
          NULL, "predicts no velocity");
    dbcache_denoiser_free(denoiser);
    FAILS(dbcache_request_run(request, &result), DBCACHE_ERROR_INPUT, NULL, "lies beyond the model's table");
    dbcache_options_free(options);
    dbcache_tensor_free(labels);
    dbcache_request_free(request);
    dbcache_engine_free(engine);
}

int main(int argc, char **argv) {
    CHECK(argc == 6);
    OK(dbcache_runtime_load(argv[1]));
    dbcache_engine *engine = NULL;
    OK(dbcache_engine_load(argv[2], NULL, &engine));
    compare(engine, NULL);
    compare(engine, "2.5");
    test_cancelling_callback(engine);
    test_given_start(engine);
    test_one_thread_at_a_time(engine);
    test_denoisers(engine);
    test_turns(engine);
    test_other_models(argv[2]);
    dbcache_engine_free(engine);
    puts("stepwise: ok");
    return 0;
}
