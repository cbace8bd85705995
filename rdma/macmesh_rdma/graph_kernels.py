"""The kernels that wait for payloads in shared memory and write them, as source text. Pure, no mlx.

They are bodies of CUDA kernels, one block each. Compiled as C++ with `HOST_PREAMBLE` before them they do the same on a
CPU, which is how they are tested without a GPU.

Every kernel takes, beside arrays: ``place`` (addresses of the memory's words, of the payload's buffer, of its
signature, of this rank's own end word there), ``number`` (of the payload, nanoseconds to wait, its signature; then
offset and bytes of each array), ``ends`` (addresses of all end words of this rank) and ``after`` (what the transfer
before it put out, for the order). So the text does not depend on sizes, and is compiled once.
"""

import functools
import hashlib
from collections.abc import Sequence

from macmesh_rdma.graph_memory import READ, RECEIVER_END, SENDER_END, SENT, End, layout_of

THREADS = 512
"""Of the block."""
CONTROL_INPUTS = ("place", "number", "ends", "after")

_CLOCK = """
#ifdef __CUDACC__
#define MACMESH_NOW(t) asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t))
#else
#define MACMESH_NOW(t) t = host_now()
#endif
"""
_BEGIN = """
volatile long long* words = (volatile long long*)(unsigned long long)place[0];
char* buffer = (char*)(unsigned long long)place[1];
volatile long long* signature = (volatile long long*)(unsigned long long)place[2];
volatile long long* own_end = (volatile long long*)(unsigned long long)place[3];
__shared__ int failed;
if (threadIdx.x == 0) {
  unsigned long long began, now;
  long long code = 0;
  MACMESH_NOW(began);
  for (;;) {
    if (*own_end != 0) { code = OWN_ENDED; break; }
    if (words[AWAITED] >= WANTED) break;
    if (words[PEER_END] != 0) { code = PEER_ENDED; break; }
    MACMESH_NOW(now);
    if (now > began && (long long)(now - began) > (long long)number[1]) { code = TIMED_OUT; break; }
    __nanosleep(100);
  }
  __threadfence_system();
  CHECK
  if (code != 0) {
    if (*own_end == 0) *own_end = code;
    for (int i = 0; i < END_COUNT; ++i) {
      volatile long long* end = (volatile long long*)(unsigned long long)ends[i];
      if (*end == 0) *end = ELSEWHERE;
    }
    __threadfence_system();
  }
  failed = code != 0;
}
__syncthreads();
"""
_CHECK_SIGNATURE = "if (code == 0 && *signature != (long long)number[2]) code = MISMATCH;"
_COPY_OUT = """
{
  char* to = (char*)out{i};
  const char* from = buffer + number[{offset}];
  const long long size = number[{size}];
  if (failed) {
    for (long long k = threadIdx.x; k < size; k += blockDim.x) to[k] = 0;
  } else {
    long long wide = (((unsigned long long)to | (unsigned long long)from) & 15) ? 0 : size / 16;
    for (long long k = threadIdx.x; k < wide; k += blockDim.x) ((int4*)to)[k] = __ldcv((const int4*)from + k);
    for (long long k = wide * 16 + threadIdx.x; k < size; k += blockDim.x) to[k] = __ldcv(from + k);
  }
}
"""
_COPY_IN = """
if (!failed) {
  const char* from = (const char*)in{i};
  char* to = buffer + number[{offset}];
  const long long size = number[{size}];
  long long wide = (((unsigned long long)to | (unsigned long long)from) & 15) ? 0 : size / 16;
  for (long long k = threadIdx.x; k < wide; k += blockDim.x) ((int4*)to)[k] = ((const int4*)from)[k];
  for (long long k = wide * 16 + threadIdx.x; k < size; k += blockDim.x) to[k] = from[k];
}
"""
_FINISH = """
__threadfence_system();
__syncthreads();
if (threadIdx.x == 0) {
  if (!failed) {
    SIGN
    words[TOLD] = (long long)number[0];
    __threadfence_system();
  }
  done[0] = number[0];
}
"""
_SIGN = """*signature = (long long)number[2];
    __threadfence_system();"""

HOST_PREAMBLE = """
#include <cstdint>
#include <time.h>
struct Dimension { unsigned x; };
static const Dimension threadIdx{0}, blockDim{1};
struct int4 { int x, y, z, w; };
template <class T> static T __ldcv(const T* from) { return *from; }
static void __syncthreads() {}
static void __threadfence_system() { __sync_synchronize(); }
static void __nanosleep(unsigned) { timespec time{0, 20000}; nanosleep(&time, nullptr); }
static unsigned long long host_now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000ULL + time.tv_nsec;
}
#define __shared__
"""


@functools.lru_cache(maxsize=64)
def receive_source(arrays: int, end_count: int) -> str:
    """Waits for a payload of so many arrays, none of them empty, and copies it to ``out0``, ``out1`` and so on."""
    return _body(
        _copies(_COPY_OUT, arrays),
        end_count,
        {
            "CHECK": _CHECK_SIGNATURE,
            "SIGN": "",
            "AWAITED": str(SENT // 8),
            "WANTED": "(long long)number[0]",
            "TOLD": str(READ // 8),
            "PEER_END": str(SENDER_END // 8),
        },
    )


@functools.lru_cache(maxsize=64)
def send_source(arrays: int, end_count: int, buffers: int) -> str:
    """Waits for a free buffer and writes ``in0``, ``in1`` and so on, none of them empty, to it."""
    return _body(
        _copies(_COPY_IN, arrays),
        end_count,
        {
            "CHECK": "",
            "SIGN": _SIGN,
            "AWAITED": str(READ // 8),
            "WANTED": f"(long long)number[0] - {buffers}LL",
            "TOLD": str(SENT // 8),
            "PEER_END": str(RECEIVER_END // 8),
        },
    )


def numbers_of(number: int, wait_ns: int, signature: int, sizes: Sequence[int]) -> list[int]:
    """The input ``number`` of a payload of arrays of so many bytes."""
    places = zip(layout_of(sizes).offsets, sizes, strict=True)
    return [number, wait_ns, signature, *(value for place in places for value in place)]


@functools.lru_cache(maxsize=256)
def kernel_name(kind: str, source: str, types: tuple[str, ...]) -> str:
    """A name that no other source with other types has: MLX keeps compiled kernels by their names."""
    told = "\n".join((*types, source))
    return f"macmesh_{kind}_{hashlib.blake2b(told.encode(), digest_size=8).hexdigest()}"


def _copies(text: str, arrays: int) -> str:
    return "".join(
        text.replace("{i}", str(i)).replace("{offset}", str(3 + 2 * i)).replace("{size}", str(4 + 2 * i))
        for i in range(arrays)
    )


def _body(copies: str, end_count: int, own: dict[str, str]) -> str:
    # The end words of this rank are looked at before a payload that is there: after one failure nothing goes on.
    words = {
        **own,
        "END_COUNT": str(end_count),
        "OWN_ENDED": str(int(End.ELSEWHERE)),
        "PEER_ENDED": str(int(End.PEER_ENDED)),
        "TIMED_OUT": str(int(End.TIMED_OUT)),
        "ELSEWHERE": str(int(End.ELSEWHERE)),
        "MISMATCH": str(int(End.MISMATCH)),
    }
    text = _BEGIN + copies + _FINISH
    for word in ("CHECK", "SIGN"):  # they hold others
        text = text.replace(word + "\n", words.pop(word) + "\n")
    # Longer ones first: END_COUNT and PEER_END are parts of no other then.
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, words[word])
    return _CLOCK + text
