/* Preloaded, it makes a disk odd: a call under the folder ODD_PLACE fails with the errno that its variable names.

   ODD_FSYNC_FOLDER, ODD_FSYNC_FILE: fsync; ODD_FLOCK: flock; ODD_WRITE: write; ODD_OPEN: open for writing, and mkdir;
   ODD_RENAME: rename. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define REAL(name) dlsym(RTLD_NEXT, name)

static int is_under(const char *path) {
    const char *place = getenv("ODD_PLACE");
    char full[PATH_MAX], here[PATH_MAX];
    if (!place || !path) return 0;
    if (path[0] != '/' && getcwd(here, sizeof here) && snprintf(full, sizeof full, "%s/%s", here, path) > 0) path = full;
    return strncmp(path, place, strlen(place)) == 0;
}

static int fails(const char *variable, int is_there) {
    const char *number = getenv(variable);
    if (!number || !is_there) return 0;
    errno = atoi(number);
    return 1;
}

static int is_open_under(int descriptor) {
    char link[64], path[PATH_MAX + 1];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, PATH_MAX);
    if (size < 0) return 0;
    path[size] = 0;
    return is_under(path);
}

static int is_folder(int descriptor) {
    struct stat found;
    return fstat(descriptor, &found) == 0 && S_ISDIR(found.st_mode);
}

int fsync(int descriptor) {
    if (fails(is_folder(descriptor) ? "ODD_FSYNC_FOLDER" : "ODD_FSYNC_FILE", is_open_under(descriptor))) return -1;
    return ((int (*)(int))REAL("fsync"))(descriptor);
}

int flock(int descriptor, int operation) {
    if (fails("ODD_FLOCK", is_open_under(descriptor))) return -1;
    return ((int (*)(int, int))REAL("flock"))(descriptor, operation);
}

ssize_t write(int descriptor, const void *bytes, size_t size) {
    if (fails("ODD_WRITE", is_open_under(descriptor))) return -1;
    return ((ssize_t(*)(int, const void *, size_t))REAL("write"))(descriptor, bytes, size);
}

int open64(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    int mode = va_arg(arguments, int);
    va_end(arguments);
    if ((flags & (O_WRONLY | O_RDWR)) && fails("ODD_OPEN", is_under(path))) return -1;
    return ((int (*)(const char *, int, ...))REAL("open64"))(path, flags, mode);
}

int mkdir(const char *path, mode_t mode) {
    if (fails("ODD_OPEN", is_under(path))) return -1;
    return ((int (*)(const char *, mode_t))REAL("mkdir"))(path, mode);
}

int rename(const char *from, const char *to) {
    if (fails("ODD_RENAME", is_under(from))) return -1;
    return ((int (*)(const char *, const char *))REAL("rename"))(from, to);
}
