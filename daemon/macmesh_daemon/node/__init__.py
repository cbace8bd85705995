"""The running node: the asyncio shell around the cluster core."""
