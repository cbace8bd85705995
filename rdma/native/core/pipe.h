#pragma once

namespace mm {

// A pipe whose ends neither block nor outlive an exec. Throws std::system_error, saying what it was for.
void make_pipe(int& read_fd, int& write_fd, const char* purpose);

}  // namespace mm
