/* Preloaded, it moves every block that torch allocates by an odd number of cache lines: SHIFTED_LINES of 64 bytes.

   torch asks for its tensors by posix_memalign, at 64 bytes. A moved block is remembered in a table, for free. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define LINE 64
#define SLOTS (1 << 20)

static uintptr_t moved[SLOTS];
static size_t num_moved;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t shift(void) {
    const char *lines = getenv("SHIFTED_LINES");
    return lines ? (size_t)atoi(lines) * LINE : 0;
}

static size_t slot_of(uintptr_t place) {
    size_t slot = (place >> 6) * 0x9E3779B97F4A7C15ull % SLOTS;
    while (moved[slot] && moved[slot] != place && moved[slot] != 1) slot = (slot + 1) % SLOTS;
    return slot;
}

static size_t find(uintptr_t place) {
    size_t slot = (place >> 6) * 0x9E3779B97F4A7C15ull % SLOTS;
    while (moved[slot] && moved[slot] != place) slot = (slot + 1) % SLOTS;
    return slot;
}

int posix_memalign(void **block, size_t alignment, size_t size) {
    int (*real)(void **, size_t, size_t) = (int (*)(void **, size_t, size_t))dlsym(RTLD_NEXT, "posix_memalign");
    size_t by = alignment == LINE ? shift() : 0;
    int failed = real(block, alignment, size + by);
    if (failed || !by) return failed;
    *block = (char *)*block + by;
    pthread_mutex_lock(&lock);
    moved[slot_of((uintptr_t)*block)] = (uintptr_t)*block;
    num_moved++;
    pthread_mutex_unlock(&lock);
    return 0;
}

void free(void *block) {
    static void (*real)(void *);
    if (!real) real = (void (*)(void *))dlsym(RTLD_NEXT, "free");
    if (block && num_moved && ((uintptr_t)block & (LINE - 1)) == 0) {
        pthread_mutex_lock(&lock);
        size_t slot = find((uintptr_t)block);
        int is_moved = moved[slot] == (uintptr_t)block;
        if (is_moved) {
            moved[slot] = 1; /* was one: searches go past it */
            num_moved--;
        }
        pthread_mutex_unlock(&lock);
        if (is_moved) block = (char *)block - shift();
    }
    real(block);
}

size_t num_moved_blocks(void) { return num_moved; }
