// The C++ wrapper in one page: load an engine, make a picture, see what the cache did. `generate.rs` and `generate.c` are
// the same program.
//
//     c++ -std=c++17 examples/generate.cpp $(pkg-config --cflags --libs dbcache_trt) -o generate
//     ./generate models/emoji lemon f8b16 lemon.png
#include <dbcache_trt.hpp>

#include <cstdio>
#include <fstream>

int main(int argc, char **argv) try {
    if (argc != 5 && argc != 6) {
        std::fprintf(stderr, "usage: generate ENGINE PROMPT CACHE OUT.png [TRACE.json]\n");
        return 2;
    }
    dbcache::options options;
    options.set("cache", argv[3]);
    dbcache::engine engine(argv[1], options);
    dbcache::request request(engine, options);
    request.prompt(argv[2]).on_step([](const dbcache_step &step) {
        const char *decision = step.decision == DBCACHE_DECISION_SKIP ? "Skip" : "Compute";
        std::printf("step %2zu %s because %s\n", step.step, decision, step.reason);
        return true;  // false would cancel
    });
    dbcache::result result = request.run();
    std::printf("%s\n", result.summary().c_str());
    if (result.pictures() > 0) result.write_png(0, argv[4]);
    if (argc == 6) std::ofstream(argv[5]) << result.trace() << '\n';
} catch (const dbcache::error &error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return error.code();
}
