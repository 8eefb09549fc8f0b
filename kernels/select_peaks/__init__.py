"""The op ``select_peaks``: the key blocks of which a query block's rows look for one key above all."""
