"""SampleAttention inside engines that serve models, which schedule, page and decode as they always do."""
