"""`daemonctl demo`: a throw-away cluster of real daemons on this machine does the whole job.

Nothing is faked: the daemons are the shipped program, they find each other by multicast DNS, and the only
thing that the demo sets is how much memory each may use, so that one of them cannot hold the model.
"""
