// Serves the engine's C ABI over a pipe, so that a library of another architecture can be tested
// from here: driver LIBRARY, under an emulator.
//
// Every number is an int64 in the machine's order. At the start the driver writes the library's
// ABI version, the size of an operation, its instruction sets, and whether they multiply bfloat16.
// Then it reads requests, each a command and what the command names, and answers each.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <thread>

#include "engine.h"

namespace {

[[noreturn]] void fail(const char *what) {
  fprintf(stderr, "driver: %s\n", what);
  exit(1);
}

int64_t number() {
  int64_t n;
  if (fread(&n, sizeof n, 1, stdin) != 1) fail("a request ended");
  return n;
}

// Bytes that the next number counts, aligned as any array of the ABI.
class Bytes {
 public:
  Bytes() : Bytes(number()) {
    if (size > 0 && fread(data, static_cast<size_t>(size), 1, stdin) != 1) fail("a request ended");
  }
  explicit Bytes(int64_t count) : size(count) {
    if (posix_memalign(reinterpret_cast<void **>(&data), 64, static_cast<size_t>(size) + 64) != 0)
      fail("out of memory");
  }
  ~Bytes() { free(data); }
  Bytes(const Bytes &) = delete;
  Bytes &operator=(const Bytes &) = delete;

  const int64_t size;
  char *data = nullptr;

  float *floats() const { return size > 0 ? reinterpret_cast<float *>(data) : nullptr; }
};

void answer(int64_t n) { fwrite(&n, sizeof n, 1, stdout); }

void answer(const void *data, int64_t size) {
  answer(size);
  fwrite(data, 1, static_cast<size_t>(size), stdout);
}

template <class Function>
Function *symbol(void *library, const char *name, Function *) {
  void *found = dlsym(library, name);
  if (found == nullptr) fail(name);
  return reinterpret_cast<Function *>(found);
}
#define SYMBOL(name) const auto name = symbol(library, #name, &::name)

void serve(void *library) {
  SYMBOL(sdk_abi);
  SYMBOL(sdk_op_size);
  SYMBOL(sdk_isas);
  SYMBOL(sdk_dot);
  SYMBOL(sdk_create);
  SYMBOL(sdk_run);
  SYMBOL(sdk_arena);
  SYMBOL(sdk_engine_isa);
  SYMBOL(sdk_bytes);
  SYMBOL(sdk_seconds);
  SYMBOL(sdk_destroy);
  answer(sdk_abi());
  answer(sdk_op_size());
  answer(sdk_isas());
  answer(sdk_dot());
  for (;;) {
    fflush(stdout);
    int64_t command;
    if (fread(&command, sizeof command, 1, stdin) != 1) return;  // whoever asked is gone
    if (command == 'c') {
      // An sdk_program and all that it leads to; then pairs of places in these bytes: where a
      // pointer lies, and what it points to.
      Bytes memory, pointers;
      for (int64_t i = 0; i < pointers.size; i += 16) {
        int64_t where[2];
        memcpy(where, pointers.data + i, sizeof where);
        const char *to = memory.data + where[1];
        memcpy(memory.data + where[0], &to, sizeof to);
      }
      char error[512] = "";
      answer(~reinterpret_cast<int64_t>(
          sdk_create(reinterpret_cast<sdk_program *>(memory.data), error, sizeof error)));
      answer(error, static_cast<int64_t>(strlen(error)));
      continue;
    }
    // Handles travel complemented: no buffer holds one, so LeakSanitizer sees an engine forgotten.
    auto *engine = reinterpret_cast<sdk_engine *>(~number());
    if (command == 'r') {
      Bytes x, row, out(number());
      sdk_run(engine, x.floats(), out.floats(), row.floats(), number());
      answer(out.data, out.size);
    } else if (command == 'a') {
      answer(sdk_arena(engine), number());
    } else if (command == 's') {
      Bytes seconds(number());
      sdk_seconds(engine, reinterpret_cast<double *>(seconds.data));
      answer(seconds.data, seconds.size);
    } else if (command == 'i') {
      answer(sdk_engine_isa(engine));
    } else if (command == 'b') {
      answer(sdk_bytes(engine));
    } else if (command == 'd') {
      sdk_destroy(engine);
      answer(0);
    } else {
      fail("no such command");
    }
  }
}

}  // namespace

int main(int argc, char **argv) {
  void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW) : nullptr;
  if (library == nullptr) fail(argc == 2 ? dlerror() : "expected one argument, the library");
  // In a thread, whose stack and registers are gone when LeakSanitizer looks for pointers.
  std::thread(serve, library).join();
}
