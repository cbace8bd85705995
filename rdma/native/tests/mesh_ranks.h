#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/mesh.h"
#include "tests/check.h"
#include "tests/fake_link.h"
#include "tests/link_pairs.h"

// Groups of ranks within one process, for tests.
namespace mesh_test {

using namespace mm;

using Maker = std::function<std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>>()>;

inline std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> fakes() {
  fake::Pair pair;
  return {std::move(pair.a), std::move(pair.b)};
}

inline Maker maker(const pairs::Kind& kind) {
  return [&kind] {
    auto pair = kind.make();
    return std::pair{std::move(pair.a), std::move(pair.b)};
  };
}

struct Options {
  Maker link = fakes;
  double timeout_seconds = 20;
  int links_per_lane = 1;
  std::vector<Epoch> epochs = {};
  bool collectives = true;
  bool checksum_payloads = false;
};

// A full mesh of ranks in this process; every rank is used by one thread.
struct Ranks {
  std::vector<std::map<int, Mesh::Peer>> peers;
  std::vector<std::unique_ptr<Mesh>> meshes;
  std::vector<int> raw_side;  // a duplicate of rank 0's side socket to rank 1

  explicit Ranks(int size, const Options& options = {}) : peers(static_cast<std::size_t>(size)) {
    for (int a = 0; a < size; ++a) {
      for (int b = a + 1; b < size; ++b) {
        auto& left = peers[static_cast<std::size_t>(a)][b];
        auto& right = peers[static_cast<std::size_t>(b)][a];
        for (int i = 0; i < options.links_per_lane; ++i) {
          auto [l, r] = options.link();
          left.point_to_point.push_back(std::move(l));
          right.point_to_point.push_back(std::move(r));
          if (!options.collectives) continue;
          auto [cl, cr] = options.link();
          left.collective.push_back(std::move(cl));
          right.collective.push_back(std::move(cr));
        }
        auto side = pairs::unix_sockets();
        left.side_descriptor = side.a;
        right.side_descriptor = side.b;
      }
    }
    for (int rank = 0; rank < size; ++rank) {
      auto r = static_cast<std::size_t>(rank);
      Epoch epoch = options.epochs.empty() ? Epoch{1, 4, 2} : options.epochs[r];
      meshes.push_back(std::make_unique<Mesh>(rank, size, std::move(peers[r]),
                                              Mesh::Settings{epoch, "test", options.timeout_seconds, 20,
                                                             options.checksum_payloads}));
    }
  }

  Mesh& operator[](int rank) { return *meshes[static_cast<std::size_t>(rank)]; }

  // Runs `work(mesh)` in a thread for each rank; what each threw.
  std::vector<std::string> all(const std::function<void(Mesh&)>& work) {
    std::vector<std::string> errors(meshes.size());
    std::vector<std::thread> threads;
    for (std::size_t rank = 0; rank < meshes.size(); ++rank) {
      threads.emplace_back([&, rank] {
        try {
          work(*meshes[rank]);
        } catch (const MeshError& error) {
          errors[rank] = error.what();
        }
      });
    }
    for (auto& thread : threads) thread.join();
    return errors;
  }
};

inline Message floats(std::size_t count) {
  return {Dtype::kFloat32, static_cast<std::uint32_t>(count), std::string("(").append(std::to_string(count)).append(",)")};
}
template <class T>
inline std::span<const std::byte> in(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}
template <class T>
inline std::span<std::byte> out(std::vector<T>& values) {
  return std::as_writable_bytes(std::span(values));
}
inline std::vector<float> values_of(int rank, std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(rank + 1) * 0.1f + static_cast<float>(i % 1000) * 1.7f;
  }
  return values;
}
inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

template <class Work>
inline std::string error_of(Work work) {
  try {
    work();
  } catch (const MeshError& error) {
    return error.what();
  }
  return {};
}

inline double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

}  // namespace mesh_test
