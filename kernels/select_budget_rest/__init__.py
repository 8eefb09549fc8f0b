"""The op ``select_budget_rest``: ``select_budget`` beside other blocks, and what all others would give."""
