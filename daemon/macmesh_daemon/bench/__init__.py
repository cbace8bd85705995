"""Measures what a cluster serves: the plan of runs, the statistics, the runners and the baseline. `daemonctl bench`.

How things are counted, everywhere in this package:

* Prompts are token ids drawn from a seed, so their lengths are exact; end-of-sequence tokens end nothing.
* Time to first token: from the call to the arrival of the first response that carries a token, at the client.
* Inter-token time: a response may carry several tokens. The time since the response before it is then spread evenly
  over its tokens. What comes with the first token in one response has no inter-token time.
* Percentiles are nearest-rank: the smallest measured value that at least that share of all values does not exceed.
* Prefill speed is prompt tokens over time to first token, so with everything that the way to the cluster takes.
* Aggregate speed is the generated tokens of all requests over the wall time of their rounds.
"""
