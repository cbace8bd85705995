"""The shell around the cluster core: transport, storage and the loop that executes effects."""
