"""The op ``select_blocks``: the fewest columns and slashes that reach a share of the sampled attention."""
