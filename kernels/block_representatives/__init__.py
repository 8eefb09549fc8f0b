"""The op ``block_representatives``: keys that stand for the key blocks."""
