/* What a bad disk does to the calls that write below a folder, for LD_PRELOAD.

   DISK_FOLDER: the folder. DISK_FAULT: a file whose text is the fault as long as there is one: an
   errno and a number of milliseconds that each of them takes while the fault lasts, such as "28 0" or
   "0 200". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Waits as long as the fault says; its errno, 0 where there is none. */
static int fault(void) {
  const char *file = getenv("DISK_FAULT");
  int number = 0, milliseconds = 0, fd = file ? NEXT(open)(file, O_RDONLY | O_CLOEXEC) : -1;
  if (fd < 0) return 0;
  char text[32] = {0};
  ssize_t size = read(fd, text, sizeof text - 1);
  close(fd);
  if (size <= 0 || sscanf(text, "%d %d", &number, &milliseconds) < 1) return 0;
  for (; milliseconds > 0 && NEXT(access)(file, F_OK) == 0; milliseconds -= 10)
    usleep(1000 * (milliseconds < 10 ? milliseconds : 10));
  return number;
}

static int below(const char *path) {
  const char *folder = getenv("DISK_FOLDER");
  return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int file_below(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return below(path);
}

/* Fails with the fault's errno where the condition holds and there is one, else makes the call. */
#define CALL(condition, call)                  \
  int saved = errno;                           \
  int number = (condition) ? fault() : 0;      \
  if (number) { errno = number; return -1; }   \
  errno = saved;                               \
  return call

#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))

#define OPEN(name)                                                   \
  int name(const char *path, int flags, ...) {                       \
    va_list list;                                                    \
    va_start(list, flags);                                           \
    mode_t mode = flags & O_CREAT ? va_arg(list, mode_t) : 0;        \
    va_end(list);                                                    \
    CALL(WRITES(flags) && below(path), NEXT(name)(path, flags, mode)); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                          \
  int name(int folder, const char *path, int flags, ...) {                    \
    va_list list;                                                             \
    va_start(list, flags);                                                    \
    mode_t mode = flags & O_CREAT ? va_arg(list, mode_t) : 0;                 \
    va_end(list);                                                             \
    CALL(WRITES(flags) && below(path), NEXT(name)(folder, path, flags, mode)); \
  }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
  CALL(file_below(fd), NEXT(write)(fd, data, size));
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  CALL(file_below(fd), NEXT(pwrite)(fd, data, size, at));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  CALL(file_below(fd), NEXT(pwrite64)(fd, data, size, at));
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  CALL(file_below(fd), NEXT(writev)(fd, parts, count));
}
int fsync(int fd) { CALL(file_below(fd), NEXT(fsync)(fd)); }
int fdatasync(int fd) { CALL(file_below(fd), NEXT(fdatasync)(fd)); }
int mkdir(const char *path, mode_t mode) { CALL(below(path), NEXT(mkdir)(path, mode)); }
int rename(const char *from, const char *to) { CALL(below(to), NEXT(rename)(from, to)); }
int link(const char *from, const char *to) { CALL(below(to), NEXT(link)(from, to)); }
