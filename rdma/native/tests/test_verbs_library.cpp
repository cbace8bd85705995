// The loader and the devices, over the fake library.

#include "tests/fake_fabric.h"
#include "verbs/abi.h"

using namespace fake_fabric;
using mm::verbs::Choice;
using mm::verbs::DeviceFacts;

namespace {

bool says(const Status& why, const std::string& words) {
  return why.code() == mm::Code::kLocal && why.text().find(words) != std::string::npos;
}

std::string refusal(Fabric& fabric, const std::string& device, const DeviceOptions& options = {}) {
  Status why;
  CHECK(mm::verbs::open_device(fabric.library(), device, options, why) == nullptr);
  CHECK(why.code() == mm::Code::kLocal);
  return why.text();
}

}  // namespace

TEST(a_missing_library_says_what_to_do) {
  Status why;
  CHECK(Library::open("/nowhere/libibverbs.so", why) == nullptr);
  CHECK_TEXT(says(why, "/nowhere/libibverbs.so"), why.text());
  CHECK_TEXT(says(why, "; "), why.text());
}

TEST(a_library_without_verbs_says_what_it_lacks) {
  Status why;
#if defined(__APPLE__)
  const std::string other = "/usr/lib/libz.dylib";
#else
  const std::string other = "libm.so.6";
#endif
  CHECK(Library::open(other, why) == nullptr);
  CHECK_TEXT(says(why, "lacks ibv_get_device_list"), why.text());
}

TEST(the_environment_chooses_the_library) {
  ::setenv("MACMESH_VERBS_LIBRARY", MACMESH_FAKEVERBS_PATH, 1);
  CHECK(Library::default_path() == MACMESH_FAKEVERBS_PATH);
  Status why;
  CHECK(Library::open("", why) != nullptr);
  ::unsetenv("MACMESH_VERBS_LIBRARY");
  CHECK(Library::default_path() != MACMESH_FAKEVERBS_PATH);
}

TEST(devices_tell_their_limits_and_ports) {
  Fabric fabric("cables=a.fake0-b.fake0;loose=a.fake1");
  Status why;
  const std::vector<DeviceFacts> all = fabric.library()->devices(why);
  must(why);
  CHECK(all.size() == 3);
  const DeviceFacts& first = all[0];
  CHECK(first.name == "a_fake0" && all[1].name == "b_fake0" && all[2].name == "a_fake1");
  CHECK(first.failure.empty() && first.thunderbolt && first.guid == 0x02face0000000000);
  CHECK(first.limits.max_queue_pairs == 10 && first.limits.max_regions == 100);
  CHECK(first.limits.max_send_requests == 4095 && first.limits.max_message_bytes == 16773120);
  CHECK(first.limits.frame_bytes == 4096);
  CHECK(mm::verbs::request_places(first.limits, 65536) == 16);
  CHECK(mm::verbs::request_places(first.limits, 4097) == 2);
  CHECK(first.ports.size() == 1 && first.ports[0].active && first.ports[0].mtu == 5);
  CHECK(first.ports[0].gids.size() == 3 && first.ports[0].gids[1].index == 1);
  CHECK(first.ports[0].gids[1].bytes[10] == std::byte{0xff});
  CHECK(!all[2].ports[0].active && all[2].ports[0].state == 1);
  CHECK(first.guid != all[1].guid);
}

TEST(a_host_sees_its_own_devices) {
  Fabric fabric("cables=a.fake0-b.fake0,a.fake1-c.fake0");
  ::setenv("MACMESH_FAKEVERBS_HOST", "a", 1);
  Status why;
  const auto all = fabric.library()->devices(why);
  ::unsetenv("MACMESH_FAKEVERBS_HOST");
  CHECK(all.size() == 2 && all[0].name == "fake0" && all[1].name == "fake1");
}

TEST(a_device_of_another_maker_has_other_limits) {
  Fabric fabric(std::string("flavour=linux;queue_pairs=77;") + kOneCable);
  Status why;
  const auto all = fabric.library()->devices(why);
  CHECK(!all[0].thunderbolt && all[0].limits.frame_bytes == 0 && all[0].limits.max_queue_pairs == 77);
  CHECK(mm::verbs::request_places(all[0].limits, 65536) == 1);
}

TEST(a_fabric_that_is_not_there_gives_no_list) {
  Fabric fabric(kOneCable);
  ::setenv("MACMESH_FAKEVERBS", "macmesh-test-none", 1);
  Status why;
  CHECK(fabric.library()->devices(why).empty());
  CHECK_TEXT(says(why, "listing the devices"), why.text());
}

TEST(opening_says_why_not) {
  Fabric fabric("cables=a.fake0-b.fake0;loose=a.fake1");
  const std::string unknown = refusal(fabric, "en7");
  CHECK_TEXT(unknown.find("a_fake0, b_fake0, a_fake1") != std::string::npos, unknown);
  const std::string down = refusal(fabric, "a_fake1");
  CHECK_TEXT(down.find("port 1 is down") != std::string::npos, down);
  DeviceOptions options;
  options.port = 2;
  const std::string no_port = refusal(fabric, "a_fake0", options);
  CHECK_TEXT(no_port.find("no port 2") != std::string::npos, no_port);
  fabric.command("set addresses=0");
  const std::string no_address = refusal(fabric, "a_fake0");
  CHECK_TEXT(no_address.find("no GID at index 1 (it has 0, 2)") != std::string::npos, no_address);
}

TEST(the_eleventh_queue_pair_is_refused_until_one_is_gone) {
  Fabric fabric(kOneCable);
  End first(fabric, "a_fake0", shape_of(Mode::kUC));
  std::vector<std::unique_ptr<QueuePair>> more;
  Status why;
  for (int i = 0; i < 9; ++i) {
    more.push_back(first.opened->make_queue_pair(*first.region, shape_of(Mode::kUC), why));
    must(why);
  }
  // The limit belongs to the device, not to who opened it.
  End other(fabric, "b_fake0", shape_of(Mode::kUC));
  auto again = fabric.open("a_fake0");
  Pages pages(65536);
  auto region = again->register_memory(pages.all(), why);
  CHECK(again->make_queue_pair(*region, shape_of(Mode::kUC), why) == nullptr);
  CHECK_TEXT(says(why, "errno 16") && says(why, "allows 10 queue pairs"), why.text());
  more.pop_back();
  CHECK(again->make_queue_pair(*region, shape_of(Mode::kUC), why) != nullptr);
}

TEST(the_hundred_and_first_region_is_refused) {
  Fabric fabric(kOneCable);
  auto device = fabric.open("a_fake0");
  Pages pages(4096);
  std::vector<std::unique_ptr<Region>> regions;
  Status why;
  for (int i = 0; i < 100; ++i) {
    regions.push_back(device->register_memory(pages.all(), why));
    must(why);
  }
  CHECK(device->register_memory(pages.all(), why) == nullptr);
  CHECK_TEXT(says(why, "errno 12") && says(why, "at most 100 regions"), why.text());
  regions.clear();
  CHECK(fabric.counter("regions") == 0);
}

TEST(a_region_begins_at_a_page) {
  Fabric fabric(std::string("region_bytes=65536;") + kOneCable);
  auto device = fabric.open("a_fake0");
  Pages pages(131072);
  Status why;
  CHECK(device->register_memory(pages.all().subspan(64), why) == nullptr);
  CHECK_TEXT(says(why, "begin at a page"), why.text());
  CHECK(device->register_memory(pages.all(), why) == nullptr);
  CHECK_TEXT(says(why, "at most 65536"), why.text());
}

TEST(regions_of_a_thunderbolt_device_get_the_rights_that_its_driver_wants) {
  for (const char* rights : {"0", "1", "2"}) {
    Fabric fabric("rights=" + std::string(rights) + ";" + kOneCable);
    auto device = fabric.open("a_fake0");
    Pages pages(4096);
    Status why;
    CHECK_TEXT(device->register_memory(pages.all(), why) != nullptr, why.text());
  }
}

TEST(a_shape_that_does_not_fit_says_which_limit) {
  Fabric fabric(kOneCable);
  End end(fabric, "a_fake0", shape_of(Mode::kUC));
  Status why;
  const auto refused = [&](const QueueShape& shape, const std::string& words) {
    CHECK(end.opened->make_queue_pair(*end.region, shape, why) == nullptr);
    CHECK_TEXT(says(why, words), why.text());
  };
  refused({Mode::kUC, 256, 1, 65536}, "4097 places for sends, the device has 4095");
  refused({Mode::kUC, 1, 256, 65536}, "places for receives");
  refused({Mode::kUC, 1, 1, 16773121}, "at most 16773120");
  refused(shape_of(Mode::kRC), "use the mode uc");
  CHECK(end.opened->make_queue_pair(*end.region, {Mode::kUC, 255, 255, 65536}, why) != nullptr);
}

TEST(requests_are_checked_against_the_region_and_the_shape) {
  Fabric fabric(kOneCable);
  Pair ends(fabric, shape_of(Mode::kUC, 2, 8192));
  CHECK(says(ends.a.pair->post_send(1, End::kBytes - 4096, 8192), "the region has"));
  CHECK(says(ends.a.pair->post_send(1, 0, 8193), "the queue pair takes 8192"));
  must(ends.a.pair->post_receive(1, 0, 8192));
  must(ends.a.pair->post_receive(2, 0, 8192));
  CHECK(says(ends.a.pair->post_receive(3, 0, 8192), "all 2 are posted"));
}

TEST(receives_are_posted_only_once_it_is_connected) {
  Fabric fabric(kOneCable);
  End end(fabric, "a_fake0", shape_of(Mode::kUC));
  CHECK(says(end.pair->post_receive(1, 0, 4096), "errno 22"));
}

TEST(every_place_of_the_queues_can_be_used) {
  Fabric fabric(std::string("manual_clock=1;latency_ns=1000;") + kOneCable);
  Pair ends(fabric, {Mode::kUC, 32, 32, 65536});
  for (int round = 0; round < 3; ++round) {
    for (std::uint64_t id = 0; id < 32; ++id) must(ends.b.pair->post_receive(id, id * 65536, 65536));
    for (std::uint64_t id = 0; id < 32; ++id) must(ends.a.pair->post_send(id, id * 65536, 65536));
    fabric.command("advance 1000");
    CHECK(ends.a.polled().size() == 32 && ends.b.polled().size() == 32);
  }
}

TEST(drain_brings_everything_back) {
  Fabric fabric(std::string("flavour=linux;manual_clock=1;latency_ns=1000;") + kOneCable);
  Pair ends(fabric);
  for (std::uint64_t id = 0; id < 5; ++id) must(ends.b.pair->post_receive(id, 0, 4096));
  must(ends.a.pair->post_send(1, 0, 4096));
  CHECK(ends.b.pair->drain(20) == 0);
  CHECK(ends.a.pair->drain(20) == 0);
  CHECK(ends.b.pair->post_receive(9, 0, 4096).code() == mm::Code::kAborted);
}

TEST(drain_leaves_the_receives_of_a_thunderbolt_device) {
  Fabric fabric(kOneCable);
  Pair ends(fabric);
  for (std::uint64_t id = 0; id < 5; ++id) must(ends.b.pair->post_receive(id, 0, 4096));
  must(ends.b.pair->post_send(1, 0, 4096));
  CHECK(ends.b.pair->drain(20) == 5);
  DeviceOptions options;
  options.error_before_destroy = Choice::kYes;
  Pair others(fabric, shape_of(Mode::kUC), options);
  must(others.b.pair->post_receive(1, 0, 4096));
  CHECK(others.b.pair->drain(20) == 0);
}

TEST(everything_that_is_made_is_destroyed_and_counted) {
  const mm::verbs::Counts before = mm::verbs::counts();
  Fabric fabric(kOneCable);
  { Pair ends(fabric); }
  const mm::verbs::Counts after = mm::verbs::counts();
  CHECK(after.queue_pairs_made - before.queue_pairs_made == 2);
  CHECK(after.queue_pairs_destroyed - before.queue_pairs_destroyed == 2);
  CHECK(after.regions_made - before.regions_made == 2 && after.regions_destroyed - before.regions_destroyed == 2);
  CHECK(after.devices_opened - before.devices_opened == 2 && after.devices_closed - before.devices_closed == 2);
  CHECK(fabric.counter("queue_pairs") == 0 && fabric.counter("regions") == 0);
}

TEST(without_completion_channels_there_is_nothing_to_wait_on) {
  for (const char* events : {"0", "1"}) {
    Fabric fabric("events=" + std::string(events) + ";" + kOneCable);
    Pair ends(fabric);  // auto: a Thunderbolt device is not trusted with it
    CHECK(ends.a.pair->wait_descriptor() == -1 && !ends.a.pair->arm());
  }
  Fabric fabric(std::string("events=0;") + kOneCable);
  DeviceOptions options;
  options.events = Choice::kYes;
  auto device = fabric.open("a_fake0", options);
  Pages pages(4096);
  Status why;
  auto region = device->register_memory(pages.all(), why);
  CHECK(device->make_queue_pair(*region, shape_of(Mode::kUC), why) == nullptr);
  CHECK_TEXT(says(why, "no completion channels"), why.text());
}

TEST(a_wrong_plan_names_its_key) {
  void* handle = ::dlopen(MACMESH_FAKEVERBS_PATH, RTLD_NOW | RTLD_LOCAL);
  CHECK(handle != nullptr);
  const auto create =
      reinterpret_cast<decltype(&macmesh_fakeverbs_create)>(::dlsym(handle, "macmesh_fakeverbs_create"));
  CHECK(create != nullptr);
  for (const std::string plan : {"los=0.1", "loss=1.5", "loss=", "slowdown=0", "cables=a-b", "flavour=none",
                                 "queue_pairs=-1", "events=yes", "cables=a.fake0-a.fake0", "nothing"}) {
    char answer[256] = {};
    CHECK_TEXT(create("macmesh-test-wrong", plan.c_str(), answer, sizeof answer) == -1, plan);
    const std::string key = plan.substr(0, plan.find('='));
    const bool named = std::string(answer).find(key == "cables" ? "a" : key) != std::string::npos;
    CHECK_TEXT(named, plan + ": " + answer);
  }
}

CHECK_MAIN
