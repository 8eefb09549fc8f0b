"""Settings that ops, options and the evaluation's rules share; docs/accuracy.md: how chosen."""

# Methods A and B: share of the sampled attention that columns, and slashes, reach.
ALPHA = 0.95
# Method C.
ADAPTIVE_TAU = 0.1
ADAPTIVE_LANDMARKS = 15
# Methods B and C: rows at the end of a prompt that attend to every key.
LAST_ROWS = 128
