"""The op ``block_rest_attention``: kept blocks exactly, and a part of what the others give on average."""
