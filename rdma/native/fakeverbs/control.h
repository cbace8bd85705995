#pragma once

#include <cstddef>

// How a test makes a fabric and interferes with it: symbols of the same shared object, so that whoever loads it, in C++
// or in Python, needs nothing else. All return 0, or -1 with the reason in `answer`.
extern "C" {

// Makes the segment `name` from a plan, see settings.h. It stays until it is removed.
int macmesh_fakeverbs_create(const char* name, const char* plan, char* answer, std::size_t room);

// Takes the name away. Processes that have it mapped go on.
int macmesh_fakeverbs_remove(const char* name, char* answer, std::size_t room);

// Does one of these, and writes what there is to say, as lines "key=value":
//   cut CABLE               pulls it: its ports go down, what is on it is lost
//   join CABLE              plugs it in again
//   lose CABLE END COUNT    loses the next COUNT unreliable messages that this end sends
//   set KEY=VALUE           changes a setting from now on
//   advance NANOSECONDS     moves the manual clock
//   now                     the fabric's time, in nanoseconds
//   counters                messages, bytes, delivered, lost, ... of each cable's ends; queue pairs and regions in use
int macmesh_fakeverbs_command(const char* name, const char* command, char* answer, std::size_t room);
}
