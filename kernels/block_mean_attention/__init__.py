"""The op ``block_mean_attention``: kept blocks exactly, dropped ones by their mean key and value."""
