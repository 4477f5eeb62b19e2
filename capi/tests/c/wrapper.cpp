// The C++ wrapper: objects, exceptions, and exceptions out of callbacks.
// wrapper ONNXRUNTIME TINY EMOJI VIDEO FOLDER
#include <dbcache_trt.hpp>

#include <cmath>
#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                    \
    do {                                                                    \
        if (!(condition)) {                                                 \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                   \
        }                                                                   \
    } while (0)

template <typename Error, typename Call>
Error thrown(Call call) {
    try {
        call();
    } catch (const Error &error) {
        return error;
    }
    CHECK(!"nothing was thrown");
    std::abort();
}

static dbcache::request tiny(const dbcache::engine &engine, const dbcache::options &options) {
    dbcache::request request(engine, options);
    std::vector<float> text(12 * 32, 0.25f), pooled(24, -0.5f);
    request.set("prompt_embeds", dbcache::tensor({1, 12, 32}, text.data(), text.size()));
    request.set("pooled_projections", dbcache::tensor({1, 24}, pooled.data(), pooled.size()));
    return request;
}

// A text that is longer each time it is asked for, three times, is read whole.
static void test_growing_text(const char *directory) {
    int calls = 0;
    const std::string plan = dbcache::detail::text([&](char *buffer, size_t capacity, size_t *length) {
        static const char *const caches[] = {"none", "f1b1", "f1b1t2", "f1b1t2mc3"};
        dbcache::options options;
        options.set("cache", caches[calls < 3 ? calls : 3]);
        calls++;
        return dbcache_plan(directory, options.get(), 12, buffer, capacity, length);
    });
    CHECK(calls == 5 && plan.find("mc3") != std::string::npos && plan.back() == '}');
}

// What a callback throws comes out of the call that called it, and out of no other one.
static void test_exceptions_of_sessions(const dbcache::engine &engine, const dbcache::options &options,
                                        const std::vector<float> &expected) {
    dbcache::request request = tiny(engine, options);
    int calls = 0;
    request.on_step([&](const dbcache_step &) -> bool {
        if (calls++ == 0) throw std::logic_error("in a session");
        return true;
    });
    dbcache::denoiser first(request), second(request);
    const std::vector<float> latents = first.latents();
    const auto step = [&](dbcache::denoiser &session) { session.velocity(session.branches()[0], 1.0f, latents); };
    CHECK(std::string(thrown<std::logic_error>([&] { step(first); }).what()) == "in a session");
    CHECK(thrown<dbcache::error>([&] { step(first); }).code() == DBCACHE_ERROR_CANCELLED);
    step(second);
    CHECK(request.run().latents() == expected && calls == 1 + 1 + 4);
    // A session needs its request no longer.
    std::unique_ptr<dbcache::denoiser> last;
    {
        dbcache::request gone = tiny(engine, options);
        gone.on_step([](const dbcache_step &) -> bool { throw std::logic_error("still there"); });
        last = std::make_unique<dbcache::denoiser>(gone);
    }
    CHECK(std::string(thrown<std::logic_error>([&] { step(*last); }).what()) == "still there");
    // A callback that throws too late to cancel anything takes no result away.
    dbcache::options never_skips;
    never_skips.set("steps", "4").set("cache", "f1b0w4");
    dbcache::request late = tiny(engine, never_skips);
    int warnings = 0;
    late.on_log(DBCACHE_LOG_WARN, [&](const dbcache_log &) -> bool {
        warnings++;
        throw std::logic_error("too late");
    });
    CHECK(late.run().latents().size() == expected.size() && warnings > 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 6);
    dbcache::load_runtime(argv[1]);
    dbcache::options options;
    dbcache::error error = thrown<dbcache::error>([&] { options.set("step", "4"); });
    CHECK(error.code() == DBCACHE_ERROR_USAGE && error.field() == "step");
    CHECK(std::string(error.what()).find("`steps`") != std::string::npos);
    options.set("steps", "4").set("cache", "f1b0w2r0.9").set("seed", "3");
    CHECK(dbcache::inspect(argv[2]).find("\"blocks\":12") != std::string::npos);
    CHECK(dbcache::plan(argv[2], options, 12).find("\"stages\"") != std::string::npos);
    test_growing_text(argv[2]);
    const std::string cut("lemon\0 melon", 12);
    CHECK(std::string(thrown<std::invalid_argument>([&] { options.set("cache", cut); }).what()).find("zero") != std::string::npos);
    thrown<std::invalid_argument>([&] { dbcache::inspect(cut); });
    int heard = 0;
    options.on_log(DBCACHE_LOG_INFO, [&](const dbcache_log &) { return ++heard > 0; });
    dbcache::options moved_options = std::move(options);
    dbcache::engine engine(argv[2], moved_options);
    CHECK(heard > 0);
    moved_options.on_log(DBCACHE_LOG_INFO, [](const dbcache_log &) -> bool { throw std::logic_error("while loading"); });
    CHECK(std::string(thrown<std::logic_error>([&] { dbcache::engine(argv[2], moved_options); }).what()) == "while loading");
    moved_options.on_log(DBCACHE_LOG_INFO, [](const dbcache_log &) { return false; });
    CHECK(thrown<dbcache::error>([&] { dbcache::engine(argv[2], moved_options); }).code() == DBCACHE_ERROR_CANCELLED);
    options = std::move(moved_options);
    CHECK(engine.info().find("onnxruntime") != std::string::npos);

    int steps = 0, phases = 0, logs = 0;
    dbcache::request request = tiny(engine, options);
    request.on_step([&](const dbcache_step &) { return ++steps < 100; });
    request.on_progress([&](const dbcache_progress &) { return ++phases < 100; });
    request.on_log(DBCACHE_LOG_TRACE, [&](const dbcache_log &) { return ++logs < 1000; });
    dbcache::request moved = std::move(request);
    dbcache::result result = moved.run();
    CHECK(steps == 4 && phases == 1 + 5 + 1);
    CHECK(result.latents().size() == 64 * 16 && result.pictures() == 0);
    CHECK(result.trace().find("\"records\"") != std::string::npos);
    CHECK(result.statistics().find("\"version\":1") == 1 && result.summary().find("cache") == 0);
    CHECK(thrown<dbcache::error>([&] { result.picture(0); }).field() == "index");
    CHECK(thrown<dbcache::error>([&] { result.write_video(0, "a.gif"); }).code() == DBCACHE_ERROR_STATE);

    dbcache::request started = tiny(engine, options);
    started.start();
    CHECK(started.wait().latents() == result.latents());
    CHECK(started.poll() == DBCACHE_STATE_TAKEN);

    dbcache::request thrower = tiny(engine, options);
    thrower.on_step([](const dbcache_step &) -> bool { throw std::logic_error("out of a callback"); });
    CHECK(std::string(thrown<std::logic_error>([&] { thrower.run(); }).what()) == "out of a callback");
    dbcache::request cancelled = tiny(engine, options);
    cancelled.cancel();
    CHECK(thrown<dbcache::error>([&] { cancelled.run(); }).code() == DBCACHE_ERROR_CANCELLED);

    dbcache::request inputs = tiny(engine, options);
    dbcache::denoiser denoiser(inputs);
    std::vector<float> latents = denoiser.latents(), sigmas = denoiser.sigmas();
    for (size_t step = 0; step < denoiser.steps(); step++) {
        std::vector<float> velocity = denoiser.velocity(denoiser.branches()[0], sigmas[step], latents);
        for (size_t i = 0; i < latents.size(); i++) latents[i] += (sigmas[step + 1] - sigmas[step]) * velocity[i];
    }
    std::vector<float> expected = result.latents(), own = denoiser.finish(latents).latents();
    for (size_t i = 0; i < own.size(); i++) CHECK(std::fabs(own[i] - expected[i]) < 1e-3f);

    test_exceptions_of_sessions(engine, options, expected);
    dbcache::engine emoji(argv[3]);
    dbcache::request lemon(emoji, dbcache::options().set("steps", "4"));
    int previews = 0;
    lemon.prompt("lemon").on_preview(2, [&](const dbcache_preview &preview) { return ++previews + preview.width > 0; });
    dbcache::result picture = lemon.run();
    CHECK(previews == 2 && picture.pictures() == 1 && picture.picture(0).width == 64 && picture.picture(0).frames == 1);
    picture.write_png(0, std::string(argv[5]) + "/wrapper.png");
    std::puts("wrapper: ok");
}
