"""The op ``attention_mass``: the share of attention, over sampled rows, that lies in kept blocks."""
