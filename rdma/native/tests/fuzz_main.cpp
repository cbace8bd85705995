// Runs a fuzz target over random inputs that are the same every time; libFuzzer brings its own main.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include <unistd.h>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int argc, char** argv) {
  const long count = argc > 1 ? std::atol(argv[1]) : 20000;
  const auto first = argc > 2 ? static_cast<std::uint32_t>(std::atol(argv[2])) : 1U;
  ::alarm(600);
  std::vector<std::uint8_t> input;
  for (long i = 0; i < count; ++i) {
    std::mt19937 random(first + static_cast<std::uint32_t>(i));
    input.resize(random() % (random() % 2 == 0 ? 100 : 600));
    for (auto& byte : input) byte = static_cast<std::uint8_t>(random());
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("%ld inputs\n", count);
  return 0;
}
