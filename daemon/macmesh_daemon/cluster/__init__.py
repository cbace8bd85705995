"""The pure cluster core: election, membership and plans of one node as a state machine."""
