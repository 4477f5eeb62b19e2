/* What the test programs share: checks that name their line, and a request of the model of the tests. */
#ifndef CHECK_H
#define CHECK_H

#include <dbcache_trt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                   \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                \
            exit(1);                                                                       \
        }                                                                                  \
    } while (0)

#define OK(call) check_ok(call, __FILE__, __LINE__, #call)
#define FAILS(call, code, field, words) check_fails(call, code, field, words, __FILE__, __LINE__, #call)
#define NULLS(call, name) FAILS(call, DBCACHE_ERROR_ARGUMENT, name, "is NULL")

/* Numbers, more than any machine has. */
#define TOO_MANY ((size_t)1 << 50)

/* A request ends like this whether it is run or started; `make` is called for each. */
#define ENDS(make, code, field, words)                                                     \
    do {                                                                                   \
        dbcache_request *const ran_ = (make), *const started_ = (make);                    \
        dbcache_result *result_ = NULL;                                                    \
        FAILS(dbcache_request_run(ran_, &result_), code, field, words);                    \
        OK(dbcache_request_start(started_));                                               \
        FAILS(dbcache_request_wait(started_, &result_), code, field, words);               \
        CHECK(result_ == NULL);                                                            \
        dbcache_request_free(ran_);                                                        \
        dbcache_request_free(started_);                                                    \
    } while (0)

/* The same, and no session can be opened with it. */
#define NEVER_BEGINS(make, code, field, words)                                             \
    do {                                                                                   \
        ENDS(make, code, field, words);                                                    \
        dbcache_request *const opened_ = (make);                                           \
        dbcache_denoiser *denoiser_ = NULL;                                                \
        FAILS(dbcache_denoiser_new(opened_, DBCACHE_GUIDANCE_LIBRARY, &denoiser_), code,   \
              field, words);                                                               \
        CHECK(denoiser_ == NULL);                                                          \
        dbcache_request_free(opened_);                                                     \
    } while (0)

static inline void check_ok(dbcache_error *error, const char *file, int line, const char *call) {
    if (error == NULL) return;
    fprintf(stderr, "%s:%d: %s: %s\n", file, line, call, dbcache_error_message(error));
    exit(1);
}

/* The call must fail with this code, about this field (NULL: whatever), and say these words. */
static inline void check_fails(dbcache_error *error, int32_t code, const char *field, const char *words,
                               const char *file, int line, const char *call) {
    const char *told = dbcache_error_field(error);
    int is_right = error != NULL && dbcache_error_code(error) == code &&
                   (field == NULL || (told != NULL && strcmp(told, field) == 0)) &&
                   strstr(dbcache_error_message(error), words) != NULL;
    if (!is_right) {
        fprintf(stderr, "%s:%d: %s: code %d, field %s: %s\n", file, line, call, (int)dbcache_error_code(error),
                told == NULL ? "NULL" : told, dbcache_error_message(error));
        exit(1);
    }
    dbcache_error_free(error);
}

/* Options from name, value, …, NULL. */
static inline dbcache_options *options_of(const char *const *pairs) {
    dbcache_options *options = NULL;
    OK(dbcache_options_new(&options));
    for (; *pairs != NULL; pairs += 2) OK(dbcache_options_set(options, pairs[0], pairs[1]));
    return options;
}

#define OPTIONS(...) options_of((const char *const[]){__VA_ARGS__, NULL})

/* Less of what only repeats: under valgrind everything takes fifty times as long. */
static inline int is_small(void) { return getenv("DBCACHE_CAPI_SMALL") != NULL; }

/* Numbers without a pattern that a model could like. */
static inline void fill(float *numbers, size_t count, unsigned seed) {
    for (size_t i = 0; i < count; i++) numbers[i] = (float)sin((double)(i * 37 + seed * 11 + 1));
}

static inline void set_tensor(dbcache_request *request, const char *name, const int64_t *shape, size_t rank,
                              unsigned seed) {
    size_t count = 1;
    for (size_t i = 0; i < rank; i++) count *= (size_t)shape[i];
    float *numbers = malloc(count * sizeof *numbers);
    CHECK(numbers != NULL);
    fill(numbers, count, seed);
    dbcache_tensor *tensor = NULL;
    OK(dbcache_tensor_new(DBCACHE_DTYPE_F32, shape, rank, numbers, count * sizeof *numbers, &tensor));
    free(numbers);
    OK(dbcache_request_set_tensor(request, name, tensor));
    dbcache_tensor_free(tensor);
}

/* A request of the model of the tests, with its text inputs. */
static inline dbcache_request *tiny_request(const dbcache_engine *engine, const dbcache_options *options,
                                            int is_guided) {
    static const int64_t text[3] = {1, 12, 32}, pooled[2] = {1, 24};
    dbcache_request *request = NULL;
    OK(dbcache_request_new(engine, options, &request));
    set_tensor(request, "prompt_embeds", text, 3, 1);
    set_tensor(request, "pooled_projections", pooled, 2, 2);
    if (is_guided) {
        set_tensor(request, "negative_prompt_embeds", text, 3, 3);
        set_tensor(request, "negative_pooled_projections", pooled, 2, 4);
    }
    return request;
}

/* A request of the model that makes videos, with its text inputs. */
static inline dbcache_request *video_request(const dbcache_engine *engine, const dbcache_options *options,
                                             int64_t batch) {
    const int64_t text[3] = {batch, 7, 20}, mask[2] = {batch, 7};
    static const float ones[2 * 7] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    dbcache_request *request = NULL;
    OK(dbcache_request_new(engine, options, &request));
    set_tensor(request, "prompt_embeds", text, 3, 1);
    set_tensor(request, "negative_prompt_embeds", text, 3, 2);
    dbcache_tensor *tensor = NULL;
    OK(dbcache_tensor_new(DBCACHE_DTYPE_F32, mask, 2, ones, (size_t)batch * 7 * sizeof *ones, &tensor));
    OK(dbcache_request_set_tensor(request, "prompt_attention_mask", tensor));
    OK(dbcache_request_set_tensor(request, "negative_prompt_attention_mask", tensor));
    dbcache_tensor_free(tensor);
    return request;
}

static inline const float *latents_of(const dbcache_result *result, size_t *count) {
    const dbcache_tensor *tensor = NULL;
    const float *data = NULL;
    OK(dbcache_result_latents(result, &tensor));
    OK(dbcache_tensor_data(tensor, &data, count));
    return data;
}

static inline int has_equal_latents(const dbcache_result *a, const dbcache_result *b) {
    size_t count_a = 0, count_b = 0;
    const float *of_a = latents_of(a, &count_a), *of_b = latents_of(b, &count_b);
    return count_a == count_b && memcmp(of_a, of_b, count_a * sizeof *of_a) == 0;
}

/* A text of a result, to be freed by the test. */
static inline char *text_of(const dbcache_result *result,
                            dbcache_error *(*call)(const dbcache_result *, char *, size_t, size_t *)) {
    size_t length = 0;
    OK(call(result, NULL, 0, &length));
    char *text = malloc(length);
    CHECK(text != NULL);
    OK(call(result, text, length, &length));
    CHECK(strlen(text) + 1 == length);
    return text;
}

#endif
