#include "core/pipe.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>

namespace mm {

void make_pipe(int& read_fd, int& write_fd, const char* purpose) {
  int ends[2];
  if (pipe(ends) != 0) {
    throw std::system_error(errno, std::generic_category(), std::string("cannot make a pipe for ") + purpose);
  }
  for (int end : ends) {
    fcntl(end, F_SETFD, FD_CLOEXEC);
    fcntl(end, F_SETFL, O_NONBLOCK);
  }
  read_fd = ends[0];
  write_fd = ends[1];
}

}  // namespace mm
