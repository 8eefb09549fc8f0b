"""The op ``mask_blocks``: the blocks that a mask leaves."""
