"""The op ``select_adaptive``: the key blocks that a query block's rows are estimated to look for."""
