/* Prints what the library plans: plan DIRECTORY [NAME VALUE] … */
#include "check.h"

int main(int argc, char **argv) {
    CHECK(argc >= 2 && argc % 2 == 0);
    dbcache_options *options = NULL;
    OK(dbcache_options_new(&options));
    for (int i = 2; i < argc; i += 2) OK(dbcache_options_set(options, argv[i], argv[i + 1]));
    size_t length = 0;
    OK(dbcache_plan(argv[1], options, 0, NULL, 0, &length));
    char *plan = malloc(length);
    CHECK(plan != NULL);
    OK(dbcache_plan(argv[1], options, 0, plan, length, &length));
    puts(plan);
    free(plan);
    dbcache_options_free(options);
    return 0;
}
