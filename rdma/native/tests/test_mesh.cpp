#include "core/mesh.h"

#include <cstring>
#include <numeric>
#include <thread>

#include "tests/mesh_ranks.h"

using namespace mesh_test;

namespace {

void check_collectives(Ranks& ranks, int size, std::size_t count) {
  std::vector<float> sum = values_of(0, count);
  std::vector<float> max = values_of(0, count);
  std::vector<float> gathered;
  for (int r = 0; r < size; ++r) {
    auto values = values_of(r, count);
    gathered.insert(gathered.end(), values.begin(), values.end());
    for (std::size_t i = 0; i < count && r > 0; ++i) {
      sum[i] += values[i];
      max[i] = std::max(max[i], values[i]);
    }
  }
  auto errors = ranks.all([&](Mesh& mesh) {
    auto mine = values_of(mesh.rank(), count);
    std::vector<float> result(count);
    mesh.all_reduce(Reduction::kSum, floats(count), in(mine), out(result));
    CHECK(result == sum);
    mesh.all_reduce(Reduction::kMax, floats(count), in(mine), out(result));
    CHECK(result == max);
    auto in_place = mine;
    mesh.all_reduce(Reduction::kSum, floats(count), in(in_place), out(in_place));
    CHECK(in_place == sum);
    std::vector<float> all(gathered.size());
    mesh.all_gather(floats(count), in(mine), out(all));
    CHECK(all == gathered);
    // Everybody's part is the sum's own.
    std::vector<float> many;
    for (int i = 0; i < size; ++i) many.insert(many.end(), mine.begin(), mine.end());
    std::fill(result.begin(), result.end(), 0.0f);
    mesh.sum_scatter(floats(many.size()), in(many), out(result));
    CHECK(result == sum);
  });
  for (const auto& error : errors) CHECK_TEXT(error.empty(), error);
}

}  // namespace

TEST(collectives_of_all_sizes_over_fakes) {
  for (int size : {2, 3, 4}) {
    Ranks ranks(size);
    for (std::size_t count : {0, 1, 2, 5, 8192, 8193, 65537, 300001}) check_collectives(ranks, size, count);
  }
}

TEST(collectives_over_every_kind_of_link) {
  for (const auto& kind : pairs::kKinds) {
    Options options;
    options.link = maker(kind);
    Ranks ranks(3, options);
    for (std::size_t count : {3, 9001, 40000}) check_collectives(ranks, 3, count);
  }
}

TEST(collectives_with_checksums) {
  for (const auto& kind : pairs::kKinds) {
    Options options;
    options.link = maker(kind);
    options.checksum_payloads = true;
    Ranks ranks(3, options);
    for (std::size_t count : {0, 3, 9001, 40000}) check_collectives(ranks, 3, count);
  }
}

TEST(large_messages_are_cut_over_several_links) {
  for (const auto& kind : pairs::kKinds) {
    Options options;
    options.link = maker(kind);
    options.links_per_lane = 3;
    Ranks ranks(2, options);
    for (std::size_t count : {10, 65535, 65536, 200003}) {
      check_collectives(ranks, 2, count);
      auto errors = ranks.all([&](Mesh& mesh) {
        auto values = values_of(0, count);
        if (mesh.rank() == 0) {
          mesh.send(1, floats(count), in(values));
        } else {
          std::vector<float> got(count);
          mesh.receive(0, floats(count), out(got));
          CHECK(got == values);
        }
      });
      CHECK_TEXT(errors[0].empty() && errors[1].empty(), errors[0] + errors[1]);
    }
  }
}

TEST(any_to_any_both_ways_at_once) {
  Ranks ranks(3);
  auto errors = ranks.all([&](Mesh& mesh) {
    std::vector<std::thread> threads;
    for (int peer = 0; peer < 3; ++peer) {
      if (peer == mesh.rank()) continue;
      threads.emplace_back([&mesh, peer] {
        for (std::size_t i = 0; i < 200; ++i) {
          auto values = values_of(mesh.rank() * 10 + peer, i);
          mesh.send(peer, floats(i), in(values));
        }
      });
      threads.emplace_back([&mesh, peer] {
        for (std::size_t i = 0; i < 200; ++i) {
          std::vector<float> got(i);
          mesh.receive(peer, floats(i), out(got));
          CHECK(got == values_of(peer * 10 + mesh.rank(), i));
        }
      });
    }
    for (auto& thread : threads) thread.join();
  });
  for (const auto& error : errors) CHECK_TEXT(error.empty(), error);
}

TEST(wrong_calls_fail_alone) {
  Options options;
  options.collectives = false;
  Ranks ranks(2, options);
  std::vector<float> x(1);
  CHECK(has(error_of([&] { ranks[0].send(0, floats(1), in(x)); }), "itself"));
  CHECK(has(error_of([&] { ranks[0].send(5, floats(1), in(x)); }), "no link"));
  CHECK(has(error_of([&] { ranks[0].receive(-1, floats(1), out(x)); }), "no link"));
  CHECK(has(error_of([&] { ranks[0].all_reduce(Reduction::kSum, floats(1), in(x), out(x)); }), "without links"));
  CHECK(ranks[0].failure().status.ok());
  ranks[0].send(1, floats(1), in(x));
  ranks[1].receive(0, floats(1), out(x));
  bool refused = false;
  try {
    Mesh mesh(2, 2, {}, {});
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
}

TEST(a_group_of_one_copies) {
  Mesh mesh(0, 1, {}, {});
  auto values = values_of(0, 100);
  std::vector<float> got(100);
  mesh.all_reduce(Reduction::kMin, floats(100), in(values), out(got));
  CHECK(got == values);
  std::fill(got.begin(), got.end(), 0.0f);
  mesh.all_gather(floats(100), in(values), out(got));
  CHECK(got == values);
  std::fill(got.begin(), got.end(), 0.0f);
  mesh.sum_scatter(floats(100), in(values), out(got));
  CHECK(got == values);
}

TEST(pools_are_counted) {
  Ranks ranks(3);
  CHECK(ranks[0].pool_bytes() == 4 * 100 + 2 * Mesh::kBlockBytes);
  ranks[0].close();
  CHECK(ranks[0].pool_bytes() == 0);
}

CHECK_MAIN
