/* Every way a call can fail, and that outputs are written on success only, but for the length of a text.
 * errors ONNXRUNTIME TINY EMOJI VIDEO FOLDER */
#include "check.h"

#include <dirent.h>
#include <sys/resource.h>
#include <sys/stat.h>

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

static void test_options(const char *directory) {
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
    char path[4096];
    snprintf(path, sizeof path, "%s/README.md", directory);
    FAILS(dbcache_options_set(options, "replay", path), DBCACHE_ERROR_INPUT, path, "does not parse as JSON");
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
    FAILS(dbcache_tensor_new(DBCACHE_DTYPE_F32, endless, 1, numbers, TOO_MANY * 4, &tensor), DBCACHE_ERROR_RESOURCES,
          "bytes", "more than there is memory");
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
    dbcache_options *useless = OPTIONS("weights", "/");
    FAILS(dbcache_inspect(directory, useless, NULL, 0, &length), DBCACHE_ERROR_USAGE, "weights", "has no effect");
    dbcache_options_free(useless);
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
    FAILS(dbcache_engine_load(directory, options, &engine), DBCACHE_ERROR_USAGE, "threads", "`threads` is 100000");
    dbcache_options_free(options);
    options = OPTIONS("ort-library", "other.so");
    FAILS(dbcache_engine_load(directory, options, &engine), DBCACHE_ERROR_LIBRARY, NULL, "has already loaded");
    dbcache_options_free(options);
    options = OPTIONS("provider", "openvino:library=/no/such.so", "build-cache", "unused");
    FAILS(dbcache_engine_load(directory, options, &engine), DBCACHE_ERROR_PROVIDER, NULL,
          "plugin is not at /no/such.so");
    FAILS(dbcache_plan(directory, options, 0, NULL, 0, &length), DBCACHE_ERROR_PROVIDER, NULL,
          "plugin is not at /no/such.so");
    dbcache_options_free(options);
    CHECK(engine == untouched);
    options = OPTIONS("provider", "openvino:library=/no/such.so,cpu", "build-cache", "unused");
    OK(dbcache_plan(directory, options, 12, NULL, 0, &length));
    dbcache_options_free(options);

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
    CHECK(strstr(plan, "{\"version\":1") == plan && strstr(plan, "\"sessions\":") != NULL && strstr(plan, "\"build_cache\":null") != NULL);
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
    useless = OPTIONS("provider", "openvino", "ort-library", "/no/such.so", "build-cache", "unused");
    FAILS(dbcache_plan(directory, useless, 12, NULL, 0, &length), DBCACHE_ERROR_LIBRARY, "/no/such.so", "not there");
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
    const dbcache_tensor *own = NULL;
    OK(dbcache_result_latents(result, &own));
    FAILS(dbcache_request_set_prompt(request, "lemon"), DBCACHE_ERROR_STATE, NULL, "make another one");
    FAILS(dbcache_request_set_negative_prompt(request, "lemon"), DBCACHE_ERROR_STATE, NULL, "make another one");
    FAILS(dbcache_request_set_tensor(request, "latents", own), DBCACHE_ERROR_STATE, NULL, "make another one");
    FAILS(dbcache_request_on_progress(request, NULL, NULL), DBCACHE_ERROR_STATE, NULL, "make another one");
    FAILS(dbcache_request_on_step(request, NULL, NULL), DBCACHE_ERROR_STATE, NULL, "make another one");
    FAILS(dbcache_request_on_preview(request, 1, NULL, NULL), DBCACHE_ERROR_STATE, NULL, "make another one");
    FAILS(dbcache_request_on_log(request, DBCACHE_LOG_WARN, NULL, NULL), DBCACHE_ERROR_STATE, NULL, "make another one");
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

static dbcache_request *tiny_with(const dbcache_engine *engine, const char *name, const char *value) {
    dbcache_options *options = OPTIONS("cache", "f1b0", "steps", "2", name, value);
    dbcache_request *request = tiny_request(engine, options, 0);
    dbcache_options_free(options);
    return request;
}

static dbcache_request *tiny_with_prompt(const dbcache_engine *engine) {
    dbcache_request *request = NULL;
    OK(dbcache_request_new(engine, NULL, &request));
    OK(dbcache_request_set_prompt(request, "lemon"));
    return request;
}

static dbcache_request *tiny_with_tensor(const dbcache_engine *engine, const char *name, float number) {
    const int64_t shape[1] = {1};
    dbcache_request *request = tiny_request(engine, NULL, 0);
    dbcache_tensor *tensor = NULL;
    OK(dbcache_tensor_new(DBCACHE_DTYPE_F32, shape, 1, &number, sizeof number, &tensor));
    OK(dbcache_request_set_tensor(request, name, tensor));
    dbcache_tensor_free(tensor);
    return request;
}

/* Each error of the library that a request can end with has its code and field. */
static void test_failing_requests(const dbcache_engine *engine) {
    NEVER_BEGINS(tiny_with(engine, "steps", "0"), DBCACHE_ERROR_USAGE, "steps", "expected 1 to");
    NEVER_BEGINS(tiny_with(engine, "batch", "2"), DBCACHE_ERROR_USAGE, "batch", "holds 1");
    NEVER_BEGINS(tiny_with(engine, "cache", "f8b8"), DBCACHE_ERROR_USAGE, "cache", "more than the model's 12 blocks");
    NEVER_BEGINS(tiny_with(engine, "cache-memory", "1K"), DBCACHE_ERROR_USAGE, "cache-memory", "allows");
    NEVER_BEGINS(tiny_with(engine, "size", "33x33"), DBCACHE_ERROR_INPUT, "size", "multiples of");
    NEVER_BEGINS(tiny_with_prompt(engine), DBCACHE_ERROR_USAGE, "prompt", "no text graphs");
    NEVER_BEGINS(tiny_with_tensor(engine, "no_such", 0), DBCACHE_ERROR_INPUT, "no_such", "has no input tensor");
    NEVER_BEGINS(tiny_with_tensor(engine, "latents", NAN), DBCACHE_ERROR_NUMERIC, "latents", "expected finite numbers");
    dbcache_options *useless = OPTIONS("cache-dtype", "f16");
    NEVER_BEGINS(tiny_request(engine, useless, 0), DBCACHE_ERROR_USAGE, "cache-dtype", "keeps nothing");
    dbcache_options_free(useless);
}

/* Nothing can be opened any more, as in a process with too many files. */
static void test_without_files(const char *directory) {
    struct rlimit limit, none;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    none = limit;
    none.rlim_cur = 0;
    size_t length = 77;
    dbcache_engine *engine = NULL;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    FAILS(dbcache_inspect(directory, NULL, NULL, 0, &length), DBCACHE_ERROR_IO, NULL, "manifest.json");
    FAILS(dbcache_plan(directory, NULL, 12, NULL, 0, &length), DBCACHE_ERROR_IO, NULL, "manifest.json");
    FAILS(dbcache_engine_load(directory, NULL, &engine), DBCACHE_ERROR_IO, NULL, "manifest.json");
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0 && length == 77 && engine == NULL);
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

static void copy_file(const char *from, const char *to) {
    FILE *source = fopen(from, "rb"), *target = fopen(to, "wb");
    CHECK(source != NULL && target != NULL);
    static char bytes[1 << 16];
    for (size_t n; (n = fread(bytes, 1, sizeof bytes, source)) > 0;) CHECK(fwrite(bytes, 1, n, target) == n);
    CHECK(fclose(source) == 0 && fclose(target) == 0);
}

static void copy_engine(const char *from, const char *to) {
    DIR *files = opendir(from);
    CHECK(files != NULL && mkdir(to, 0700) == 0);
    for (const struct dirent *file; (file = readdir(files)) != NULL;) {
        char source[4500], target[4500];
        snprintf(source, sizeof source, "%s/%s", from, file->d_name);
        snprintf(target, sizeof target, "%s/%s", to, file->d_name);
        if (file->d_name[0] != '.') copy_file(source, target);
    }
    CHECK(closedir(files) == 0);
}

/* Puts other words into a short file. */
static void rewrite(const char *path, const char *words, const char *others) {
    static char text[1 << 16];
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    const size_t length = fread(text, 1, sizeof text - 1, file);
    CHECK(length < sizeof text - 1 && fclose(file) == 0);
    text[length] = '\0';
    char *const place = strstr(text, words);
    CHECK(place != NULL);
    file = fopen(path, "wb");
    CHECK(file != NULL && fprintf(file, "%.*s%s%s", (int)(place - text), text, others, place + strlen(words)) > 0);
    CHECK(fclose(file) == 0);
}

static int32_t removes(const dbcache_log *log, void *user) {
    (void)log;
    (void)!remove(user);
    return 0;
}

/* Weights that go away after they were checked: while an engine loads, and before a request loads more of it. Then a
 * model whose scheduler does not work at its own size, which only a request finds out. */
static void test_broken_engines(const char *directory, const char *folder) {
    char copy[4096], weights[4096 + 32], manifest[4096 + 32];
    snprintf(copy, sizeof copy, "%s/copy", folder);
    snprintf(weights, sizeof weights, "%s/transformer.safetensors", copy);
    snprintf(manifest, sizeof manifest, "%s/manifest.json", copy);
    copy_engine(directory, copy);
    dbcache_options *options = NULL;
    dbcache_engine *engine = NULL, *broken = NULL;
    OK(dbcache_options_new(&options));
    OK(dbcache_engine_load(copy, options, &engine));
    OK(dbcache_options_on_log(options, DBCACHE_LOG_TRACE, removes, weights));
    FAILS(dbcache_engine_load(copy, options, &broken), DBCACHE_ERROR_RUNTIME, NULL, "does not exist");
    NEVER_BEGINS(tiny_with(engine, "batch", "1"), DBCACHE_ERROR_RUNTIME, NULL, "does not exist");
    CHECK(broken == NULL);
    dbcache_options_free(options);
    dbcache_engine_free(engine);

    char original[4096];
    snprintf(original, sizeof original, "%s/transformer.safetensors", directory);
    copy_file(original, weights);
    rewrite(manifest, "{\"kind\": \"none\"}", "{\"kind\": \"dynamic\", \"base_tokens\": 1, \"max_tokens\": 64, "
                                            "\"base_shift\": 1, \"max_shift\": -0.2, \"time_shift\": \"linear\"}");
    OK(dbcache_engine_load(copy, NULL, &engine));
    NEVER_BEGINS(tiny_request(engine, NULL, 0), DBCACHE_ERROR_ENGINE_DIRECTORY, NULL, "do not lie between 0 and 1");
    dbcache_engine_free(engine);
}

int main(int argc, char **argv) {
    CHECK(argc == 6);
    test_versions();
    test_nothing();
    test_options(argv[2]);
    test_tensors();
    /* Plans need no ONNX Runtime. */
    test_plans(argv[2]);
    test_runtime(argv[1]);
    dbcache_engine *engine = test_engines(argv[2]);
    test_imports(engine);
    test_requests(engine);
    test_failing_requests(engine);
    test_threads(argv[2]);
    test_fields(argv[3], argv[5]);
    test_without_files(argv[2]);
    test_broken_engines(argv[2], argv[5]);
    dbcache_engine_free(engine);
    puts("errors: ok");
    return 0;
}
