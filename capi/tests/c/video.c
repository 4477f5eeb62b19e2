/* Results that are videos: how many, their frames, rate and seeds; previews; and the files they are written to.
 * video ONNXRUNTIME TINY EMOJI VIDEO FOLDER */
#include "check.h"

enum { BATCH = 2, FRAMES = 9, SIDE = 128, BYTES = SIDE * SIDE * 3 };

static int32_t on_preview(const dbcache_preview *preview, void *user) {
    int *calls = user;
    /* One frame of each video. */
    CHECK((int)preview->index == *calls % BATCH && preview->width == SIDE && preview->height == SIDE);
    CHECK(preview->bytes == BYTES);
    ++*calls;
    return 0;
}

static dbcache_picture frame_of(const dbcache_result *result, size_t index, size_t frame) {
    dbcache_picture picture = {.struct_size = sizeof picture};
    OK(dbcache_result_frame(result, index, frame, &picture));
    CHECK(picture.width == SIDE && picture.height == SIDE && picture.bytes == BYTES);
    CHECK(picture.frames == FRAMES && picture.fps == 12.5 && picture.seed == 40 + index);
    return picture;
}

static void write(const dbcache_result *result, size_t index, const char *folder, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    OK(dbcache_result_write_video(result, index, path));
}

static void test_result(const dbcache_result *result, const char *folder) {
    size_t count = 0;
    OK(dbcache_result_pictures(result, &count));
    CHECK(count == BATCH);
    for (size_t index = 0; index < BATCH; index++) {
        dbcache_picture first = {.struct_size = sizeof first};
        OK(dbcache_result_picture(result, index, &first));
        for (size_t frame = 0; frame < FRAMES; frame++) {
            dbcache_picture picture = frame_of(result, index, frame);
            CHECK(frame == 0 ? picture.rgb == first.rgb : memcmp(picture.rgb, first.rgb, BYTES) != 0);
        }
    }
    CHECK(memcmp(frame_of(result, 0, 3).rgb, frame_of(result, 1, 3).rgb, BYTES) != 0);
    dbcache_picture untouched = {.struct_size = sizeof untouched};
    FAILS(dbcache_result_frame(result, 1, FRAMES, &untouched), DBCACHE_ERROR_ARGUMENT, "frame", "has 9 frames");
    FAILS(dbcache_result_frame(result, BATCH, 0, &untouched), DBCACHE_ERROR_ARGUMENT, "index", "holds 2 pictures");
    CHECK(untouched.rgb == NULL && untouched.struct_size == sizeof untouched);

    FAILS(dbcache_result_write_png(result, 0, "a.png"), DBCACHE_ERROR_STATE, NULL, "dbcache_result_write_video");
    FAILS(dbcache_result_write_video(result, BATCH, "a.gif"), DBCACHE_ERROR_ARGUMENT, "index", "holds 2 pictures");
    FAILS(dbcache_result_write_video(result, 0, "a.avi"), DBCACHE_ERROR_USAGE, "path", ".gif");
    FAILS(dbcache_result_write_video(result, 0, "no/such/a.gif"), DBCACHE_ERROR_IO, NULL, "cannot write");
    write(result, 0, folder, "first.gif");
    write(result, 0, folder, "first_%04d.png");
    write(result, 1, folder, "second.png");
    write(result, 1, folder, "second");
}

int main(int argc, char **argv) {
    CHECK(argc == 6);
    OK(dbcache_runtime_load(argv[1]));
    dbcache_options *options =
        OPTIONS("steps", "2", "size", "128x128", "frames", "9", "fps", "12.5", "batch", "2", "seed", "40");
    dbcache_engine *engine = NULL;
    OK(dbcache_engine_load(argv[4], options, &engine));
    dbcache_request *request = video_request(engine, options, BATCH);
    int previews = 0;
    if (!is_small()) OK(dbcache_request_on_preview(request, 2, on_preview, &previews));
    dbcache_result *result = NULL;
    OK(dbcache_request_run(request, &result));
    CHECK(previews == (is_small() ? 0 : BATCH));
    dbcache_request_free(request);
    dbcache_options_free(options);
    dbcache_engine_free(engine);
    test_result(result, argv[5]);
    dbcache_result_free(result);
    puts("video: ok");
    return 0;
}
