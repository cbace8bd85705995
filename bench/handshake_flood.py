"""The flood of `handshakes.py`, as a program of its own that loads nothing slow.

python bench/handshake_flood.py PORT SECONDS THREADS

Shakes hands without a certificate as fast as it can; prints a line when it begins, and at the end how often.
"""

import socket
import ssl
import sys
import threading
import time


def main() -> None:
    """Flood, and print."""
    port, seconds, flooders = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    until = time.monotonic() + seconds
    counts = [0] * flooders

    def one(index: int) -> None:
        while time.monotonic() < until:
            try:
                with (
                    socket.create_connection(("127.0.0.1", port), timeout=2) as raw,
                    context.wrap_socket(raw) as secured,
                ):
                    secured.settimeout(2)
                    secured.recv(1)
            except OSError:
                pass
            counts[index] += 1

    threads = [threading.Thread(target=one, args=(i,)) for i in range(flooders)]
    for thread in threads:
        thread.start()
    print("flooding", flush=True)
    for thread in threads:
        thread.join()
    print(sum(counts), flush=True)


if __name__ == "__main__":
    main()
