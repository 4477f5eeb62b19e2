/* Every way a call can fail, and that outputs are written on success only, but for the length of a text.
 * errors ONNXRUNTIME TINY EMOJI VIDEO FOLDER */
#include "check.h"

/* Numbers, more than any machine has. */
#define TOO_MANY ((size_t)1 << 50)

#define NULLS(call, name) FAILS(call, DBCACHE_ERROR_ARGUMENT, name, "is NULL")

static void test_versions(void) {
    CHECK(dbcache_abi_version() == DBCACHE_ABI_VERSION);
    CHECK(strcmp(dbcache_version(), DBCACHE_VERSION) == 0);
    CHECK(strstr(dbcache_build_info(), "\"version\":1") != NULL && strstr(dbcache_build_info(), DBCACHE_VERSION) != NULL);
    CHECK(dbcache_build_info() == dbcache_build_info());
}

static void test_nothing(void) {
    dbcache_error_free(NULL);
    dbcache_options_free(NULL);
    dbcache_engine_free(NULL);
    dbcache_tensor_free(NULL);
    dbcache_request_free(NULL);
    dbcache_result_free(NULL);
    dbcache_denoiser_free(NULL);
    CHECK(dbcache_error_code(NULL) == DBCACHE_OK);
    CHECK(strcmp(dbcache_error_message(NULL), "") == 0 && dbcache_error_field(NULL) == NULL);
}

static void test_options(void) {
    dbcache_options *options = NULL;
    NULLS(dbcache_options_new(NULL), "out");
    OK(dbcache_options_new(&options));
    NULLS(dbcache_options_set(NULL, "steps", "4"), "options");
    NULLS(dbcache_options_set(options, NULL, "4"), "name");
    NULLS(dbcache_options_set(options, "steps", NULL), "value");
    FAILS(dbcache_options_set(options, "\xff", "4"), DBCACHE_ERROR_ARGUMENT, "name", "is not UTF-8");
    FAILS(dbcache_options_set(options, "step", "4"), DBCACHE_ERROR_USAGE, "step", "the nearest known one is `steps`");
    FAILS(dbcache_options_set(options, "prompt", "lemon"), DBCACHE_ERROR_USAGE, "prompt", "dbcache_request_set_prompt does it");
    FAILS(dbcache_options_set(options, "output", "a.png"), DBCACHE_ERROR_USAGE, "output", "dbcache_result_write_png");
    FAILS(dbcache_options_set(options, "", "4"), DBCACHE_ERROR_USAGE, "", "without a name");
    FAILS(dbcache_options_set(options, "steps", "four"), DBCACHE_ERROR_USAGE, "steps", "`four`");
    FAILS(dbcache_options_set(options, "guidance", "nan"), DBCACHE_ERROR_USAGE, "guidance", "expected a number");
    FAILS(dbcache_options_set(options, "cache", "f8z"), DBCACHE_ERROR_USAGE, "cache", "");
    FAILS(dbcache_options_set(options, "replay", "no/such.json"), DBCACHE_ERROR_IO, "no/such.json", "cannot read");
    NULLS(dbcache_options_on_log(NULL, DBCACHE_LOG_WARN, NULL, NULL), "options");
    FAILS(dbcache_options_on_log(options, 0, NULL, NULL), DBCACHE_ERROR_ARGUMENT, "most", "is 0");
    OK(dbcache_options_on_log(options, DBCACHE_LOG_WARN, NULL, NULL));
    size_t length = 0;
    OK(dbcache_options_names(NULL, 0, &length));
    char *names = malloc(length);
    OK(dbcache_options_names(names, length, &length));
    CHECK(strstr(names, "\"cache\"") != NULL && strstr(names, "\"max-warmup-steps\"") != NULL);
    memset(names, 'x', length);
    size_t untouched = 77;
    FAILS(dbcache_options_names(names, length - 1, &untouched), DBCACHE_ERROR_ARGUMENT, "capacity", "the text needs");
    CHECK(names[0] == 'x' && untouched == length);
    untouched = 77;
    NULLS(dbcache_options_names(NULL, 5, &untouched), "buffer");
    NULLS(dbcache_options_names(names, length, NULL), "length");
    CHECK(untouched == 77);
    free(names);
    dbcache_options_free(options);
}

static void test_tensors(void) {
    dbcache_tensor *tensor = (dbcache_tensor *)&tensor;
    void *untouched = tensor;
    const int64_t shape[2] = {2, 3}, negative[2] = {2, -3}, huge[3] = {INT64_MAX, INT64_MAX, 16};
    const float numbers[6] = {1, 2, 3, 4, 5, 6};
    const uint16_t halves[2] = {0x3c00, 0xc000}, brains[2] = {0x3f80, 0xc000};
    NULLS(dbcache_tensor_new(DBCACHE_DTYPE_F32, NULL, 2, numbers, sizeof numbers, &tensor), "shape");
    NULLS(dbcache_tensor_new(DBCACHE_DTYPE_F32, shape, 2, NULL, sizeof numbers, &tensor), "data");
    NULLS(dbcache_tensor_new(DBCACHE_DTYPE_F32, shape, 2, numbers, sizeof numbers, NULL), "out");
    FAILS(dbcache_tensor_new(0, shape, 2, numbers, sizeof numbers, &tensor), DBCACHE_ERROR_ARGUMENT, "dtype", "is 0");
    FAILS(dbcache_tensor_new(DBCACHE_DTYPE_F32, shape, 2, numbers, 23, &tensor), DBCACHE_ERROR_ARGUMENT, "bytes", "23");
    FAILS(dbcache_tensor_new(DBCACHE_DTYPE_F32, shape, 17, numbers, 24, &tensor), DBCACHE_ERROR_ARGUMENT, "rank", "17");
    FAILS(dbcache_tensor_new(DBCACHE_DTYPE_F32, negative, 2, numbers, 24, &tensor), DBCACHE_ERROR_ARGUMENT, "shape", "-3");
    FAILS(dbcache_tensor_new(DBCACHE_DTYPE_F32, huge, 3, numbers, 24, &tensor), DBCACHE_ERROR_ARGUMENT, "bytes", "");
    /* A wrong number is found out before anything is read or allocated by it. */
    const int64_t endless[1] = {(int64_t)1 << 50};
    FAILS(dbcache_tensor_new(DBCACHE_DTYPE_F32, shape, 2, numbers, TOO_MANY * 4, &tensor), DBCACHE_ERROR_ARGUMENT, "bytes", "does not fit");
    FAILS(dbcache_tensor_new(DBCACHE_DTYPE_F32, endless, 1, numbers, TOO_MANY * 4, &tensor), DBCACHE_ERROR_ARGUMENT, "bytes", "more than there is memory");
    CHECK(tensor == untouched);

    OK(dbcache_tensor_new(DBCACHE_DTYPE_F32, shape, 2, numbers, sizeof numbers, &tensor));
    const int64_t *told = NULL;
    const float *data = NULL;
    size_t rank = 0, count = 0;
    OK(dbcache_tensor_shape(tensor, &told, &rank));
    CHECK(rank == 2 && told[0] == 2 && told[1] == 3);
    OK(dbcache_tensor_data(tensor, &data, &count));
    CHECK(count == 6 && memcmp(data, numbers, sizeof numbers) == 0);
    NULLS(dbcache_tensor_shape(NULL, &told, &rank), "tensor");
    NULLS(dbcache_tensor_shape(tensor, NULL, &rank), "shape");
    NULLS(dbcache_tensor_shape(tensor, &told, NULL), "rank");
    NULLS(dbcache_tensor_data(NULL, &data, &count), "tensor");
    NULLS(dbcache_tensor_data(tensor, NULL, &count), "data");
    NULLS(dbcache_tensor_data(tensor, &data, NULL), "count");
    dbcache_tensor_free(tensor);

    const int64_t two[1] = {2};
    OK(dbcache_tensor_new(DBCACHE_DTYPE_F16, two, 1, halves, sizeof halves, &tensor));
    OK(dbcache_tensor_data(tensor, &data, &count));
    CHECK(count == 2 && data[0] == 1.0f && data[1] == -2.0f);
    dbcache_tensor_free(tensor);
    OK(dbcache_tensor_new(DBCACHE_DTYPE_BF16, two, 1, brains, sizeof brains, &tensor));
    OK(dbcache_tensor_data(tensor, &data, &count));
    CHECK(count == 2 && data[0] == 1.0f && data[1] == -2.0f);
    dbcache_tensor_free(tensor);
}

static void test_runtime(const char *path) {
    NULLS(dbcache_runtime_load(NULL), "path");
    FAILS(dbcache_runtime_load("/no/such.so"), DBCACHE_ERROR_LIBRARY, "/no/such.so", "not there");
    OK(dbcache_runtime_load(path));
    OK(dbcache_runtime_load(path));
    FAILS(dbcache_runtime_load("other.so"), DBCACHE_ERROR_LIBRARY, NULL, "has already loaded");
}

static dbcache_engine *test_engines(const char *directory) {
    size_t length = 77;
    dbcache_options *options = OPTIONS("verify", "true");
    NULLS(dbcache_inspect(NULL, NULL, NULL, 0, &length), "directory");
    NULLS(dbcache_inspect(directory, NULL, NULL, 0, NULL), "length");
    FAILS(dbcache_inspect("no/such", NULL, NULL, 0, &length), DBCACHE_ERROR_ENGINE_DIRECTORY, "no/such", "no/such");
    CHECK(length == 77);
    OK(dbcache_inspect(directory, NULL, NULL, 0, &length));
    size_t verified = 0;
    OK(dbcache_inspect(directory, options, NULL, 0, &verified));
    CHECK(length > 100 && verified > length);
    dbcache_options_free(options);

    dbcache_engine *engine = (dbcache_engine *)&engine;
    void *untouched = engine;
    options = OPTIONS("threads", "100000");
    NULLS(dbcache_engine_load(NULL, NULL, &engine), "directory");
    NULLS(dbcache_engine_load(directory, NULL, NULL), "out");
    FAILS(dbcache_engine_load("no/such", NULL, &engine), DBCACHE_ERROR_ENGINE_DIRECTORY, "no/such", "no/such");
    FAILS(dbcache_engine_load(directory, options, &engine), DBCACHE_ERROR_USAGE, "threads", "threads is 100000");
    dbcache_options_free(options);
    options = OPTIONS("ort-library", "other.so");
    FAILS(dbcache_engine_load(directory, options, &engine), DBCACHE_ERROR_LIBRARY, NULL, "has already loaded");
    dbcache_options_free(options);
    CHECK(engine == untouched);

    options = OPTIONS("threads", "1");
    OK(dbcache_engine_load(directory, options, &engine));
    dbcache_options_free(options);
    NULLS(dbcache_engine_info(NULL, NULL, 0, &length), "engine");
    OK(dbcache_engine_info(engine, NULL, 0, &length));
    char *info = malloc(length);
    OK(dbcache_engine_info(engine, info, length, &length));
    CHECK(strstr(info, "\"threads\":1") != NULL && strstr(info, "\"blocks\":12") != NULL);
    free(info);
    return engine;
}

static void test_plans(const char *directory) {
    size_t length = 77;
    dbcache_options *options = OPTIONS("cache", "f1b1", "stages", "per-block", "weights-mode", "mapped");
    NULLS(dbcache_plan(NULL, options, 0, NULL, 0, &length), "directory");
    NULLS(dbcache_plan(directory, options, 0, NULL, 0, NULL), "length");
    FAILS(dbcache_plan("no/such", NULL, 0, NULL, 0, &length), DBCACHE_ERROR_ENGINE_DIRECTORY, NULL, "no/such");
    FAILS(dbcache_plan(directory, NULL, 100000, NULL, 0, &length), DBCACHE_ERROR_INPUT, NULL, "text");
    CHECK(length == 77);
    OK(dbcache_plan(directory, options, 12, NULL, 0, &length));
    char *plan = malloc(length);
    OK(dbcache_plan(directory, options, 12, plan, length, &length));
    CHECK(strstr(plan, "{\"version\":1") == plan && strstr(plan, "\"sessions\":") != NULL && strstr(plan, "\"engine_cache\":null") != NULL);
    CHECK(strstr(plan, "\"packed_weights\":0") != NULL && strstr(plan, "\"residuals\":") != NULL);
    free(plan);
    /* A text that grows between the two calls: the second one tells how far, and the third one has it. */
    size_t asked = 0, told = 0;
    OK(dbcache_plan(directory, options, 12, NULL, 0, &asked));
    OK(dbcache_options_set(options, "cache", "f1b1t2"));
    plan = malloc(asked);
    FAILS(dbcache_plan(directory, options, 12, plan, asked, &told), DBCACHE_ERROR_ARGUMENT, "capacity", "the text needs");
    free(plan);
    CHECK(told > asked);
    plan = malloc(told);
    OK(dbcache_plan(directory, options, 12, plan, told, &told));
    CHECK(strlen(plan) + 1 == told);
    free(plan);
    OK(dbcache_options_set(options, "cache-memory", "1K"));
    FAILS(dbcache_plan(directory, options, 12, NULL, 0, &length), DBCACHE_ERROR_USAGE, "cache-memory", "allows 1024");
    OK(dbcache_options_set(options, "cache", "none"));
    FAILS(dbcache_plan(directory, options, 12, NULL, 0, &length), DBCACHE_ERROR_USAGE, "cache-memory", "keeps nothing");
    dbcache_options *useless = OPTIONS("decode-tile", "64");
    FAILS(dbcache_plan(directory, useless, 12, NULL, 0, &length), DBCACHE_ERROR_USAGE, "decode-tile", "no decode graph");
    dbcache_options_free(useless);
    useless = OPTIONS("per-sample", "true");
    FAILS(dbcache_plan(directory, useless, 12, NULL, 0, &length), DBCACHE_ERROR_USAGE, "per-sample", "on one picture");
    dbcache_options_free(useless);
    OK(dbcache_options_set(options, "cache", "f99"));
    FAILS(dbcache_plan(directory, options, 0, NULL, 0, &length), DBCACHE_ERROR_USAGE, "cache", "more than the model's");
    dbcache_options_free(options);
}

/* Memory of the caller, read through the engine's provider. */
static void test_imports(const dbcache_engine *engine) {
    const int64_t shape[2] = {2, 3};
    float numbers[6] = {1, 2, 3, 4, 5, 6};
    uint16_t halves[6] = {0x3c00, 0xc000, 0, 0, 0, 0x3c00};
    dbcache_memory memory = {.struct_size = sizeof memory, .kind = DBCACHE_MEMORY_HOST, .data = numbers, .bytes = sizeof numbers};
    dbcache_tensor *tensor = NULL;
    NULLS(dbcache_tensor_import(NULL, &memory, DBCACHE_DTYPE_F32, shape, 2, &tensor), "engine");
    NULLS(dbcache_tensor_import(engine, NULL, DBCACHE_DTYPE_F32, shape, 2, &tensor), "memory");
    NULLS(dbcache_tensor_import(engine, &memory, DBCACHE_DTYPE_F32, NULL, 2, &tensor), "shape");
    NULLS(dbcache_tensor_import(engine, &memory, DBCACHE_DTYPE_F32, shape, 2, NULL), "out");
    FAILS(dbcache_tensor_import(engine, &memory, 9, shape, 2, &tensor), DBCACHE_ERROR_ARGUMENT, "dtype", "is 9");
    FAILS(dbcache_tensor_import(engine, &memory, DBCACHE_DTYPE_F16, shape, 2, &tensor), DBCACHE_ERROR_ARGUMENT, "bytes", "24");
    OK(dbcache_tensor_import(engine, &memory, DBCACHE_DTYPE_F32, shape, 2, &tensor));
    numbers[0] = 99;
    const float *data = NULL;
    size_t count = 0;
    OK(dbcache_tensor_data(tensor, &data, &count));
    CHECK(count == 6 && data[0] == 1 && data[5] == 6);
    dbcache_tensor_free(tensor);
    memory.data = halves;
    memory.bytes = sizeof halves;
    OK(dbcache_tensor_import(engine, &memory, DBCACHE_DTYPE_F16, shape, 2, &tensor));
    OK(dbcache_tensor_data(tensor, &data, &count));
    CHECK(count == 6 && data[0] == 1 && data[1] == -2 && data[5] == 1);
    dbcache_tensor_free(tensor);
    tensor = NULL;
    memory.kind = DBCACHE_MEMORY_CUDA;
    FAILS(dbcache_tensor_import(engine, &memory, DBCACHE_DTYPE_F16, shape, 2, &tensor), DBCACHE_ERROR_USAGE, "provider", "`cpu` has no memory of the kind cuda");
    memory.kind = 7;
    FAILS(dbcache_tensor_import(engine, &memory, DBCACHE_DTYPE_F16, shape, 2, &tensor), DBCACHE_ERROR_ARGUMENT, "memory", "the kind 7");
    memory.kind = DBCACHE_MEMORY_HOST;
    memory.stream = numbers;
    FAILS(dbcache_tensor_import(engine, &memory, DBCACHE_DTYPE_F16, shape, 2, &tensor), DBCACHE_ERROR_ARGUMENT, "memory", "no provider takes");
    memory.stream = NULL;
    memory.device_id = 3;
    FAILS(dbcache_tensor_import(engine, &memory, DBCACHE_DTYPE_F16, shape, 2, &tensor), DBCACHE_ERROR_ARGUMENT, "memory", "device_id 3; the host is device 0");
    memory.device_id = 0;
    memory.data = NULL;
    FAILS(dbcache_tensor_import(engine, &memory, DBCACHE_DTYPE_F16, shape, 2, &tensor), DBCACHE_ERROR_ARGUMENT, "memory", "data that is NULL");
    memory.data = (char *)halves + 1;
    FAILS(dbcache_tensor_import(engine, &memory, DBCACHE_DTYPE_F16, shape, 2, &tensor), DBCACHE_ERROR_ARGUMENT, "memory", "not at a multiple of 4 bytes");
    struct {
        dbcache_memory known;
        uint64_t more;
    } newer = {.known = memory, .more = 0};
    newer.known.struct_size = sizeof newer;
    newer.known.data = halves;
    OK(dbcache_tensor_import(engine, &newer.known, DBCACHE_DTYPE_F16, shape, 2, &tensor));
    dbcache_tensor_free(tensor);
    tensor = NULL;
    newer.more = 1;
    FAILS(dbcache_tensor_import(engine, &newer.known, DBCACHE_DTYPE_F16, shape, 2, &tensor), DBCACHE_ERROR_ARGUMENT, "memory", "use a newer library");
    memory.struct_size = SIZE_MAX;
    FAILS(dbcache_tensor_import(engine, &memory, DBCACHE_DTYPE_F16, shape, 2, &tensor), DBCACHE_ERROR_ARGUMENT, "memory", "the size of the struct");
    memory.struct_size = 8;
    FAILS(dbcache_tensor_import(engine, &memory, DBCACHE_DTYPE_F16, shape, 2, &tensor), DBCACHE_ERROR_ARGUMENT, "memory", "the size of the struct");
    CHECK(tensor == NULL);
}

static int32_t no_progress(const dbcache_progress *progress, void *user) {
    (void)progress;
    (void)user;
    return 0;
}

static void test_requests(const dbcache_engine *engine) {
    dbcache_request *request = (dbcache_request *)&request;
    void *untouched = request;
    NULLS(dbcache_request_new(NULL, NULL, &request), "engine");
    NULLS(dbcache_request_new(engine, NULL, NULL), "out");
    dbcache_options *options = OPTIONS("threads", "2");
    FAILS(dbcache_request_new(engine, options, &request), DBCACHE_ERROR_USAGE, "threads", "loaded with `1`");
    dbcache_options_free(options);
    options = OPTIONS("max-warmup-steps", "2");
    FAILS(dbcache_request_new(engine, options, &request), DBCACHE_ERROR_USAGE, "cache", "max_warmup_steps");
    dbcache_options_free(options);
    CHECK(request == untouched);

    options = OPTIONS("steps", "2", "threads", "1");
    request = tiny_request(engine, options, 0);
    NULLS(dbcache_request_set_prompt(NULL, "lemon"), "request");
    NULLS(dbcache_request_set_prompt(request, NULL), "prompt");
    NULLS(dbcache_request_set_negative_prompt(NULL, "lemon"), "request");
    NULLS(dbcache_request_set_negative_prompt(request, NULL), "prompt");
    NULLS(dbcache_request_set_tensor(NULL, "latents", NULL), "request");
    NULLS(dbcache_request_set_tensor(request, NULL, NULL), "name");
    NULLS(dbcache_request_set_tensor(request, "latents", NULL), "tensor");
    NULLS(dbcache_request_on_progress(NULL, no_progress, NULL), "request");
    NULLS(dbcache_request_on_step(NULL, NULL, NULL), "request");
    NULLS(dbcache_request_on_preview(NULL, 1, NULL, NULL), "request");
    NULLS(dbcache_request_on_log(NULL, DBCACHE_LOG_WARN, NULL, NULL), "request");
    FAILS(dbcache_request_on_preview(request, 0, NULL, NULL), DBCACHE_ERROR_ARGUMENT, "every", "is 0");
    FAILS(dbcache_request_on_log(request, 6, NULL, NULL), DBCACHE_ERROR_ARGUMENT, "most", "is 6");
    dbcache_result *result = (dbcache_result *)&result;
    void *no_result = result;
    int32_t state = 77;
    NULLS(dbcache_request_run(NULL, &result), "request");
    NULLS(dbcache_request_run(request, NULL), "out");
    NULLS(dbcache_request_start(NULL), "request");
    NULLS(dbcache_request_poll(NULL, &state), "request");
    NULLS(dbcache_request_poll(request, NULL), "state");
    NULLS(dbcache_request_wait(NULL, &result), "request");
    NULLS(dbcache_request_wait(request, NULL), "out");
    NULLS(dbcache_request_cancel(NULL), "request");
    FAILS(dbcache_request_wait(request, &result), DBCACHE_ERROR_STATE, NULL, "was not started");
    OK(dbcache_request_poll(request, &state));
    CHECK(state == DBCACHE_STATE_NEW && result == no_result);

    OK(dbcache_request_run(request, &result));
    OK(dbcache_request_poll(request, &state));
    CHECK(state == DBCACHE_STATE_TAKEN);
    dbcache_result *second = NULL;
    FAILS(dbcache_request_run(request, &second), DBCACHE_ERROR_STATE, NULL, "runs once");
    FAILS(dbcache_request_start(request), DBCACHE_ERROR_STATE, NULL, "runs once");
    dbcache_denoiser *late = NULL;
    FAILS(dbcache_denoiser_new(request, DBCACHE_GUIDANCE_LIBRARY, &late), DBCACHE_ERROR_STATE, NULL, "make another one");
    FAILS(dbcache_request_wait(request, &second), DBCACHE_ERROR_STATE, NULL, "was taken already");
    FAILS(dbcache_request_set_prompt(request, "lemon"), DBCACHE_ERROR_STATE, NULL, "make another one");
    FAILS(dbcache_request_on_progress(request, NULL, NULL), DBCACHE_ERROR_STATE, NULL, "make another one");
    CHECK(second == NULL);
    dbcache_request_free(request);
    dbcache_options_free(options);

    const dbcache_tensor *latents = NULL;
    size_t count = 77;
    dbcache_picture picture = {0};
    NULLS(dbcache_result_latents(NULL, &latents), "result");
    NULLS(dbcache_result_latents(result, NULL), "out");
    NULLS(dbcache_result_pictures(NULL, &count), "result");
    NULLS(dbcache_result_pictures(result, NULL), "count");
    NULLS(dbcache_result_frame(NULL, 0, 0, &picture), "result");
    NULLS(dbcache_result_frame(result, 0, 0, NULL), "picture");
    FAILS(dbcache_result_frame(result, 0, 0, &picture), DBCACHE_ERROR_ARGUMENT, "picture", "the size of the struct");
    NULLS(dbcache_result_write_video(NULL, 0, "a.gif"), "result");
    NULLS(dbcache_result_write_video(result, 0, NULL), "path");
    FAILS(dbcache_result_write_video(result, 0, "a.gif"), DBCACHE_ERROR_STATE, NULL, "holds no videos");
    NULLS(dbcache_result_picture(NULL, 0, &picture), "result");
    NULLS(dbcache_result_picture(result, 0, NULL), "picture");
    FAILS(dbcache_result_picture(result, 0, &picture), DBCACHE_ERROR_ARGUMENT, "picture", "the size of the struct");
    picture.struct_size = sizeof picture;
    FAILS(dbcache_result_picture(result, 0, &picture), DBCACHE_ERROR_ARGUMENT, "index", "holds 0 pictures");
    CHECK(picture.rgb == NULL);
    NULLS(dbcache_result_write_png(NULL, 0, "a.png"), "result");
    NULLS(dbcache_result_write_png(result, 0, NULL), "path");
    FAILS(dbcache_result_write_png(result, 0, "a.png"), DBCACHE_ERROR_ARGUMENT, "index", "holds 0 pictures");
    NULLS(dbcache_result_trace(NULL, NULL, 0, &count), "result");
    NULLS(dbcache_result_statistics(NULL, NULL, 0, &count), "result");
    NULLS(dbcache_result_summary(NULL, NULL, 0, &count), "result");
    NULLS(dbcache_result_trace(result, NULL, 0, NULL), "length");
    NULLS(dbcache_result_statistics(result, NULL, 0, NULL), "length");
    NULLS(dbcache_result_summary(result, NULL, 0, NULL), "length");
    CHECK(count == 77);
    OK(dbcache_result_pictures(result, &count));
    CHECK(count == 0);
    dbcache_result_free(result);
}

/* Each error of the library that a request can end with has its code and field. */
static void test_failing_requests(const dbcache_engine *engine) {
    static const struct {
        const char *name, *value;
        int32_t code;
        const char *field, *words;
    } cases[] = {
        {"steps", "0", DBCACHE_ERROR_USAGE, "steps", "expected 1 to"},
        {"size", "33x33", DBCACHE_ERROR_INPUT, "size", "multiples of"},
        {"batch", "2", DBCACHE_ERROR_USAGE, "batch", "holds 1"},
        {"cache", "f8b8", DBCACHE_ERROR_USAGE, "cache", "more than the model's 12 blocks"},
        {"cache-dtype", "f16", DBCACHE_ERROR_USAGE, "cache-dtype", "keeps nothing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dbcache_options *options = OPTIONS(cases[i].name, cases[i].value);
        dbcache_request *request = tiny_request(engine, options, 0);
        dbcache_result *result = NULL;
        FAILS(dbcache_request_run(request, &result), cases[i].code, cases[i].field, cases[i].words);
        CHECK(result == NULL);
        dbcache_request_free(request);
        dbcache_options_free(options);
    }
    dbcache_options *small = OPTIONS("cache", "f1b0", "cache-memory", "1K");
    dbcache_request *request = tiny_request(engine, small, 0);
    dbcache_result *result = NULL;
    FAILS(dbcache_request_run(request, &result), DBCACHE_ERROR_USAGE, "cache-memory", "allows");
    dbcache_request_free(request);
    dbcache_options_free(small);
    OK(dbcache_request_new(engine, NULL, &request));
    OK(dbcache_request_set_prompt(request, "lemon"));
    FAILS(dbcache_request_run(request, &result), DBCACHE_ERROR_USAGE, "prompt", "no text graphs");
    dbcache_request_free(request);
    const int64_t shape[1] = {3};
    request = tiny_request(engine, NULL, 0);
    set_tensor(request, "no_such", shape, 1, 0);
    FAILS(dbcache_request_run(request, &result), DBCACHE_ERROR_INPUT, "no_such", "has no input tensor");
    dbcache_request_free(request);
}

/* A session knows which call comes next. */
static void test_turns(const dbcache_engine *engine) {
    dbcache_options *options = OPTIONS("steps", "1");
    dbcache_request *request = tiny_request(engine, options, 1);
    dbcache_denoiser *denoiser = NULL;
    OK(dbcache_denoiser_new(request, DBCACHE_GUIDANCE_HOST, &denoiser));
    float numbers[1024], velocity[1024];
    OK(dbcache_denoiser_latents(denoiser, numbers, 1024));
    static const struct {
        int32_t branch;
        float sigma;
        int32_t code;
        const char *field, *words;
    } calls[] = {
        {DBCACHE_BRANCH_UNCOND, 1, DBCACHE_ERROR_STATE, "branch", "expects cond now"},
        {DBCACHE_BRANCH_BOTH, 1, DBCACHE_ERROR_STATE, "branch", "the branch is both"},
        {DBCACHE_BRANCH_COND, 1, DBCACHE_OK, NULL, ""},
        {DBCACHE_BRANCH_COND, 1, DBCACHE_ERROR_STATE, "branch", "expects uncond now"},
        {DBCACHE_BRANCH_UNCOND, 0.5f, DBCACHE_ERROR_STATE, "sigma", "the other branch of this step had 1"},
        {DBCACHE_BRANCH_UNCOND, INFINITY, DBCACHE_ERROR_NUMERIC, "sigma", "must be finite"},
        {DBCACHE_BRANCH_UNCOND, 1, DBCACHE_OK, NULL, ""},
        {DBCACHE_BRANCH_COND, 1, DBCACHE_ERROR_STATE, NULL, "all 1 steps"},
    };
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        dbcache_error *error = dbcache_denoiser_velocity(denoiser, calls[i].branch, calls[i].sigma, numbers, velocity, 1024);
        if (calls[i].code == DBCACHE_OK) {
            OK(error);
        } else {
            FAILS(error, calls[i].code, calls[i].field, calls[i].words);
        }
    }
    dbcache_denoiser_free(denoiser);
    dbcache_request_free(request);
    dbcache_options_free(options);
}

/* Prompts and paths are named as the calls that give them name them. */
static void test_fields(const char *emoji, const char *folder) {
    dbcache_engine *engine = NULL;
    dbcache_options *options = OPTIONS("steps", "1", "guidance", "2");
    OK(dbcache_engine_load(emoji, NULL, &engine));
    for (int negative = 0; negative < 2; negative++) {
        dbcache_request *request = NULL;
        dbcache_result *result = NULL;
        OK(dbcache_request_new(engine, options, &request));
        OK(dbcache_request_set_prompt(request, negative ? "lemon" : "no such word"));
        OK(dbcache_request_set_negative_prompt(request, negative ? "no such word" : "lemon"));
        const char *const field = negative ? "negative-prompt" : "prompt";
        FAILS(dbcache_request_run(request, &result), DBCACHE_ERROR_INPUT, field, "");
        dbcache_request_free(request);
    }
    dbcache_options_free(options);
    options = OPTIONS("steps", "1");
    dbcache_request *request = NULL;
    dbcache_result *result = NULL;
    OK(dbcache_request_new(engine, options, &request));
    OK(dbcache_request_set_prompt(request, "lemon"));
    OK(dbcache_request_run(request, &result));
    FAILS(dbcache_result_write_png(result, 0, "a.gif"), DBCACHE_ERROR_USAGE, "path", "argument `path` ends in .gif");
    char path[4096];
    snprintf(path, sizeof path, "%s/none/a.png", folder);
    FAILS(dbcache_result_write_png(result, 0, path), DBCACHE_ERROR_IO, path, "none");
    dbcache_result_free(result);
    dbcache_request_free(request);
    dbcache_options_free(options);
    dbcache_engine_free(engine);
}

/* All engines of a process share its threads. */
static void test_threads(const char *directory) {
    static const char *const cases[][2] = {{"threads", "3"}, {"spin", "true"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dbcache_options *options = OPTIONS(cases[i][0], cases[i][1]);
        dbcache_engine *engine = NULL;
        FAILS(dbcache_engine_load(directory, options, &engine), DBCACHE_ERROR_USAGE, cases[i][0], "already computes with");
        dbcache_options_free(options);
    }
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

int main(int argc, char **argv) {
    CHECK(argc == 6);
    test_versions();
    test_nothing();
    test_options();
    test_tensors();
    /* Plans need no ONNX Runtime. */
    test_plans(argv[2]);
    test_runtime(argv[1]);
    dbcache_engine *engine = test_engines(argv[2]);
    test_imports(engine);
    test_requests(engine);
    test_failing_requests(engine);
    test_denoisers(engine);
    test_turns(engine);
    test_threads(argv[2]);
    test_fields(argv[3], argv[5]);
    dbcache_engine_free(engine);
    puts("errors: ok");
    return 0;
}
