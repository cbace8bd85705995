"""The inference engine: stages, schedules, sampling, and the traced profile of a model."""
