#include "check.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace film::check {

namespace {

struct Check {
  const char* name;
  void (*run)();
};

std::vector<Check>& checks() {
  static std::vector<Check> all;
  return all;
}

int failures = 0;

}  // namespace

Registered::Registered(const char* name, void (*run)()) { checks().push_back({name, run}); }

void expect(bool holds, const char* format, ...) {
  if (holds || ++failures > 10) return;
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::puts("");
}

void expect_failure(cudaError_t error, cudaError_t expected, const char* words) {
  const char* message = film_emulator_message();
  expect(error == expected, "error %d (%s), not %d", error, cudaGetErrorString(error), expected);
  expect(std::strstr(message, words) != nullptr, "\"%s\" is not in \"%s\"", words, message);
}

}  // namespace film::check

int main(int count, char** names) {
  int run = 0;
  for (int i = 1; i < count; ++i)
    for (const auto& check : film::check::checks())
      if (std::strcmp(check.name, names[i]) == 0) {
        if (run > 0) film_emulator_set_seed(0);
        check.run();
        ++run;
      }
  if (run != count - 1) std::puts("no such check");
  return run != count - 1 || film::check::failures > 0;
}
