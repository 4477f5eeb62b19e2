/* Loads an engine and says what it is: consumer ENGINE */
#include <dbcache_trt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    if (dbcache_abi_version() != DBCACHE_ABI_VERSION || strcmp(dbcache_version(), DBCACHE_VERSION) != 0) return 3;
    dbcache_engine *engine = NULL;
    dbcache_error *error = dbcache_engine_load(argv[1], NULL, &engine);
    size_t length = 0;
    if (error == NULL) error = dbcache_engine_info(engine, NULL, 0, &length);
    char *info = malloc(length + 1);
    if (error == NULL && info != NULL) error = dbcache_engine_info(engine, info, length, &length);
    if (error == NULL && info != NULL) {
        puts(info);
    } else if (error != NULL) {
        fprintf(stderr, "%s\n", dbcache_error_message(error));
    }
    int code = dbcache_error_code(error);
    free(info);
    dbcache_error_free(error);
    dbcache_engine_free(engine);
    return code;
}
