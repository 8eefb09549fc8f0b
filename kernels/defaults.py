"""Settings that ops, options and the evaluation's rules share; docs/accuracy.md: how chosen."""

# Methods A and B: share of the sampled attention that columns, and slashes, reach.
ALPHA = 0.95
# Method C.
ADAPTIVE_PEAK = 0.2
ADAPTIVE_TAU = 0.2  # looked at if the peak is 1
ADAPTIVE_LANDMARKS = 15
BUDGET = 0.025
BUDGET_TAU = 0.07
BUDGET_ROWS = 32
REST = 0.5
MEANS = False
# What stood for these before there were settings of them: tau decided alone, and means counted for the rest.
BEFORE_THE_BUDGET = {"budget": 1.0, "means": True}
# What decided before there was a peak: tau, with as many landmarks.
BEFORE_THE_PEAK = {"peak": 1.0, "landmarks": 15}
# What left-out blocks counted for before there was a setting of it, and the first two defaults of the budget.
BEFORE_THE_REST = {"rest": 0.0}
FIRST_BUDGET = {"budget": 0.025, "budget_tau": 0.08, **BEFORE_THE_REST}
SECOND_BUDGET = {"budget": 0.02, "budget_tau": 0.06, **BEFORE_THE_REST}
# Methods B and C: rows at the end of a prompt that attend to every key.
LAST_ROWS = 128
# When a landmark is chosen, what is taken away of the other keys' squared norms in its direction: half of
# each key's component there, 1 - (1 - 1/2)^2 of its square.
LANDMARK_TAKEN = 0.75
# Of ``select_peaks``: key blocks that have one normal distribution in a row's total.
PEAK_BLOCKS = 8
# Groups to which the landmarks of a key block belong in turn: of each a row counts the one it looks for most.
LANDMARK_GROUPS = 3
