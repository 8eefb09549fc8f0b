"""What measures: accuracy, time, settings and coverage. No model that runs needs it."""
