// Loads an engine and says what it is: consumer ENGINE
#include <dbcache_trt.hpp>

#include <iostream>

int main(int argc, char **argv) try {
    if (argc != 2) return 2;
    std::cout << dbcache::engine(argv[1]).info() << '\n';
} catch (const dbcache::error &error) {
    std::cerr << error.what() << '\n';
    return error.code();
}
