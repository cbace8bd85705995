#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

// The native tests' harness: TEST(name) { CHECK(...); } and one main per executable, which runs all its tests and
// says which check failed. A hard end: the process aborts when a test takes longer than a minute.

#include <unistd.h>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

[[noreturn]] inline void failed(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, what.c_str());
  std::fflush(stderr);
  std::_Exit(1);  // other threads of the test may still run
}

inline int run_all() {
  for (const Test& test : tests()) {
    std::printf("%s\n", test.name);
    std::fflush(stdout);
    ::alarm(60);
    test.run();
  }
  return 0;
}

}  // namespace check

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) ::check::failed(__FILE__, __LINE__, #condition); \
  } while (false)

#define CHECK_TEXT(condition, text)                                                                    \
  do {                                                                                                 \
    if (!(condition)) ::check::failed(__FILE__, __LINE__, std::string(#condition) + ": " + (text));      \
  } while (false)

#define TEST(name)                                                    \
  static void test_##name();                                          \
  static const ::check::Registration registration_##name(#name, test_##name); \
  static void test_##name()

#define CHECK_MAIN \
  int main() { return ::check::run_all(); }
