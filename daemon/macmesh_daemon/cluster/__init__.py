"""The pure cluster core: election, membership and plans of one node as a state machine.

`machine.ClusterMachine` is the one door: ``step(event, now) -> effects``. It has no I/O, no clock and no
randomness of its own, so the daemon and the simulator of the tests run the same code. `effects` lists what
the shell owes it.

Parts, from the bottom up::

    messages, events, effects, state, settings, view, errors     plain data
    quorum      who votes with how much weight, and how that changes safely
    generations what a recovery by force begins
    context     durable state, time and effects of a step; a node calls itself through it
    election    role, term and vote                              every node
    worker_slot, replica    documents, promises, the own worker  every node, also the coordinator
    standalone  a plan of this node alone, while nobody leads    every node
    recovery    a new generation, by force                       every node
    goodbye, probes, refusals   leaving, second opinions, and what the evicted are told    every node
    tracker, admission, changes, failures, flaps                 what a coordinator counts and remembers
    watch       verdicts on members, restarts and doubles        the coordinator
    evictions, transfer     removing a node, handing the office over    the coordinator
    heartbeats  what every member is told, and the evicted       the coordinator
    planning    from "a plan is wanted" to a plan in the document    the coordinator
    rollout     from the document to a plan that serves              the coordinator
    coordinator heartbeats, the document, members                    one instance per term led here

Roles (`view.Role`); every change of term is durable before anything that follows from it is told::

    role           waits for                        goes to
    blank          a heartbeat with a document      follower, when it is stored
    follower       heartbeats                       pre_candidate, on silence, where it votes
    pre_candidate  pre-votes, changes nothing       candidate on a quorum; asks again after a while
    candidate      votes in a new, durable term     coordinator on a quorum; pre_candidate after a while
    follower       the coordinator's wish to go     candidate at once, without pre-votes (TransferLeadership)
    coordinator    answers within the lease         follower, where no quorum answers or a higher term is seen
    any but blank  -                                follower, on a higher term, or on a heartbeat of its own

The one document: the coordinator writes a version (its own term, the next seq), stores it, and sends it in
heartbeats to whoever holds another. A quorum that holds it commits it. At most one version is open; the first
one of a term repeats the last version found, and nothing else is decided before that is committed.

A plan at the coordinator (`planning`, then `rollout`)::

    phase       left when                                      then
    computing   the planner answers                            preparing; refused: recorded, what runs goes on
    preparing   every member has promised the epoch durably    storing; NACK or timeout: computing without it
    storing     a quorum holds the document with the plan      committed
    committed   COMMIT: every member has the epoch active      loading
    loading     every worker is LOADED                         SET_PEERS with a fresh key: connecting
    connecting  every worker is READY                          ready
    ready       a member dies, a worker ends, another wish     computing, under a new epoch

The last four are not remembered anywhere: each coordinator reads them off its members' heartbeats, so the
next one goes on where the last one was, under the plan's own epoch.

An epoch at a member (`replica`, `worker_slot`); ``active <= promised``, both durable, neither ever falls::

    PREPARE e   refused below ``promised``; else the shell checks, then ``promised = e``; what runs serves on
    COMMIT e    refused unless ``e == promised``; the old worker is stopped, then ``active = e``, then a start
    a committed document whose plan e leaves this node out: its worker stops and is gone, ``active = e``

A node whose document is of an older generation than its ballot neither campaigns nor is voted for. A local epoch
(`messages.Epoch`) goes through the worker slot alone: it is never promised, active, stored or told.

Safety rests on terms, votes, promises and quorums alone. Time only decides when something is tried.
"""
