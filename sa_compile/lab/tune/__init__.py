"""The tuner: per range of prompt lengths, the fastest settings that keep a bound on accuracy."""
